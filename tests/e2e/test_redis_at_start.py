"""Whatever is wrong with Redis is named at the start in one line that says what to do, without a secret."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from authsvc.settings import Settings
from authsvc.wiring import build
from authsvc.wiring.preflight import inspect
from tests.processes import HOST, free_port
from tests.rig import environment, migrate
from tests.servers import RedisServer, drop_database
from tests.servers.certificates import self_signed
from tests.servers.clusters import SERVICE, ClusterServer, SentinelServer, TlsFront, cluster
from tests.servers.proxy import Mode, Rule, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.clusters import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def env(postgres_server, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Settings of a service that lacks Redis alone."""
    folder = tmp_path_factory.mktemp("startup")
    settings = environment(postgres_server.create_database(), "redis://unset", folder)
    migrate(settings)
    yield {name: value for name, value in settings.items() if name != "REDIS_URL"}
    drop_database(postgres_server.url, settings["DATABASE_URL"])


def named(env: dict[str, str], **redis: str) -> str:
    """The one problem that the start names, as it is printed."""
    (problem,) = inspect(Settings.from_env(env | redis)).problems
    message = str(problem)
    assert "hunter2" not in message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def plain() -> Iterator[RedisServer]:
    """A Redis that nothing is wrong with."""
    with RedisServer() as server:
        yield server


def test_nothing_wrong_is_no_problem(env, plain):
    """What is asked of it leaves no key behind."""
    assert inspect(Settings.from_env(env | {"REDIS_URL": plain.url})).problems == ()
    with Redis.from_url(plain.url) as client:
        assert client.keys("*preflight*") == []


def test_data_of_another_installation_are_refused(env, plain, postgres_server):
    """A staging service with production's Redis and prefix; one with a prefix of its own is welcome."""
    theirs = environment(postgres_server.create_database(), plain.url, Path(env["JWT_KEYS_DIR"]).parent)
    migrate(theirs)
    services = build(Settings.from_env(theirs))
    services.compare()
    services.close()

    message = named(env, REDIS_URL=plain.url)
    own_prefix = Settings.from_env(env | {"REDIS_URL": plain.url, "CACHE_KEY_PREFIX": "staging"})

    assert message.startswith("REDIS_URL holds the data of another installation under this prefix")
    assert "authsvc:v1:auth:installation" in message
    assert inspect(own_prefix).problems == ()
    assert inspect(Settings.from_env(theirs)).problems == ()
    with Redis.from_url(plain.url) as client:
        client.flushall()
    drop_database(postgres_server.url, theirs["DATABASE_URL"])


def test_a_closed_port_and_an_unknown_host_are_told_apart(env):
    """The first is about a server, the second about a name."""
    closed = named(env, REDIS_URL=f"redis://:hunter2@{HOST}:{free_port()}/0")
    unknown = named(env, REDIS_HOST="redis.invalid", REDIS_PASSWORD="hunter2")

    assert closed.startswith("REDIS_URL cannot be used: the connection is refused or closed; check host")
    assert unknown.startswith("REDIS_HOST cannot be used: its host name leads nowhere; check the spelling")


def test_a_wrong_password_and_none_are_refused_logins(env):
    """Neither is an outage."""
    with RedisServer(password="hunter2") as locked:
        wrong = named(env, REDIS_URL=locked.url.replace("hunter2", "hunter22"))
        none = named(env, REDIS_URL=locked.url.replace(":hunter2@", ""))
        old = named(env, REDIS_URL=locked.url.replace(":hunter2@", ""), REDIS_PROTOCOL="2")

    assert {wrong, none, old} == {
        "REDIS_URL cannot be used: the server refuses the login; check user and password"
    }


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ("+@all -mget", "denies its user MGET, or keys under authsvc:v1: see its ACL"),
        ("+@all -@scripting", "denies its user a script, or keys under authsvc:v1: see its ACL"),
        ("+@all -exists", "denies its user EXISTS, or keys under authsvc:v1: see its ACL"),
        ("+@all -zadd", "denies its user a script, or keys under authsvc:v1: see its ACL"),
    ],
)
def test_a_missing_right_is_named_by_its_command(env, plain, rules, what):
    """The operator finds it in the ACL by that word."""
    with Redis.from_url(plain.url) as client:
        client.execute_command(
            "ACL", "SETUSER", "narrow", "reset", "on", ">hunter2", "~authsvc:*", *rules.split()
        )

    assert named(env, REDIS_URL=plain.url.replace("//", "//narrow:hunter2@")) == f"REDIS_URL {what}"


@pytest.mark.parametrize(
    ("command", "what"),
    [("EVAL", "a script"), ("MGET", "MGET"), ("DEL", "a script"), ("EXISTS", "EXISTS"), ("ZREM", "ZREM")],
)
def test_a_renamed_command_is_named(env, command, what):
    """Some hosts rename what they think dangerous."""
    with RedisServer("--rename-command", command, "") as crippled:
        message = named(env, REDIS_URL=crippled.url)

    assert message.startswith(
        f"REDIS_URL cannot be used: the server does not know {what}, or a command in it"
    )


def test_a_server_without_hello_is_told_the_older_protocol(env):
    """And works with it."""
    with RedisServer("--rename-command", "HELLO", "") as old:
        message = named(env, REDIS_URL=old.url)
        assert inspect(Settings.from_env(env | {"REDIS_URL": old.url, "REDIS_PROTOCOL": "2"})).problems == ()

    assert message.startswith("REDIS_URL cannot be used: the server refuses HELLO")
    assert "REDIS_PROTOCOL=2" in message


def test_a_database_that_is_not_there_is_named(env, plain):
    """Redis has 16."""
    message = named(env, REDIS_URL=plain.url.replace("/0", "/99"))

    assert message == "REDIS_URL cannot be used: the server has no database of that number"


@pytest.mark.parametrize("has_slots", [False, True])
def test_a_node_in_cluster_mode_is_named(env, has_slots):
    """Also one that owns every slot: it refuses two keys in one command."""
    with ClusterServer() as node:
        if has_slots:
            with Redis.from_url(node.url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        message = named(env, REDIS_URL=node.url)

    assert message.startswith("REDIS_URL leads to a node in cluster mode; set REDIS_CLUSTER_ENABLED")


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A cluster that nothing is wrong with."""
    with cluster() as running:
        yield running


NO_MAP = (
    "cannot be used: no node tells who owns the slots; check hosts, ports, network, TLS and login,"
    " that the nodes are in cluster mode,"
)


def of_cluster(nodes: str, **redis: str) -> dict[str, str]:
    """The settings of a cluster."""
    return {"REDIS_CLUSTER_ENABLED": "true", "REDIS_CLUSTER_NODES": nodes, **redis}


def test_nothing_wrong_with_a_cluster_is_no_problem(env, three):
    """Each primary is asked, and no key is left behind."""
    assert inspect(Settings.from_env(env | of_cluster(three.url))).problems == ()
    assert [three.ask(index, "KEYS", "*preflight*") for index in range(3)] == [[], [], []]


def test_a_primary_that_evicts_is_named(env, three):
    """Also where the others do not."""
    three.ask(2, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    message = named(env, **of_cluster(three.url))
    three.ask(2, "CONFIG", "SET", "maxmemory-policy", "noeviction")

    assert message.startswith("REDIS_CLUSTER_NODES evicts keys (maxmemory-policy allkeys-lru)")


def test_a_cluster_needs_to_be_one(env, plain, three):
    """A single server tells no map; neither does one that is not there, nor one that knows no such user."""
    alone = named(env, **of_cluster(f"{plain.host}:{plain.port}"))
    absent = named(env, **of_cluster(f"{HOST}:{free_port()}"))
    unknown = named(env, **of_cluster(three.url, REDIS_USERNAME="nobody", REDIS_PASSWORD="hunter2"))

    for message in (alone, absent, unknown):
        assert message.startswith(f"REDIS_CLUSTER_NODES {NO_MAP}")


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("-info", "denies its user INFO, or keys under authsvc:v1: see its ACL"),
        ("-asking", "denies its user ASKING, or keys under authsvc:v1: see its ACL"),
        ("-cluster|slots", f"{NO_MAP} and that the ACL of the user allows CLUSTER SLOTS"),
    ],
)
def test_a_right_that_only_a_cluster_needs_is_named(env, three, rule, what):
    """To see that a server changed its role, to follow a slot that moves, to read the map."""
    for index in range(3):
        three.ask(index, "ACL", "SETUSER", "narrow", "reset", "on", ">hunter2", "~authsvc:*", "+@all", rule)

    message = named(env, **of_cluster(three.url, REDIS_USERNAME="narrow", REDIS_PASSWORD="hunter2"))

    assert message == f"REDIS_CLUSTER_NODES {what}"


def test_data_in_another_number_of_shards_are_refused(env, three):
    """A version that divides them otherwise would not find what is revoked."""
    services = build(Settings.from_env(env | of_cluster(three.url)))
    assert services.compare()
    services.close()
    assert inspect(Settings.from_env(env | of_cluster(three.url))).problems == ()
    key, index = three.ask(1, "KEYS", "*:auth:installation")[0], 1
    noted = three.ask(index, "GET", key)
    assert noted.endswith(b"/64")
    three.ask(index, "SET", key, noted.replace(b"/64", b"/32"))

    message = named(env, **of_cluster(three.url))

    three.ask(index, "DEL", key)
    assert message.startswith("REDIS_CLUSTER_NODES holds data that a version with another number of shards")


@pytest.mark.parametrize(
    "answer", ["-ERR max daily request limit exceeded. Limit: 10000\r\n", "-ERR no upstream host\r\n"]
)
def test_an_answer_that_redis_does_not_have_is_shown(env, plain, answer):
    """A hosted service over its quota, a proxy without a server behind it."""
    with TcpProxy(plain.url) as proxy:
        url = proxy.url_for(plain.url)
        proxy.switch(Rule(mode=Mode.ANSWER, answer=answer.encode(), request=b"MGET"))
        shown = named(env, REDIS_URL=url)
        proxy.switch(Rule(mode=Mode.ANSWER, answer=answer.encode()))
        from_hello = named(env, REDIS_URL=url)

    assert shown.startswith(f'REDIS_URL cannot be used: MGET is answered with "{answer[5:21]}')
    assert from_hello.startswith("REDIS_URL cannot be used: the server refuses HELLO")


def test_what_is_no_redis_is_no_traceback(env, plain):
    """A port of something else, and a reply to HELLO that is none."""
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"*0\r\n"):
        with TcpProxy(plain.url) as proxy:
            proxy.switch(Rule(mode=Mode.ANSWER, answer=answer))
            message = named(env, REDIS_URL=proxy.url_for(plain.url))
        assert message.startswith("REDIS_URL cannot be used: ")


def test_faults_of_tls_are_told_apart(env, plain, tmp_path):
    """No TLS there; an unknown CA, which REDIS_CA_FILE mends; another name; a certificate that is over."""
    ours, other, over = (
        self_signed(tmp_path, "localhost"), self_signed(tmp_path, "elsewhere"),
        self_signed(tmp_path, "localhost", days=-1),
    )  # fmt: skip

    def message(files: tuple[Path, Path], **more: str) -> str:
        with TlsFront(plain, *files) as front:
            return named(env, REDIS_URL=f"rediss://localhost:{front.port}/0", **more)

    with TlsFront(plain, *ours) as front:
        trusting = env | {"REDIS_URL": f"rediss://localhost:{front.port}/0", "REDIS_CA_FILE": str(ours[0])}
        assert inspect(Settings.from_env(trusting)).problems == ()
        to_tls = named(env, REDIS_URL=f"redis://{HOST}:{front.port}/0")

    assert "is not trusted (self-signed certificate); name its CA in REDIS_CA_FILE" in message(ours)
    assert "certificate of the server is for another name" in message(other, REDIS_CA_FILE=str(other[0]))
    assert "certificate of the server has expired" in message(over, REDIS_CA_FILE=str(over[0]))
    assert "TLS" in named(env, REDIS_URL=plain.url.replace("redis:", "rediss:"))
    assert "whether the server expects TLS" in to_tls


def test_a_file_without_a_certificate_is_named(env, tmp_path):
    """Before anything is connected to."""
    empty = tmp_path / "empty.pem"
    empty.write_text("hunter2")
    url = {"REDIS_URL": f"rediss://{HOST}:{free_port()}/0"}

    assert named(env, **url, REDIS_CA_FILE=str(empty)) == (
        "REDIS_CA_FILE names a file that holds no certificate in PEM format"
    )
    assert named(env, **url, REDIS_CA_FILE=str(tmp_path / "none.pem")) == (
        "REDIS_CA_FILE names a file that cannot be read (No such file or directory)"
    )


def test_sentinels_are_told_apart_from_the_server(env, plain):
    """Their user, their password, the name of the primary; with all three right there is no problem."""
    with SentinelServer(plain) as sentinel:
        with Redis.from_url(sentinel.url) as client:
            rules = ("on", ">hunter2", "allchannels", "+@all")
            client.execute_command("ACL", "SETUSER", "watcher", *rules)
            client.execute_command("ACL", "SETUSER", "blind", *rules, "-sentinel")
            client.execute_command("ACL", "SETUSER", "default", "off")
        at = {
            "REDIS_SENTINELS": f"{sentinel.host}:{sentinel.port}",
            "REDIS_SENTINEL_SERVICE": SERVICE,
            "REDIS_SENTINEL_USERNAME": "watcher",
            "REDIS_SENTINEL_PASSWORD": "hunter2",
        }
        assert inspect(Settings.from_env(env | at)).problems == ()
        wrong = named(env, **at | {"REDIS_SENTINEL_PASSWORD": "hunter22"})
        blind = named(env, **at | {"REDIS_SENTINEL_USERNAME": "blind"})
        nobody = named(env, **at | {"REDIS_SENTINEL_SERVICE": "other"})
    gone = named(env, **at)

    assert wrong == blind
    assert "check REDIS_SENTINEL_USERNAME, REDIS_SENTINEL_PASSWORD and their ACL" in wrong
    assert nobody == "REDIS_SENTINELS name no primary for REDIS_SENTINEL_SERVICE other: check that name"
    assert gone.startswith("REDIS_SENTINELS cannot be used: the connection is refused or closed")
