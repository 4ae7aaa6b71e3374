"""Settings that are refused together: contradictions, unknown names, production."""

from __future__ import annotations

import pytest

from authsvc.settings import VARIABLES, Settings
from tests.unit.settings.env import (
    CLUSTER,
    DEVELOPMENT,
    SENTINEL,
    only_problem,
    problems,
    production,
    read,
)


@pytest.mark.parametrize("name", ["REDIS_PORT", "PORT", "METRICS_PORT"])
def test_a_port_from_a_service_link_is_explained(tmp_path, name):
    """Kubernetes writes tcp://… into it; the message says what to do."""
    problem = only_problem(production(tmp_path, **{name: "tcp://10.96.0.12:6379"}))

    assert problem.name == name
    assert "enableServiceLinks: false" in problem.message
    assert "tcp://10.96.0.12:6379" in problem.message


@pytest.mark.parametrize("level", ["aal2", "phr"])
def test_a_level_for_admins_needs_second_factors(tmp_path, level):
    """Without them no admin could ever have it, and their routes would be closed for good."""
    problem = only_problem(production(tmp_path, ADMIN_ACR=level))

    assert problem.name == "ADMIN_ACR"
    assert "SECOND_FACTORS=on" in problem.message
    assert read(tmp_path, ADMIN_ACR="aal1").second_factors.admin_acr == "aal1"


def test_names_from_a_service_link_are_explained_once(tmp_path):
    """A Service called authsvc writes a dozen names into the pod; one line is enough."""
    links = {
        "AUTHSVC_SERVICE_HOST": "10.96.0.9",
        "AUTHSVC_SERVICE_PORT_HTTP": "80",
        "AUTHSVC_PORT": "tcp://10.96.0.9:80",
        "AUTHSVC_PORT_80_TCP_ADDR": "10.96.0.9",
    }

    problem = only_problem(production(tmp_path, **links))

    assert "3 more" in problem.message
    assert "enableServiceLinks: false" in problem.message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AUTHSVC_EVN", "AUTHSVC_ENV"),
        ("AUTHSVC_REDIS_HOTS", "REDIS_HOST"),
        ("AUTHSVC_REDIS_HOST", "REDIS_HOST"),
        ("AUTHSVC_TOKEN_SECRET_FILE", "TOKEN_SECRET_FILE"),
        ("AUTHSVC_XYZZY", "remove it"),
    ],
)
def test_unknown_names_of_the_service_s_prefix_are_refused(tmp_path, name, hint):
    """A typing error never passes as the default."""
    problem = only_problem(production(tmp_path, **{name: "some-value"}))

    assert problem.name == name
    assert hint in problem.message
    assert "some-value" not in problem.message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SESSION_IDLE_TLL", "SESSION_IDLE_TTL"),
        ("RATE_LIMIT_LOGIN_ACOUNT", "RATE_LIMIT_LOGIN_ACCOUNT"),
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("BCRYPT_COSTS", "BCRYPT_COST"),
        ("BCRYPT_ROUNDS", None),
        ("CACHE_CB_TRESHOLD", "CACHE_CB_FAILURE_THRESHOLD"),
        ("SESSION_TTL", "SESSION_MAX_TTL"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("TOKEN_SECRETS", "TOKEN_SECRET"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("LGO_LEVEL", "LOG_LEVEL"),
        ("METRIC_PORT", "METRICS_PORT"),
        ("SESION_MAX_TTL", "SESSION_MAX_TTL"),
    ],
)
def test_a_slip_of_a_setting_s_name_is_refused(tmp_path, name, meant):
    """It would leave the default in force; the message names what was meant, and never the value."""
    problem = only_problem(production(tmp_path, **{name: "some-value"}))

    assert problem.name == name
    assert "is unknown" in problem.message
    assert meant is None or problem.message.endswith(f"did you mean {meant}?")
    assert "some-value" not in problem.message


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES.values() if len(variable.name) > 7])
def test_every_setting_is_recognised_with_one_letter_missing(tmp_path, name):
    """Whichever setting it is: a slip never passes in silence."""
    slip = name[:-2] + name[-1]

    found = problems(production(tmp_path, **{slip: "x", name: None}))

    assert f"{slip} is unknown; did you mean {name}?" in map(str, found)


@pytest.mark.parametrize(
    "name",
    [
        # Kubernetes writes these for Services named redis, session-store and cache.
        *("REDIS_SERVICE_HOST", "REDIS_SERVICE_PORT", "REDIS_SERVICE_PORT_REDIS", "REDIS_PORT_6379_TCP"),
        *("REDIS_PORT_6379_TCP_ADDR", "SESSION_STORE_SERVICE_HOST", "CACHE_PORT_11211_TCP_PROTO"),
        # Of libpq, Python, OpenTelemetry, Prometheus, shells, images, and of other programs.
        *(
            "PGHOST",
            "PGPASSWORD",
            "PGSSLROOTCERT",
            "PYTHONUNBUFFERED",
            "PYTHONPATH",
        ),
        *(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_TRACES_SAMPLER",
            "HOSTNAME",
            "LOGNAME",
            "LANGUAGE",
            "PORTS",
            "HOSTS",
        ),
        *(
            "SESSION_MANAGER",
            "AUTHSVC_BIN",
            "POSTGRES_PASSWORD",
            "KUBERNETES_SERVICE_HOST",
            "KUBERNETES_PORT",
        ),
        *("TEST_DATABASE_URL", "TEST_REDIS_URL", "DATABASE_URL_REPORTS", "DATABASE_USER", "DATABASE_HOST"),
        *("APP_LOG_LEVEL", "DB_LOG_LEVEL", "API_KEY", "API_URL", "GPG_KEY", "LC_ALL", "SSL_CERT_FILE"),
    ],
)
def test_other_programs_names_are_nobody_s_business(tmp_path, name):
    """No problem, and no warning in each log."""
    assert read(tmp_path, **{name: "tcp://10.0.0.1:1"}).warnings == ()


@pytest.mark.parametrize(
    "name", ["REDIS_POOL_SIZE", "JWT_PRIVATE_KEY", "SESSION_COOKIE_NAME", "PASSWORD_STORE_DIR"]
)
def test_a_name_that_others_may_have_is_a_warning(tmp_path, name):
    """A ConfigMap may serve several programs; whoever meant the service hears of it."""
    assert read(tmp_path, **{name: "x"}).warnings == (
        f"{name} is no setting of the service, and has no effect on it",
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [("DATABASE_URI", "DATABASE_URL"), ("JWT_ISSUER_FILE", "JWT_ISSUER"), ("REDIS_HOSTNAME", "REDIS_HOST")],
)
def test_a_name_like_a_setting_is_a_warning_where_that_setting_is_there(tmp_path, name, meant):
    """It may be another program's, and the operator has a way to keep both."""
    ignored = f"{name} is no setting of the service, and has no effect on it; {meant} is set"

    assert read(tmp_path, **{name: "x"}).warnings == (ignored,)


def test_a_setting_from_a_file_is_there_too(tmp_path):
    """Whichever name it came by."""
    secret = tmp_path / "url"
    secret.write_text("postgresql://authsvc@db.internal/authsvc")

    settings = read(tmp_path, DATABASE_URL=None, DATABASE_URL_FILE=str(secret), DATABASE_URI="x")

    assert settings.warnings[0].startswith("DATABASE_URI is no setting")


def test_a_slip_under_a_prefix_of_the_service_is_refused_beside_the_setting(tmp_path):
    """A base sets it, and an overlay misses it: the base's value would stay in force."""
    found = only_problem(production(tmp_path, SESSION_IDLE_TTL="600", SESSION_IDLE_TLL="60"))

    assert str(found) == "SESSION_IDLE_TLL is unknown; did you mean SESSION_IDLE_TTL?"


@pytest.mark.parametrize(
    ("changes", "name", "other"),
    [
        ({"REDIS_HOST": None, "REDIS_URL": "redis://h", "REDIS_PORT": "6379"}, "REDIS_URL", "REDIS_PORT"),
        (
            {"REDIS_HOST": None, "REDIS_URL": "redis://h", "REDIS_USERNAME": "u"},
            "REDIS_URL",
            "REDIS_USERNAME",
        ),
        (
            {"REDIS_HOST": None, "REDIS_URL": "redis://h", "REDIS_PASSWORD": "p"},
            "REDIS_URL",
            "REDIS_PASSWORD",
        ),
        ({"REDIS_HOST": None, "REDIS_URL": "redis://h", "REDIS_DB": "0"}, "REDIS_URL", "REDIS_DB"),
        ({"REDIS_HOST": None, "REDIS_URL": "redis://h", "REDIS_TLS": "false"}, "REDIS_URL", "REDIS_TLS"),
        ({"REDIS_URL": "redis://h"}, "REDIS_URL", "REDIS_HOST"),
        ({"PORT": "9464"}, "METRICS_PORT", "PORT"),
        ({"METRICS_PORT": "8080"}, "METRICS_PORT", "PORT"),
        ({"SESSION_IDLE_TTL": "2592001"}, "SESSION_IDLE_TTL", "SESSION_MAX_TTL"),
        ({"REDIS_AUTH_TOKEN_TTL": "2592001"}, "REDIS_AUTH_TOKEN_TTL", "SESSION_MAX_TTL"),
        ({"REDIS_SENTINEL_SERVICE": "main"}, "REDIS_SENTINEL_SERVICE", "REDIS_SENTINELS"),
        ({"REDIS_SENTINEL_PASSWORD": "p"}, "REDIS_SENTINEL_PASSWORD", "REDIS_SENTINELS"),
        ({"REDIS_SENTINEL_USERNAME": "u"}, "REDIS_SENTINEL_USERNAME", "REDIS_SENTINELS"),
        ({"REDIS_CA_FILE": "/ca.pem"}, "REDIS_CA_FILE", "TLS"),
        ({"REDIS_CLUSTER_ENABLED": "true"}, "REDIS_CLUSTER_ENABLED", "REDIS_CLUSTER_NODES"),
    ],
)
def test_contradictions_name_both_sides(tmp_path, changes, name, other):
    """One of two settings that exclude each other is an accident; which one, only the operator knows."""
    problem = only_problem(production(tmp_path, **changes))

    assert problem.name == name
    assert other in problem.message


@pytest.mark.parametrize(
    ("changes", "name", "other"),
    [
        ({**SENTINEL, "REDIS_SENTINEL_SERVICE": None}, "REDIS_SENTINELS", "REDIS_SENTINEL_SERVICE"),
        ({"REDIS_CLUSTER_NODES": "n:1"}, "REDIS_CLUSTER_ENABLED", "REDIS_CLUSTER_NODES"),
        ({**SENTINEL, **CLUSTER}, "REDIS_SENTINELS", "REDIS_CLUSTER_NODES"),
        ({**SENTINEL, "REDIS_CLUSTER_ENABLED": "on"}, "REDIS_CLUSTER_ENABLED", "REDIS_SENTINELS"),
        ({**CLUSTER, "REDIS_DB": "1"}, "REDIS_CLUSTER_ENABLED", "database number"),
        (
            {"REDIS_CLUSTER_ENABLED": "on", "REDIS_URL": "redis://h/1"},
            "REDIS_CLUSTER_ENABLED",
            "database number",
        ),
        ({**SENTINEL, "REDIS_HOST": "h"}, "REDIS_HOST", "REDIS_SENTINELS"),
        ({**CLUSTER, "REDIS_HOST": "h"}, "REDIS_HOST", "REDIS_CLUSTER_NODES"),
        ({**CLUSTER, "REDIS_URL": "redis://h"}, "REDIS_URL", "REDIS_CLUSTER_NODES"),
    ],
)
def test_contradictions_of_sentinel_and_cluster_name_both_sides(tmp_path, changes, name, other):
    """A host of its own, or a cluster, would leave open which of them is meant."""
    found = problems(production(tmp_path, **{"REDIS_HOST": None, **changes}))

    assert any(problem.name == name and other in problem.message for problem in found), found


def test_sentinels_take_the_place_of_a_host(tmp_path):
    """Nothing else is needed, and nothing is wrong with them."""
    settings = Settings.from_env(production(tmp_path, **{"REDIS_HOST": None, **SENTINEL}))

    assert settings.redis.sentinels
    assert not settings.redis.is_in_memory


def test_a_cluster_takes_the_place_of_a_host(tmp_path):
    """User, password and TLS are those of every node."""
    login = {"REDIS_USERNAME": "authsvc", "REDIS_PASSWORD": "a secret of theirs", "REDIS_TLS": "true"}
    settings = Settings.from_env(production(tmp_path, **{"REDIS_HOST": None, **CLUSTER, **login}))

    assert settings.redis.is_cluster
    assert [(node.host, node.port) for node in settings.redis.cluster_nodes] == [("n1", 6379), ("::1", 6379)]
    assert settings.redis.has_tls
    assert not settings.redis.is_in_memory


def test_production_refuses_what_is_for_development_alone(tmp_path):
    """SQLite, a cheap hash and a key folder that is not there, all named."""
    env = production(tmp_path / "absent", DATABASE_URL="sqlite:///dev.sqlite3", BCRYPT_COST="9")

    assert {problem.name for problem in problems(env)} == {"DATABASE_URL", "BCRYPT_COST", "JWT_KEYS_DIR"}


def test_an_unknown_environment_is_treated_as_production():
    """A typing error in AUTHSVC_ENV must not open the doors of development."""
    names = {problem.name for problem in problems({"AUTHSVC_ENV": "develop"})}

    assert {"AUTHSVC_ENV", "TOKEN_SECRET", "REDIS_URL"} <= names


def test_a_key_folder_that_is_a_file_is_refused_in_development_too(tmp_path):
    """Development makes the folder, and says so when something is in its way."""
    (tmp_path / "file").touch()

    assert only_problem({**DEVELOPMENT, "JWT_KEYS_DIR": str(tmp_path / "file")}).name == "JWT_KEYS_DIR"


def test_the_in_memory_store_is_for_one_process():
    """Two workers would have two blacklists."""
    problem = only_problem({**DEVELOPMENT, "WEB_CONCURRENCY": "2"})

    assert problem.name == "WEB_CONCURRENCY"
    assert "in-memory" in problem.message
