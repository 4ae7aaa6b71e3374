"""Settings that are accepted: defaults, names, units."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from pathlib import Path

import pytest

from authsvc.settings import (
    Environment,
    LimitSetting,
    LogFormat,
    LogLevel,
    Secret,
    Settings,
)
from tests.unit.settings.env import (
    DEVELOPMENT,
    PEPPER,
    TOKEN_SECRET,
    only_problem,
    production,
    read,
)


def test_production_has_the_documented_defaults(tmp_path):
    """Who sets only what is required gets the defaults of the contract."""
    settings = read(tmp_path)

    assert settings.environment is Environment.PRODUCTION
    assert (settings.http.host, settings.http.port, settings.http.metrics_port) == ("0.0.0.0", 8080, 9464)
    assert (settings.http.workers, settings.http.trusted_proxies, settings.http.api_docs) == (4, (), True)
    assert settings.http.check_lane is True
    cache = settings.cache
    assert (cache.is_enabled, cache.ttl_s, cache.list_ttl_s) == (True, 3600, 300)
    assert (cache.key_prefix, cache.key_version, cache.max_key_length) == ("authsvc", "v1", 250)
    assert (cache.breaker_failure_threshold, cache.breaker_recovery_ms) == (5, 2000)
    assert (cache.breaker_monitoring_ms, cache.breaker_half_open_max_calls) == (10_000, 3)
    assert (cache.lock_ttl_s, cache.lock_retry_delay_ms, cache.lock_max_retries) == (30, 100, 3)
    assert (cache.batch_size, cache.is_warmup_enabled) == (100, True)
    assert dataclasses.asdict(settings.sessions) == {
        "idle_ttl_s": 604_800,
        "max_ttl_s": 2_592_000,
        "max_per_user": 10,
        "refresh_grace_s": 10,
    }
    assert settings.redis.max_staleness_s == 300
    assert (settings.tokens.access_ttl_s, settings.tokens.leeway_s) == (3600, 5)
    assert (settings.passwords.min_length, settings.passwords.bcrypt_cost) == (15, 12)
    assert (settings.log.level, settings.log.format) == (LogLevel.INFO, LogFormat.JSON)


def test_the_default_limits_are_the_contract_s(tmp_path):
    """Limits arrive as a quota and a window in seconds."""
    limits = read(tmp_path).limits

    assert limits.login_ip == LimitSetting(quota=100, window_s=900)
    assert limits.login_account == LimitSetting(quota=10, window_s=900)
    assert limits.register_ip == LimitSetting(quota=20, window_s=3600)
    assert limits.refresh == LimitSetting(quota=60, window_s=60)


def test_what_is_required_arrives_as_given(tmp_path):
    """Required values are kept letter by letter."""
    settings = read(tmp_path)

    assert settings.database.url.reveal() == "postgresql://authsvc:db-Pa55word@db.internal:5432/authsvc"
    assert (settings.tokens.issuer, settings.tokens.audience) == ("https://auth.internal", "internal")
    assert settings.tokens.keys_dir == tmp_path
    assert settings.tokens.secret == Secret(TOKEN_SECRET)
    assert settings.passwords.pepper == Secret(PEPPER)
    assert settings.warnings == ()


def test_redis_by_its_parts(tmp_path):
    """Host, port, user, password, database, TLS and protocol can be set one by one."""
    parts = {
        "REDIS_HOST": "[::1]",
        "REDIS_PORT": "6380",
        "REDIS_USERNAME": "authsvc",
        "REDIS_PASSWORD": "short is fine",
        "REDIS_DB": "3",
        "REDIS_TLS": "on",
        "REDIS_PROTOCOL": "2",
    }

    redis = read(tmp_path, **parts).redis

    assert (redis.host, redis.port, redis.username, redis.db) == ("::1", 6380, "authsvc", 3)
    assert redis.password == Secret("short is fine")
    assert (redis.is_tls, redis.protocol, redis.is_in_memory) == (True, 2, False)


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://u:p%40@h:6380/2", "redis://:p@[::1]:6379/", "redis://10.0.0.1/0"]
)
def test_redis_by_its_url(tmp_path, url):
    """A URL takes the place of the parts."""
    redis = read(tmp_path, REDIS_HOST=None, REDIS_URL=url).redis

    assert redis.url == Secret(url)
    assert redis.host is None
    assert not redis.is_in_memory


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:55432/bench",
        "postgresql://u:p%40ss@[::1]/db?sslmode=require",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u:p#w[?@h/db",
        "postgresql://u@h1:5432,[::1]:5433,h3/db?target_session_attrs=read-write",
        "postgresql://u@h1,h2/db?application_name=login&sslmode=verify-full&sslrootcert=/ca.pem",
        "postgresql://u@h/db?options=-csearch_path%3Dauth%20-c%20work_mem%3D4MB%20--jit%3Doff",
    ],
)
def test_postgresql_urls(tmp_path, url):
    """Whatever libpq reads: several hosts, sockets, TLS, settings that are not the service's own."""
    assert read(tmp_path, DATABASE_URL=url).database.url == Secret(url)


@pytest.mark.parametrize(
    ("options", "reason"),
    [("-c statement_timeout=0", "sets statement_timeout"), ("-d 5", "write each as `-c name=value`")],
)
def test_settings_in_libpqs_own_variable_are_looked_at(tmp_path, options, reason):
    """PGOPTIONS goes to the server as well: what the service sets itself is refused, not dropped."""
    assert read(tmp_path, PGOPTIONS="-c search_path=auth").warnings == ()

    problem = only_problem(production(tmp_path, PGOPTIONS=options))

    assert problem.name == "PGOPTIONS"
    assert reason in problem.message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:pa%ss@h/d", "write %25"),
        ("postgresql://u@h/d?sslmod=require", "did you mean sslmode?"),
        ("postgresql://u@h/d?sslmode=always", "has a value of sslmode that does not exist"),
        ("postgresql://u@h/d?connect_timeout=30", "has connect_timeout, which the service sets by itself"),
        ("postgresql://u@h1,h2,h3/d?port=1,2", "another number of ports than of hosts"),
    ],
)
def test_what_is_wrong_with_a_database_url_is_said_in_its_own_words(tmp_path, url, reason):
    """A hint that does not fit sends people elsewhere."""
    assert reason in only_problem(production(tmp_path, DATABASE_URL=url)).message


@pytest.mark.parametrize(
    ("cpu_count", "workers"), [(1, 2), (2, 2), (8, 8)], ids=["one core", "two cores", "eight cores"]
)
def test_production_has_a_worker_for_each_cpu_and_two_at_least(tmp_path, cpu_count, workers):
    """One worker would make each restart of it an outage."""
    env = production(tmp_path)

    settings = Settings.from_env(env, cpu_count=cpu_count)

    assert settings.http.workers == workers


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("ON", True), ("1", True), ("False", False), ("off", False), ("0", False)],
)
def test_switches_have_three_spellings_each(tmp_path, text, value):
    """Any case will do."""
    assert read(tmp_path, CACHE_ENABLED=text).cache.is_enabled is value


def test_words_may_be_in_upper_case(tmp_path):
    """LOG_LEVEL=INFO is what half of the world writes."""
    settings = read(tmp_path, LOG_LEVEL="WARNING", LOG_FORMAT="Console", AUTHSVC_ENV="Production")

    assert (settings.log.level, settings.log.format) == (LogLevel.WARNING, LogFormat.CONSOLE)
    assert not settings.is_development


def test_trusted_proxies_are_networks_or_nothing(tmp_path):
    """The empty text means no proxy, the one place where empty is a value."""
    some = read(tmp_path, TRUSTED_PROXIES="10.0.0.0/8, fd00::/8,192.0.2.1")

    assert some.http.trusted_proxies == tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")))
    assert read(tmp_path, TRUSTED_PROXIES="").http.trusted_proxies == ()


def test_names_of_others_are_left_alone(tmp_path):
    """The environment is shared; only the service's own prefix is policed."""
    settings = read(
        tmp_path, PATH="/bin", AUTHSVC="x", AUTHSVC_BIN="/bin/authsvc", REDIS_PORT_6379_TCP="tcp://h"
    )

    assert settings.warnings == ()


def test_a_setting_that_was_removed_is_named_and_stops_nothing(tmp_path):
    """Deployments that still set it go on working."""
    (warning,) = read(tmp_path, CACHE_STALE_TTL="60").warnings

    assert warning.startswith("CACHE_STALE_TTL has no effect any more")


def test_limits_that_are_off_are_warned_about(tmp_path):
    """Off is allowed, and never silent."""
    settings = read(tmp_path, RATE_LIMIT_LOGIN_IP="off", RATE_LIMIT_REFRESH="OFF")

    assert settings.limits.login_ip is None
    assert settings.limits.refresh is None
    assert [warning.split()[0] for warning in settings.warnings] == [
        "RATE_LIMIT_LOGIN_IP",
        "RATE_LIMIT_REFRESH",
    ]


@pytest.mark.parametrize("proxies", ["0.0.0.0/0", "::/0"])
def test_trust_in_everybody_is_warned_about(tmp_path, proxies):
    """Whoever is trusted chooses the address that limits count by."""
    assert "TRUSTED_PROXIES" in read(tmp_path, TRUSTED_PROXIES=proxies).warnings[0]


@pytest.mark.parametrize(
    ("issuer", "warned"),
    [
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://localhost", False),
        ("https://auth.example.com/tenant", False),
        ("http://auth.internal", True),
    ],
)
def test_an_issuer_in_clear_is_warned_about_unless_it_is_this_host(tmp_path, issuer, warned):
    """http:// is accepted, since TLS may end elsewhere."""
    settings = read(tmp_path, JWT_ISSUER=issuer)

    assert settings.tokens.issuer == issuer
    assert any("JWT_ISSUER" in warning for warning in settings.warnings) is warned


def test_development_needs_nothing():
    """An empty development environment starts on embedded stores."""
    settings = Settings.from_env(DEVELOPMENT, cpu_count=8)

    assert settings.is_development
    assert settings.redis.is_in_memory
    assert settings.database.is_sqlite
    assert settings.database.url.reveal() == "sqlite:///.authsvc/dev.sqlite3"
    assert (settings.http.host, settings.http.workers) == ("127.0.0.1", 1)
    assert (settings.tokens.issuer, settings.tokens.audience) == ("http://127.0.0.1:8080", "authsvc-dev")
    assert settings.tokens.keys_dir == Path(".authsvc/keys")
    assert settings.tokens.secret is None
    assert settings.passwords.pepper is None
    assert "in memory" in settings.warnings[0]


def test_development_accepts_what_production_refuses():
    """Cheap hashes are fine; weak secrets and parts of no Redis are worth a warning."""
    env = {**DEVELOPMENT, "BCRYPT_COST": "4", "TOKEN_SECRET": "dev", "REDIS_PORT": "6379", "PORT": "9000"}

    settings = Settings.from_env(env)

    assert settings.passwords.bcrypt_cost == 4
    assert settings.tokens.issuer == "http://127.0.0.1:9000"
    assert any(warning.startswith("TOKEN_SECRET is weak") for warning in settings.warnings)
    assert any(warning.startswith("REDIS_PORT has no effect") for warning in settings.warnings)


def test_development_with_a_redis_may_have_workers(tmp_path):
    """Only the in-memory store is bound to one process."""
    env = {
        **DEVELOPMENT,
        "REDIS_HOST": "127.0.0.1",
        "WEB_CONCURRENCY": "3",
        "JWT_KEYS_DIR": str(tmp_path / "new"),
    }

    settings = Settings.from_env(env)

    assert (settings.http.workers, settings.redis.is_in_memory, settings.warnings) == (3, False, ())


def test_settings_are_frozen(tmp_path):
    """Nobody changes a setting after the start."""
    settings = read(tmp_path)

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.http.port = 1  # type: ignore[misc]
