"""Refreshes and logouts in groups: the same answers as one by one, and one is not held up by another."""

from __future__ import annotations

import json
import re
import select
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from redis import Redis

from tests import times
from tests.e2e.estate import create_root, running
from tests.e2e.server.raw_checks import Pieces, cut_at
from tests.e2e.server.test_check_lane import answers_to
from tests.processes import HOST, resume_tree, suspend_tree, wait_until
from tests.rig import Service, environment, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COUNT = times("GROUP_REQUESTS", 600)
SEED = times("GROUP_SEED", 1)
CLIENTS = 8
#: Requests at once: more than one group takes.
MANY = 40
EMAIL = "ada@example.com"
#: A field with which a request is not a plain one any more; it has no meaning here.
ODD = b"TE: trailers\r\n"
_TOKENS = re.compile(rb'(?<="(?:access)_token":")[^"]+|(?<="refresh_expires_in":)[0-9]+')


@pytest.fixture(scope="module")
def service(postgres_server, redis_server, tmp_path_factory) -> Iterator[Service]:
    """Return a service of one worker."""
    folder: Path = tmp_path_factory.mktemp("groups")
    url = postgres_server.create_database()
    settings = {"CACHE_KEY_PREFIX": "groups", "WEB_CONCURRENCY": "1", "SESSION_MAX_PER_USER": "1000"}
    limits = {"RATE_LIMIT_REFRESH": "off", "RATE_LIMIT_LOGIN_ACCOUNT": "off", "REFRESH_GRACE_SECONDS": "3600"}
    env = environment(url, redis_server.url, folder, **settings, **limits)
    migrate(env)
    create_root(env, folder)
    with running(env, folder) as started:
        started.register(EMAIL)
        yield started


def request(path: bytes, body: bytes | None, *fields: bytes) -> bytes:
    """The bytes of one POST request."""
    lines = [b"Host: x", *fields]
    if body is not None:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n%b" % (path, b"\r\n".join(lines), body or b"")


def refresh(token: str, *fields: bytes) -> bytes:
    """Use a refresh token."""
    return request(b"/v1/auth/refresh", json.dumps({"refresh_token": token}).encode(), *fields)


def log_out(token: str, *fields: bytes) -> bytes:
    """End the session of an access token."""
    return request(b"/v1/auth/logout", None, b"Authorization: Bearer " + token.encode(), *fields)


class Requests:
    """Makes requests whose answers do not depend on those before, some of them odd, cut or joined."""

    def __init__(self, service: Service, random: Random) -> None:
        self._random = random
        used, over = service.log_in(EMAIL), service.log_in(EMAIL)
        assert service.call("POST", "/v1/auth/refresh", json={"refresh_token": used["refresh_token"]}).ok
        assert service.call("POST", "/v1/auth/logout", token=over["access_token"]).ok
        self._plain = (
            refresh(used["refresh_token"]),
            refresh(over["refresh_token"]),
            refresh(over["refresh_token"][:-1]),
            refresh("A" * 70),
            log_out(over["access_token"]),
            log_out(used["access_token"][:-4] + "AAAA"),
            log_out("a.b.c"),
            request(b"/v1/auth/logout", json.dumps({"refresh_token": over["refresh_token"]}).encode()),
        )

    def generate(self, count: int) -> Iterator[tuple[Pieces, Pieces]]:
        """*count* of them, and each with a field that has it answered by itself."""
        for _ in range(count):
            data = self._random.choice((self._plain_one, self._plain_one, self._changed, self._joined))()
            alone = data.replace(b"\r\nHost: ", b"\r\n%bHost: " % ODD)
            place = self._random.random()
            is_cut = self._random.random() < 0.5
            yield (cut_at(data, place), cut_at(alone, place)) if is_cut else ((data,), (alone,))

    def _plain_one(self) -> bytes:
        return self._random.choice(self._plain)

    def _joined(self) -> bytes:
        return self._plain_one() + self._random.choice((self._plain_one(), b"GET / HTTP/1.1\r\n", b"\r\n"))

    def _changed(self) -> bytes:
        old, new = self._random.choice(
            (
                (b"Host: x", b"Host: x\r\nHost: y"),
                (b"Host: x", b"Host: x\r\nX-Request-Id: mine-1\r\nUser-Agent: \xe9\x00"),
                (b"Host: x", b"Host: x\r\nX-Request-Id: mine-1\r\nUser-Agent: \xe9 tests"),
                (b"Host: x", b"Host: x\r\nX-Forwarded-For: 192.0.2.1, bad"),
                (b"Host: x", b"Host: x\r\nConnection: close"),
                (b"Host: x", b"Host: x\r\nConnection: upgrade\r\nUpgrade: h2c"),
                (b"Host: x", b"Host: x\r\nExpect: 100-continue"),
                (b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
                (b"Host: x", b"Host: x\r\nContent-Encoding: gzip"),
                (b"Host: x", b"Host: x\r\nContent-Length: 3"),
                (b"Host: x", b"Host: x\n"),
                (b"Host: x", b"No: host"),
                (b"Host: x", b"Host: x y"),
                (b"Content-Length: ", b"Content-Length: 0"),
                (b"Content-Length: ", b"Content-Length: +"),
                (b"Content-Length: ", b"Content-Length : "),
                (b"Content-Length: 9", b"Content-Length: 8"),
                (b"application/json", b"application/json; charset=utf-8"),
                (b"application/json", b"text/plain"),
                (b"Bearer ", b"bearer "),
                (b"Bearer ", b"Bearer  "),
                (b"Bearer ", b"Basic "),
                (b'"refresh_token"', b'"refresh_token": "b", "refresh_token"'),
                (b'{"', b'{"more": 1, "'),
                (b'{"', b'["'),
                (b" HTTP/1.1", b"?a=b HTTP/1.1"),
                (b" HTTP/1.1", b" HTTP/1.0"),
                (b"POST ", b"PUT "),
                (b"POST ", b"post "),
                (b"POST /", b"POST //"),
            )
        )
        return self._plain_one().replace(old, new, 1)


def test_a_group_gives_the_same_answers_as_one_by_one(service):
    """Status, headers and bodies, whatever the bytes are; an added field has each answered by itself."""

    def ask(both: tuple[Pieces, Pieces]) -> str:
        grouped, single = (_TOKENS.sub(b"*", answers_to(service.port, pieces)) for pieces in both)
        assert grouped == single, (both, grouped, single)
        return grouped.partition(b"\r\n")[0].decode()

    with ThreadPoolExecutor(CLIENTS) as clients:
        seen = Counter(clients.map(ask, Requests(service, Random(SEED)).generate(COUNT)))

    print(f"the same answers in a group and alone: {dict(seen)}")  # noqa: T201 - for long runs
    assert min(seen[f"HTTP/1.1 {status}"] for status in ("200 OK", "204 NO CONTENT", "401 UNAUTHORIZED")) > 9


def test_requests_that_come_together_share_their_round_trips(service, redis_server):
    """All are answered, each for itself; refreshed tokens hold and sessions that have ended do not."""
    pairs = [service.log_in(EMAIL) for _ in range(MANY)]

    refreshed, reads = at_once(service, redis_server.url, [refresh(pair["refresh_token"]) for pair in pairs])
    pairs = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in refreshed]
    assert len({pair["session_id"] for pair in pairs}) == MANY
    assert [service.verify(pair["access_token"]) for pair in pairs] == [200] * MANY
    assert reads < MANY / 2

    ended, reads = at_once(service, redis_server.url, [log_out(pair["access_token"]) for pair in pairs])
    assert {answer.partition(b"\r\n")[0] for answer in ended} == {b"HTTP/1.1 204 NO CONTENT"}
    assert [service.verify(pair["access_token"]) for pair in pairs] == [401] * MANY
    assert reads < MANY / 2


def at_once(service: Service, redis_url: str, requests: list[bytes]) -> tuple[list[bytes], int]:
    """The answers to *requests* that have come while the worker stood still, and the reads of Redis."""
    with ExitStack() as stack, Redis.from_url(redis_url) as redis:
        clients = [stack.enter_context(socket.create_connection((HOST, service.port))) for _ in requests]
        wait_until(lambda: open_connections(service) >= len(requests))
        worker = psutil.Process(service.workers()[0])
        suspend_tree(worker)
        for client, data in zip(clients, requests, strict=True):
            client.sendall(data)
        before: int = redis.info("stats")["total_reads_processed"]
        resume_tree(worker)
        answers = [client.recv(65_536) for client in clients]
        after: int = redis.info("stats")["total_reads_processed"]
    return answers, after - before


def open_connections(service: Service) -> int:
    """How many clients the worker has accepted."""
    worker = psutil.Process(service.workers()[0])
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == service.port
        for connection in worker.net_connections()
    )


def test_one_session_in_a_group_many_times_is_refreshed_once(service, redis_server):
    """Within the grace time all get a pair of the same refresh token; after a logout all get 401."""
    pair = service.log_in(EMAIL)

    answers, _ = at_once(service, redis_server.url, [refresh(pair["refresh_token"])] * MANY)
    pairs = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert len({one["refresh_token"] for one in pairs}) == 1

    answers, _ = at_once(service, redis_server.url, [log_out(pairs[0]["access_token"])] * MANY)
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 204 NO CONTENT"}
    answers, _ = at_once(service, redis_server.url, [refresh(pairs[0]["refresh_token"])] * MANY)
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 401 UNAUTHORIZED"}


@pytest.mark.parametrize("is_refresh", [True, False], ids=["refresh", "logout"])
def test_nobody_waits_for_the_lock_of_another_ones_session(service, is_refresh):
    """All are answered while a transaction has the lock of one session; then that one is, too."""
    pairs = [service.log_in(EMAIL) for _ in range(8)]
    requests = [
        refresh(pair["refresh_token"]) if is_refresh else log_out(pair["access_token"]) for pair in pairs
    ]
    with (
        psycopg.connect(service.env["DATABASE_URL"]) as transaction,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(socket.create_connection((HOST, service.port))) for _ in pairs]
        wait_until(lambda: open_connections(service) >= len(pairs))
        lock = "SELECT 1 FROM sessions WHERE id = %s FOR UPDATE"
        transaction.execute(lock, (pairs[0]["session_id"],))
        worker = psutil.Process(service.workers()[0])
        suspend_tree(worker)
        for client, data in zip(clients, requests, strict=True):
            client.sendall(data)
        resume_tree(worker)
        answers = [client.recv(65_536) for client in clients[1:]]
        waiting, _, _ = select.select(clients[:1], [], [], 0)
        transaction.rollback()
        answers.append(clients[0].recv(65_536))

    assert waiting == []
    assert {answer[9:12] for answer in answers} == {b"200" if is_refresh else b"204"}


def test_clients_that_leave_take_no_answer_from_the_others(service):
    """Half of a group disconnects before it is answered; the worker goes on."""
    pairs = [service.log_in(EMAIL) for _ in range(MANY)]
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((HOST, service.port))) for _ in pairs]
        worker = psutil.Process(service.workers()[0])
        wait_until(lambda: open_connections(service) >= MANY)
        suspend_tree(worker)
        for client, pair in zip(clients, pairs, strict=True):
            client.sendall(refresh(pair["refresh_token"]))
        for client in clients[::2]:
            client.close()
        resume_tree(worker)
        answers = [client.recv(65_536) for client in clients[1::2]]

    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert service.workers() == [worker.pid]


def test_a_stopping_worker_answers_its_groups(postgres_server, redis_server, tmp_path):
    """What has come before SIGTERM is answered, and the connections are closed after it."""
    url = postgres_server.create_database()
    env = environment(url, redis_server.url, tmp_path, CACHE_KEY_PREFIX="stop", WEB_CONCURRENCY="1")
    migrate(env)
    with running(env, tmp_path) as service, ExitStack() as stack:
        service.register(EMAIL)
        pairs = [service.log_in(EMAIL) for _ in range(8)]
        clients = [stack.enter_context(socket.create_connection((HOST, service.port))) for _ in pairs]
        wait_until(lambda: open_connections(service) >= len(pairs))
        worker = psutil.Process(service.workers()[0])
        suspend_tree(worker)
        for client, pair in zip(clients, pairs, strict=True):
            client.sendall(refresh(pair["refresh_token"]))
        worker.terminate()
        resume_tree(worker)
        answers = [client.makefile("rb").read() for client in clients]

    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)
