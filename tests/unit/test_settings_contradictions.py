"""Settings that are refused together: contradictions, unknown names, production."""

from __future__ import annotations

import pytest

from authsvc.settings import Settings
from tests.unit.settings_env import (
    CLUSTER,
    DEVELOPMENT,
    SENTINEL,
    only_problem,
    problems,
    production,
)


@pytest.mark.parametrize("name", ["REDIS_PORT", "PORT", "METRICS_PORT"])
def test_a_port_from_a_service_link_is_explained(tmp_path, name):
    """Kubernetes writes tcp://… into it; the message says what to do."""
    problem = only_problem(production(tmp_path, **{name: "tcp://10.96.0.12:6379"}))

    assert problem.name == name
    assert "enableServiceLinks: false" in problem.message
    assert "tcp://10.96.0.12:6379" in problem.message


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


def test_a_cluster_is_refused_for_now(tmp_path):
    """Better no start than a connection to the wrong server; nothing else is wrong with it."""
    problem = only_problem(production(tmp_path, **{"REDIS_HOST": None, **CLUSTER}))

    assert problem.name == "REDIS_CLUSTER_NODES"
    assert "not supported by this version yet" in problem.message


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
