"""The lane for token checks: the same answers as without it, and nobody is starved while others are slow."""

from __future__ import annotations

import json
import re
import select
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import psutil
import pytest
import requests
from redis import Redis
from requests import Session

from tests import times
from tests.api.second_factors import FACTORS
from tests.e2e.estate import ROOT, create_root, running
from tests.e2e.server.raw_checks import Checks, Pieces, cut_at
from tests.processes import HOST, resume_tree, suspend_tree, wait_until
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
_numbers = count(1)
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
    origins = {"CORS_ORIGINS": "https://app.example.com"}
    settings = {"CACHE_KEY_PREFIX": "lane", "WEB_CONCURRENCY": "1", "MACHINES": "on", **origins}
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
        (b"/auth/verify", 0),
        (b"/auth/verify?acr=aal1&max_age=99999", 0),
        (b"/auth/verify-machine?scope=orders:read&scope=orders/write", 2),
        (b"/auth/verify-any?role=admin&scope=orders:read", 2),
        (b"/auth/verify-any?role=admin&scope=orders:read", 0),
        (b"/me", 1),
    ],
    ids=["plain", "level", "machine", "any, of a machine", "any, of a person", "profile"],
)
def test_all_requests_of_a_round_are_one_read(lane, tokens, redis_server, target, whose):
    """They wait for one MGET, not for one each, whatever they ask for and on whichever path."""
    line = b"GET /v1%b HTTP/1.1\r\n" % target
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


@pytest.fixture
def eve(lane) -> Iterator[Session]:
    """The token of somebody who is logged in, in a session of HTTP; the worker knows its signature."""
    email = f"eve-{next(_numbers)}@example.com"
    lane.register(email)
    with Session() as session:
        session.headers["Authorization"] = f"Bearer {lane.log_in(email)['access_token']}"
        assert session.get(f"{lane.url}/v1/auth/verify").status_code == 200
        yield session


def test_a_profile_is_current(lane, eve):
    """Each read shows the change that was acknowledged before it, from a thread or from the lane."""
    for number in range(20):
        changed = eve.patch(f"{lane.url}/v1/me", json={"name": f"Eve {number}"})
        shown = [eve.get(f"{lane.url}/v1/me").json() for _ in range(3)]

        assert shown == [changed.json()] * 3
    assert eve.post(f"{lane.url}/v1/auth/logout").status_code == 204
    assert eve.get(f"{lane.url}/v1/me").status_code == 401


@pytest.mark.parametrize("letters", [0, 3000, 5000, 16_000])
def test_a_profile_of_any_size_is_read(lane, ordinary, eve, letters):
    """Large ones are left to threads; the answer is the same."""
    preferences = {"text": "x" * letters, "odd": "\U0001f600\u00e9\u2028</script>"}
    assert eve.put(f"{lane.url}/v1/me/preferences", json=preferences).status_code == 200

    bodies = {eve.get(f"{service.url}/v1/me").content for service in (lane, ordinary) for _ in range(3)}

    assert [json.loads(body)["preferences"] for body in bodies] == [preferences]


def test_profiles_are_logged_and_counted(lane, eve, redis_server):
    """One line and one count each, whoever answers; most of them are answered by the lane."""

    def counts() -> dict[str, float]:
        lines = requests.get(lane.metrics_url, timeout=HOPELESS_S).text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    for _ in range(3):
        eve.get(f"{lane.url}/v1/me")
    before = counts()
    answers = [eve.get(f"{lane.url}/v1/me", headers={"X-Request-Id": f"me-{n}"}) for n in range(MANY)]
    after = counts()

    assert [answer.headers["X-Request-Id"] for answer in answers] == [f"me-{n}" for n in range(MANY)]
    for name in (
        'flask_http_request_total{method="GET",status="200"}',
        'flask_http_request_duration_seconds_count{method="GET",status="200",url_rule="/v1/me"}',
        'authsvc_token_checks_total{result="active",source="redis"}',
    ):
        assert after[name] - before[name] == MANY, name
    wait_until(lambda: lane.log.read_text().count('"request_id":"me-') == MANY, what="a line for each")
    line = next(line for line in lane.log.read_text().splitlines() if '"request_id":"me-7"' in line)
    logged = json.loads(line)
    assert (logged["event"], logged["method"], logged["route"], logged["status"]) == (
        "request.answered",
        "GET",
        "/v1/me",
        200,
    )
