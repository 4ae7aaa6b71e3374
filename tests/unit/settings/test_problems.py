"""Settings that are refused one by one, all of them at once."""

from __future__ import annotations

import re

import pytest

from authsvc.settings import (
    VARIABLES,
    Settings,
)
from tests.unit.settings.env import (
    only_problem,
    problems,
    production,
)

REQUIRED = {each.name for each in VARIABLES.values() if each.is_required}
NOT_WHOLE = ["-1", "+5", " 10 ", "1_000", "٣", "07", "1e3", "0x10", "3.0", "999999999999999999999", "many"]
#: Bounds by name, as the documentation says them; production's are narrower.
WHOLE_NUMBERS = {
    name: (int(low), int(high))
    for name, each in VARIABLES.items()
    for low, high in re.findall(r"^a whole number from (\d+) to (\d+)$", each.kind.expected)
} | {"BCRYPT_COST": (10, 15), "SESSION_IDLE_TTL": (1, 2_592_000), "REDIS_AUTH_TOKEN_TTL": (1, 2_592_000)}
SWITCHES = [name for name, each in VARIABLES.items() if each.kind.expected.startswith("`true`")]
LIMITS = [name for name, each in VARIABLES.items() if each.kind.expected.startswith("`off`, or attempts")]
NOT_LIMITS = [
    "0/minute",
    "5",
    "5/",
    "/hour",
    "5/0minutes",
    "5/week",
    "-5/hour",
    "5 / hour",
    "5/31days",
    "1000001/hour",
    "05/hour",
    "none",
]
GARBAGE = {
    "AUTHSVC_ENV": ["prod", "dev", "staging"],
    "HOST": ["http://h", "a b", "-h", "[::1", "::g"],
    "ROLES": [
        "Editor",
        "editor,",
        "editor, billing",
        "editor,editor",
        "1st",
        "a" * 33,
        ",".join(f"r{n}" for n in range(33)),
    ],
    "TRUSTED_PROXIES": ["10.0.0.0/33", "10.0.0.1/8", "proxy", "10.0.0.0/8,", "10.0.0.0/255.0.0.0", "*"],
    "CORS_ORIGINS": [
        "*",
        "null",
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://app.example.com:0",
        "https://app.example.com:99999",
        "https://user@app.example.com",
        "https://*.example.com",
        "https://bücher.example",
        "ftp://app.example.com",
        "https://a.example.com https://b.example.com",
        "https://app.example.com,",
    ],
    "LOG_LEVEL": ["trace", "20"],
    "LOG_FORMAT": ["text"],
    "TRACING": ["on", "zipkin"],
    "DATABASE_URL": [
        "postgres://u@h/d",
        "postgresql+psycopg://u@h/d",
        "sqlite+pysqlite:///f",
        "mysql://u@h/d",
        "postgresql://u@h",
        "postgresql://u@h/",
        "postgresql://u@h:x/d",
        "postgresql://u@h:0/d",
        "postgresql://u@h/d#x",
        "postgresql://u:pa%ss@h/d",
        "postgresql://u:pa%00ss@h/d",
        "postgresql://u@h/d?sslmod=require",
        "postgresql://u@h/d?sslmode=always",
        "postgresql://u@h/d?target_session_attrs=primry",
        "postgresql://u@h/d?connect_timeout=30",
        "postgresql://u@h/d?client_encoding=latin1",
        "postgresql://u@h1:1,h2:2,h3/d?port=1,2",
        "postgresql://u@h1:5432,h2:70000/d",
        "postgresql://u@h/d?options=-cstatement_timeout%3D0",
        "postgresql://u@h/d?options=-cclient_encoding%3DLATIN1",
        "postgresql://u@h/d?options=-d%205",
        "postgresql://u@h/d?options=search_path%3Dauth",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "db.internal",
    ],
    "REDIS_HOST": ["redis://h", "h:6379", "a b", "h/0"],
    "REDIS_USERNAME": ["a b", "ü"],
    "CACHE_KEY_PREFIX": ["a:b", "a*", "{a}", "a\n", "x" * 65],
    "CACHE_KEY_VERSION": ["v 1", "v:1"],
    "JWT_ISSUER": [
        "auth.internal",
        "ftp://h",
        "https://",
        "https://h?x=1",
        "https://h#x",
        "https://u:p@h",
        "https://h/ x",
        "//h",
    ],
    "JWT_AUDIENCE": ["a b", "ü", "a\n"],
    "JWT_KEYS_DIR": ["/keys\n"],
    "PROMETHEUS_MULTIPROC_DIR": ["", "metrics", "/metrics\n"],
    "REDIS_CA_FILE": ["ca.pem", "/ca\n"],
    "REDIS_SENTINEL_USERNAME": ["a b", "ü"],
}


def test_the_kinds_are_found_by_what_they_accept():
    """The tests below cover every number, switch and limit; these would be empty if the wording changed."""
    assert WHOLE_NUMBERS["PASSWORD_MIN_LENGTH"] == (8, 256)
    assert len(WHOLE_NUMBERS) > 20
    assert "CACHE_ENABLED" in SWITCHES
    assert "RATE_LIMIT_LOGIN_IP" in LIMITS


def test_an_empty_production_environment_names_everything_it_lacks():
    """All problems at once: nobody starts a service six times to learn six names."""
    found = problems({})

    assert {problem.name for problem in found} == REQUIRED | {"REDIS_URL"}
    assert all("missing" in problem.message and "expected" in problem.message for problem in found)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_each_required_setting_is_missed(tmp_path, name):
    """Production has no default for it."""
    assert only_problem(production(tmp_path, **{name: None})).name == name


def test_production_without_redis_is_refused(tmp_path):
    """There is no fallback in memory outside development."""
    problem = only_problem(production(tmp_path, REDIS_HOST=None))

    assert problem.name == "REDIS_URL"
    assert "REDIS_HOST" in problem.message


@pytest.mark.parametrize("name", [each.name for each in VARIABLES.values() if not each.may_be_empty])
def test_an_empty_value_is_refused(tmp_path, name):
    """An empty value is a template that was not filled in, never a wish for the default."""
    env = production(tmp_path, **{name: ""})

    first = next(problem for problem in problems(env) if problem.name == name)

    assert first.message.startswith("is empty; expected")


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in GARBAGE.items() for text in texts]
)
def test_garbage_is_refused_by_name_with_what_is_expected(tmp_path, name, text):
    """The message says which variable, and what would be right."""
    problem = only_problem(production(tmp_path, **{name: text}))

    assert problem.name == name
    assert "expected" in problem.message
    assert "\n" not in problem.message


@pytest.mark.parametrize("name", sorted(WHOLE_NUMBERS))
def test_numbers_have_inclusive_bounds(tmp_path, name):
    """The bounds themselves are accepted, their neighbours are not."""
    low, high = WHOLE_NUMBERS[name]
    shortest = {"SESSION_IDLE_TTL": "1", "REDIS_AUTH_TOKEN_TTL": "1"}

    Settings.from_env(production(tmp_path, **{**shortest, name: str(low)}))
    Settings.from_env(production(tmp_path, **{**shortest, name: str(high)}))

    assert only_problem(production(tmp_path, **{**shortest, name: str(low - 1)})).name == name
    assert only_problem(production(tmp_path, **{**shortest, name: str(high + 1)})).name == name


def test_every_number_is_strict(tmp_path):
    """One spelling per number, for every variable that is one."""
    for text in NOT_WHOLE:
        env = production(tmp_path, **dict.fromkeys(WHOLE_NUMBERS, text))

        assert {problem.name for problem in problems(env)} == set(WHOLE_NUMBERS), text


def test_every_switch_and_limit_is_strict(tmp_path):
    """Words that mean something to another program mean nothing here."""
    for text in ("yes", "no", "2", "enabled", " true"):
        env = production(tmp_path, **dict.fromkeys(SWITCHES, text))
        assert {problem.name for problem in problems(env)} == set(SWITCHES), text
    for text in NOT_LIMITS:
        env = production(tmp_path, **dict.fromkeys(LIMITS, text))
        assert {problem.name for problem in problems(env)} == set(LIMITS), text


@pytest.mark.parametrize(
    "text", ["host", "h:0", "h:65536", "::1:6379", "[::g]:1", "h:1,", ",", "h:1 h:2", "redis://h:1"]
)
@pytest.mark.parametrize("name", ["REDIS_SENTINELS", "REDIS_CLUSTER_NODES"])
def test_address_lists_are_strict(tmp_path, name, text):
    """Each entry is a host and a port."""
    env = production(tmp_path, **{name: text})

    assert any("no address" in problem.message for problem in problems(env) if problem.name == name)


def test_shown_values_are_cut_and_printable(tmp_path):
    """A log line cannot be forged or flooded by a setting."""
    problem = only_problem(production(tmp_path, LOG_LEVEL="\x1b[31m\nfake: line " + "y" * 500))

    assert "\x1b" not in problem.message
    assert "\n" not in problem.message
    assert len(problem.message) < 120
