"""A service on a cluster that speaks TLS, as a user with no more rights than the documentation names."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.values.shards import CLUSTER_SHARDS
from authsvc.settings import Settings
from authsvc.wiring.preflight import inspect
from tests import ROOT as PROJECT
from tests.e2e.estate import ROOT, create_root, running
from tests.rig import environment, migrate
from tests.servers import drop_database
from tests.servers.certificates import self_signed
from tests.servers.clusters import Cluster, TlsClusterServer, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rig import Service
    from tests.servers.certificates import Certificate

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: What its certificate calls each node, and what each node calls itself.  redis-py puts an address in the
#: place of "localhost", in lower case alone.
NAME = "LOCALHOST"
ANNOUNCED = ("--cluster-announce-hostname", NAME, "--cluster-preferred-endpoint-type", "hostname")
CHECKS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return where certificate, keys and logs are."""
    made: Path = tmp_path_factory.mktemp("secured")
    return made


@pytest.fixture(scope="module")
def certificate(folder) -> Certificate:
    """Make the certificate of all nodes."""
    return self_signed(folder, NAME)


@pytest.fixture(scope="module")
def secured(certificate) -> Iterator[Cluster]:
    """Start a cluster whose user has the rights of docs/scaling.md."""
    with cluster(*ANNOUNCED, make=partial(TlsClusterServer, certificate=certificate)) as nodes:
        for index in range(3):
            nodes.ask(index, "ACL", "SETUSER", "authsvc", "reset", "on", ">hunter2", *documented_rights())
        yield nodes


def documented_rights() -> list[str]:
    """The rules behind the password, as the page has an operator type them."""
    page = (PROJECT / "docs" / "scaling.md").read_text()
    (command,) = re.findall(r"ACL SETUSER authsvc reset on \S+ (.+)", page)
    return shlex.split(command)


@pytest.fixture(scope="module")
def env(postgres_server, secured, certificate, folder) -> Iterator[dict[str, str]]:
    """Settings that name the nodes as their certificate does."""
    url = postgres_server.create_database()
    made = environment(
        url,
        ",".join(f"{NAME}:{port}" for port in tls_ports(secured)),
        folder,
        REDIS_TLS="true",
        REDIS_CA_FILE=str(certificate.public),
        REDIS_USERNAME="authsvc",
        REDIS_PASSWORD="hunter2",
    )
    migrate(made)
    create_root(made, folder)
    yield made
    drop_database(postgres_server.url, url)


def tls_ports(nodes: Cluster) -> list[int]:
    """The ports for clients, in the order of the nodes."""
    return [node.tls_port for node in nodes.nodes if isinstance(node, TlsClusterServer)]


@pytest.fixture(scope="module", params=["on", "off"], ids=["lane", "no lane"])
def service(env, folder, request) -> Iterator[Service]:
    """Start two workers with the lane for checks, and without it."""
    with running({**env, "CHECK_LANE": request.param}, folder) as started:
        yield started


def test_a_token_is_good_until_its_logout_and_refused_at_once(service):
    """By both workers; users of all servers, whose logouts reach Redis before they are answered."""
    emails = [f"user{number}.{service.port}@example.com" for number in range(6)]
    assert {service.register(email).status_code for email in emails} == {201}
    tokens = [service.log_in(email)["access_token"] for email in emails]

    before = statuses(service, tokens)
    logouts = [service.call("POST", "/v1/auth/logout", token=token).status_code for token in tokens]
    after = statuses(service, tokens)

    assert before == {200: 2 * CHECKS * len(emails)}
    assert logouts == [204] * len(emails)
    assert after == {401: 2 * CHECKS * len(emails)}


def statuses(service: Service, tokens: list[str]) -> Counter[int]:
    """What each worker answers to many checks of each token."""
    found: Counter[int] = Counter()
    for token in tokens:
        found += service.verify_everywhere(token, times=CHECKS)
    return found


def test_health_finds_nothing_wrong(service):
    """Every shard is proven, which takes all that the user needs rights for."""
    admin = service.log_in(ROOT)["access_token"]

    ready = service.call("GET", "/v1/health/ready").json()
    health = service.call("GET", "/v1/health").json()
    detailed = service.call("GET", "/v1/health/detailed", token=admin).json()

    assert ready == {"status": "ok", "impaired": []}
    assert (health["status"], health["redis"]) == ("ok", "connected")
    assert detailed["redis_shards"] == {"proven": CLUSTER_SHARDS, "all": CLUSTER_SHARDS}


def test_every_connection_is_encrypted(service, secured):
    """The map leads to the TLS port of each node, also for the lane and the reconciler."""
    assert service.process is not None
    for index, port in enumerate(tls_ports(secured)):
        clients = secured.ask(index, "CLIENT", "LIST").decode().splitlines()
        ours = [dict(word.partition("=")[::2] for word in line.split()) for line in clients]
        used = {one["laddr"].rpartition(":")[2] for one in ours if one["user"] == "authsvc"}
        assert used == {str(port)}


def test_a_start_finds_nothing_wrong(env):
    """What it asks for is what the user may."""
    assert inspect(Settings.from_env(env)).problems == ()


def test_nodes_that_announce_another_name_than_their_certificate_are_named(env, secured):
    """By default they announce addresses: the map is read, and what it names is not trusted."""
    for index in range(3):
        secured.ask(index, "CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
    try:
        (problem,) = inspect(Settings.from_env(env)).problems
    finally:
        for index in range(3):
            secured.ask(index, "CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")

    assert "the certificate of the server is for another name" in str(problem)
    assert "which a node of a cluster must announce" in str(problem)
