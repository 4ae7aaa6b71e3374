"""Production does not start wrong: it exits within 15 s and names everything that is wrong, but no secret."""

from __future__ import annotations

import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from authsvc.settings import VARIABLES, Settings
from authsvc.wiring.preflight import inspect
from tests.processes import HOST, free_port
from tests.rig import environment, migrate, run_command
from tests.servers import RedisServer, drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EXIT_WITHIN_S = 15
#: What a refusal takes that waits for nothing; a machine that is slow beyond that takes nothing away from it.
PLAIN_S = 2


@pytest.fixture(scope="module")
def env(postgres_server, redis_server, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Settings with which the service would start."""
    folder = tmp_path_factory.mktemp("startup")
    settings = environment(postgres_server.create_database(), redis_server.url, folder)
    migrate(settings)
    yield settings | {"PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    drop_database(postgres_server.url, settings["DATABASE_URL"])


def refusal(env: dict[str, str], folder) -> str:
    """What ``authsvc serve`` says when it refuses; it must do so in time."""
    message, took_s = timed_refusal(env, folder)
    assert took_s < EXIT_WITHIN_S
    return message


def timed_refusal(env: dict[str, str], folder) -> tuple[str, float]:
    """The same, and the seconds until it ended."""
    began = time.monotonic()
    done = run_command("serve", env=env, folder=folder)
    took_s = time.monotonic() - began
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr, took_s


def test_nothing_set_names_all_that_is_missing(tmp_path):
    """One run, one message, every variable."""
    message = refusal({}, tmp_path)

    missing = ("DATABASE_URL", "REDIS_HOST", "JWT_ISSUER", "JWT_AUDIENCE", "JWT_KEYS_DIR", "TOKEN_SECRET")
    assert [name for name in (*missing, "PASSWORD_PEPPER") if name not in message] == []
    assert message.startswith("authsvc: 7 problems in the settings:\n")


def test_wrong_values_are_named_together_and_no_secret_is_shown(env, tmp_path):
    """Weak secrets, SQLite, a cheap hash, a typing error and a service link, all in one message."""
    secrets = {"TOKEN_SECRET": "hunter2-short", "PASSWORD_PEPPER": "zz" * 20}
    wrong = {
        "DATABASE_URL": "sqlite:///dev.sqlite3",
        "BCRYPT_COST": "8",
        "AUTHSVC_ENVV": "production",
        "WEB_CONCURRENCY": "none",
        "METRICS_PORT": env["PORT"],
    }

    message = refusal(env | secrets | wrong, tmp_path)

    assert [name for name in (*secrets, *wrong) if name not in message] == []
    assert "SQLite" in message
    assert [secret for secret in secrets.values() if secret in message] == []


def test_a_service_link_for_a_port_is_named_as_what_it_is(env, tmp_path):
    """Kubernetes sets REDIS_PORT=tcp://… in every pod beside a service named redis."""
    parts = {"REDIS_HOST": HOST, "REDIS_PORT": "tcp://10.96.0.11:6379"}

    message = refusal({n: value for n, value in env.items() if n != "REDIS_URL"} | parts, tmp_path)

    assert "REDIS_PORT" in message
    assert "service link" in message


def test_both_stores_unreachable_are_named_together(env, tmp_path):
    """Connection refused on both; neither password is shown."""
    stores = {
        "DATABASE_URL": f"postgresql://authsvc:sql-hunter2@{HOST}:{free_port()}/authsvc",
        "REDIS_URL": f"redis://:redis-hunter2@{HOST}:{free_port()}/0",
    }

    message = refusal(env | stores, tmp_path)

    assert "DATABASE_URL cannot be reached" in message
    assert "REDIS_URL cannot be used" in message
    assert "hunter2" not in message


def test_an_empty_database_names_the_command(env, database_url, tmp_path):
    """The schema is never changed by serving."""
    message = refusal(env | {"DATABASE_URL": database_url}, tmp_path)

    assert "DATABASE_URL" in message
    assert "authsvc db upgrade" in message


def test_an_evicting_redis_and_a_folder_without_keys_are_refused(env, tmp_path):
    """Revocations that Redis may drop and tokens that nobody can sign: both at once."""
    keys = tmp_path / "keys"
    keys.mkdir()

    with RedisServer("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru") as evicting:
        message = refusal(env | {"REDIS_URL": evicting.url, "JWT_KEYS_DIR": str(keys)}, tmp_path)

    assert "allkeys-lru" in message
    assert "noeviction" in message
    assert "authsvc keys generate" in message


def test_an_acl_for_another_prefix_is_refused(env, tmp_path):
    """Else the service would start, and serve everything from SQL without anybody noticing."""
    with RedisServer() as server:
        with Redis.from_url(server.url) as client:
            rules = ["+@all", "-@dangerous", "-@admin", "+info"]
            client.execute_command("ACL", "SETUSER", "narrow", "on", ">hunter2", "~other:*", *rules)
        url = server.url.replace("redis://", "redis://narrow:hunter2@")
        message = refusal(env | {"REDIS_URL": url}, tmp_path)

    assert "REDIS_URL denies its user MGET, or keys under authsvc:v1: see its ACL" in message
    assert "hunter2" not in message


def test_ports_that_are_taken_are_named_at_once(env, tmp_path):
    """Before anything is started; another service's own words would come five seconds later."""
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        ports = {"PORT": str(one.getsockname()[1]), "METRICS_PORT": str(other.getsockname()[1])}

        message = refusal(env | ports, tmp_path)

    for name, port in ports.items():
        assert f"\n  {name} {port} is taken: another process listens there" in message


def test_a_host_of_another_machine_is_named(env, tmp_path):
    """The address is one of the documentation's."""
    message = refusal(env | {"HOST": "192.0.2.7"}, tmp_path)

    assert f"PORT {env['PORT']} cannot be listened on at HOST" in message


def test_a_file_that_is_no_key_is_refused_by_name(env, tmp_path):
    """Half a key ring is no key ring; what is in the file is not shown."""
    keys = tmp_path / "keys"
    shutil.copytree(env["JWT_KEYS_DIR"], keys)
    (keys / "broken.pem").write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n")

    message = refusal(env | {"JWT_KEYS_DIR": str(keys)}, tmp_path)

    assert "broken.pem" in message
    assert "hunter2" not in message


def test_a_wrong_redis_password_and_hung_stores_are_refused_in_time(env, tmp_path):
    """NOAUTH is an answer, silence is none; with both stores silent the refusal still comes in time."""
    with (
        RedisServer(password="redis-hunter2") as locked,
        RedisServer() as silent,
        ThreadPoolExecutor(2) as pool,
    ):
        silent.pause()
        hung = {"REDIS_URL": silent.url, "DATABASE_URL": f"postgresql://u@{HOST}:{silent.port}/db"}
        settings = [env | {"REDIS_URL": locked.url.replace("hunter2", "wrong")}, env | hung]
        timed = pool.map(lambda each: timed_refusal(each, tmp_path), settings)
        (refused, plain_s), (in_silence, took_s) = timed
        silent.resume()

    # Beside each other, on the same machine.
    assert took_s - plain_s < EXIT_WITHIN_S - PLAIN_S
    assert "REDIS_URL cannot be used" in refused
    assert "wrong" not in refused
    assert "REDIS_URL cannot be used" in in_silence
    assert "DATABASE_URL cannot be reached" in in_silence


def test_every_setting_wrong_at_once_is_one_message(env, tmp_path):
    """What a template that nobody filled in looks like: each variable by name, no secret, in time."""
    secrets = {variable.name for variable in VARIABLES.values() if variable.kind.is_secret}
    garbage = {variable.name: "{{ hunter2 }} " for variable in VARIABLES.values()}

    message = refusal(env | garbage, tmp_path)

    named = {variable.name for variable in VARIABLES.values() if f"\n  {variable.name} " in message}
    assert named | secrets == garbage.keys()
    assert {"DATABASE_URL", "REDIS_URL", "TOKEN_SECRET", "PASSWORD_PEPPER"} <= named
    assert not [line for line in message.splitlines() if "hunter2" in line and line.split()[0] in secrets]


def test_development_without_redis_serves_with_one_process_alone(env, tmp_path):
    """Two workers would not know what the other one revoked."""
    alone = {name: value for name, value in env.items() if name != "REDIS_URL"}

    message = refusal(alone | {"AUTHSVC_ENV": "development", "WEB_CONCURRENCY": "2"}, tmp_path)

    assert "WEB_CONCURRENCY contradicts the in-memory store" in message


def test_every_policy_that_evicts_is_refused_by_its_name(env):
    """Also those that take only keys with an end: all of ours have one."""
    policies = [f"{keys}-{how}" for keys in ("allkeys", "volatile") for how in ("lru", "lfu", "random")]
    with RedisServer() as server, Redis.from_url(server.url) as client:
        settings = Settings.from_env(env | {"REDIS_URL": server.url})
        assert inspect(settings).problems == ()
        for policy in (*policies, "volatile-ttl"):
            client.config_set("maxmemory-policy", policy)

            (problem,) = inspect(settings).problems

            assert (problem.name, policy in problem.message) == ("REDIS_URL", True)
