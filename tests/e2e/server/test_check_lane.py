"""The lane for token checks: the same answers as without it, and nobody is starved while others are slow."""

from __future__ import annotations

import re
import select
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

import psutil
import pytest
from redis import Redis

from tests import times
from tests.api.second_factors import FACTORS
from tests.e2e.estate import ROOT, create_root, running
from tests.e2e.server.raw_checks import Checks, Pieces, cut_at
from tests.processes import HOST, resume_tree, suspend_tree
from tests.rig import HOPELESS_S, Service, environment, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COUNT = times("LANE_REQUESTS", 1400)
SEED = times("LANE_SEED", 1)
CLIENTS = 8
#: Checks of one round; fewer than go into one read.
MANY = 40
#: What differs between two answers to the same bytes: the second, and ids that the service made up.
_OWN = re.compile(
    rb"(?<=\r\nDate: )[^\r\n]+|(?<=X-Request-Id: )[0-9a-f]{32}|(?<=\"request_id\": \")[0-9a-f]{32}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return where keys and logs are."""
    made: Path = tmp_path_factory.mktemp("lane")
    return made


@pytest.fixture(scope="module")
def env(postgres_server, redis_server, folder) -> dict[str, str]:
    """One worker, so that it is the same that answers; with second factors, so that tokens say levels."""
    url = postgres_server.create_database()
    settings = {"CACHE_KEY_PREFIX": "lane", "WEB_CONCURRENCY": "1", "MACHINES": "on"}
    made = environment(url, redis_server.url, folder, **settings, **FACTORS)
    migrate(made)
    create_root(made, folder)
    return made


@pytest.fixture(scope="module")
def lane(env, folder) -> Iterator[Service]:
    """A service with the lane, which is the default."""
    with running(env, folder) as service:
        yield service


@pytest.fixture(scope="module")
def ordinary(env, folder, lane) -> Iterator[Service]:
    """A service without it, over the same stores."""
    with running(env | {"CHECK_LANE": "off"}, folder) as service:
        yield service


@pytest.fixture(scope="module")
def machine(lane, ordinary) -> bytes:
    """The token of a service, whose signature both know."""
    admin = lane.log_in(ROOT)["access_token"]
    body = {"name": "orders", "scopes": ["orders:read", "orders/write"]}
    made = lane.call("POST", "/v1/clients", token=admin, json=body).json()
    form, pair = {"grant_type": "client_credentials"}, (made["client_id"], made["client_secret"])
    token = str(lane.call("POST", "/v1/oauth2/token", data=form, auth=pair).json()["access_token"])
    for service in (lane, ordinary):
        assert service.call("GET", "/v1/auth/verify-machine", token=token).status_code == 200
    return token.encode()


@pytest.fixture(scope="module")
def tokens(lane, ordinary, machine) -> tuple[bytes, ...]:
    """Of an admin, a user, a service, somebody who logged out, and none; both know the signatures."""
    lane.register("ada@example.com")
    pairs = [lane.log_in(email)["access_token"] for email in (ROOT, "ada@example.com", "ada@example.com")]
    for service in (lane, ordinary):
        assert [service.verify(token) for token in pairs] == [200, 200, 200]
    assert lane.call("POST", "/v1/auth/logout", token=pairs[2]).status_code == 204
    admin, user, gone = (token.encode() for token in pairs)
    return admin, user, machine, gone, admin[:-4]


def answers_to(port: int, pieces: Pieces) -> bytes:
    """All that comes back to a client that sends *pieces* and nothing more."""
    with socket.create_connection((HOST, port), timeout=HOPELESS_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = bytearray()
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                received += data
        except ConnectionError:  # it refused, and hung up before all was sent
            received += b"<reset>"
    return _OWN.sub(b"*", bytes(received))


def compare(lane: Service, ordinary: Service, requests: Iterator[Pieces]) -> Counter[str]:
    """Ask both, several clients at once; the first lines of their answers, counted."""

    def ask(pieces: Pieces) -> str:
        fast, slow = (answers_to(service.port, pieces) for service in (lane, ordinary))
        assert fast == slow, (pieces, fast, slow)
        return fast.partition(b"\r\n")[0].decode()

    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(clients.map(ask, requests))


def test_both_ways_give_the_same_answer_to_the_same_bytes(lane, ordinary, tokens):
    """Status, header and body, to checks of every kind: sane, odd, malformed, pipelined, cut, smuggling."""
    checks = Checks(Random(SEED), tokens)

    seen = compare(lane, ordinary, checks.generate(COUNT))

    print(f"the same answers to the same bytes: {dict(seen)}")  # noqa: T201 - for long runs
    assert seen["HTTP/1.1 200 OK"] > COUNT / 7
    assert seen["HTTP/1.1 401 Unauthorized"] > COUNT / 20
    assert seen["HTTP/1.1 400 Bad Request"] > COUNT / 20


def test_a_check_cut_at_any_byte_has_the_same_answer(lane, ordinary, tokens):
    """It may come in two packets wherever the network pleases."""
    line = b"GET /v1/auth/verify?role=user HTTP/1.1\r\n"
    whole = b"%bHost: x\r\nX-Request-Id: r-1\r\nAuthorization: Bearer %b\r\n\r\n" % (line, tokens[0])
    places = (at / len(whole) for at in range(1, len(whole), max(1, 1400 // COUNT)))

    seen = compare(lane, ordinary, (cut_at(whole, place) for place in places))

    assert seen.keys() == {"HTTP/1.1 200 OK"}


def reads(redis_url: str) -> int:
    """How many MGETs the server has seen."""
    with Redis.from_url(redis_url) as redis:
        stats: dict[str, dict[str, int]] = redis.info("commandstats")
    return stats["cmdstat_mget"]["calls"]


@pytest.mark.parametrize(
    ("target", "whose"),
    [
        (b"", 0),
        (b"?acr=aal1&max_age=99999", 0),
        (b"-machine?scope=orders:read&scope=orders/write", 2),
        (b"-any?role=admin&scope=orders:read", 2),
        (b"-any?role=admin&scope=orders:read", 0),
    ],
    ids=["plain", "level", "machine", "any, of a machine", "any, of a person"],
)
def test_all_checks_of_a_round_are_one_read(lane, tokens, redis_server, target, whose):
    """They wait for one MGET, not for one each, whatever they ask for and on whichever path."""
    line = b"GET /v1/auth/verify%b HTTP/1.1\r\n" % target
    request = b"%bHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % (line, tokens[whose])
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((HOST, lane.port))) for _ in range(MANY)]
        for client in clients:  # each is known to the worker, and its request is the only one under way
            client.sendall(request)
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        worker = psutil.Process(lane.workers()[0])
        suspend_tree(worker)
        for client in clients:
            client.sendall(request)
        before = reads(redis_server.url)
        resume_tree(worker)
        answers = [client.recv(65_536) for client in clients]
        after = reads(redis_server.url)

    assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)
    assert 1 <= after - before < MANY / 2  # one, and those of the comparisons that came in between


LOGIN = (
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)


def test_checks_do_not_wait_for_threads(private_postgres, redis_server, tmp_path):
    """More logins than there are threads hang in SQL; a check that comes behind them is answered first."""
    env = environment(
        private_postgres.create_database(),
        redis_server.url,
        tmp_path,
        CACHE_KEY_PREFIX="threads",
        WEB_CONCURRENCY="1",
    )
    migrate(env)
    with running(env, tmp_path) as service, ExitStack() as stack:
        service.register("ada@example.com")
        token = service.log_in("ada@example.com")["access_token"].encode()
        check = b"GET /v1/auth/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % token
        clients = [stack.enter_context(socket.create_connection((HOST, service.port))) for _ in range(MANY)]
        for _ in range(2):  # the first makes its signature known
            clients[0].sendall(check)
            assert clients[0].recv(65_536).startswith(b"HTTP/1.1 200 OK")
        body = b'{"email": "ada@example.com", "password": "wrong wrong wrong"}'
        private_postgres.pause()
        stack.callback(private_postgres.resume)
        for client in clients[1:]:
            client.sendall(LOGIN % (len(body), body))
        clients[0].sendall(check)

        first, _, _ = select.select(clients, [], [], HOPELESS_S)

        assert first == clients[:1]
        assert clients[0].recv(65_536).startswith(b"HTTP/1.1 200 OK")
