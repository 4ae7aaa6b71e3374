"""The same over HTTP: forged tokens and broken bodies end in an answer, never in a 5xx or a dead worker."""

from __future__ import annotations

import socket
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest

from authsvc.store.key_folder import read_key
from tests import times
from tests.api.forging import CLAIM_KINDS, HEADER_KINDS, TEXT_KINDS, Forger
from tests.api.frame.test_bodies import MALFORMED
from tests.api.frame.test_routes import ROUTES
from tests.e2e.estate import ROOT, create_root, running
from tests.e2e.lines import Line, open_lines
from tests.processes import HOST
from tests.rig import HOPELESS_S, PASSWORD, Service, development, migrate
from tests.servers import drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COUNT = times("FUZZ_REQUESTS", 500)
#: How a body is framed; what follows the first is broken, or more than was announced.
FRAMES = {
    "chunked": lambda body: b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    "in chunks of one": lambda body: (
        b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in body[:500])
        + b"0\r\n\r\n"
    ),
    "a chunk of no size": lambda body: b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + body,
    "a chunk too long": lambda body: b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + body,
    "both": lambda body: b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + body,
    "two lengths": lambda body: b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
    "a length of no number": lambda body: b"Content-Length: +5\r\n\r\n" + body,
    "an unknown coding": lambda body: b"Transfer-Encoding: gzip\r\n\r\n" + body,
    "compressed": lambda body: b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body),
    "more than announced": lambda body: (
        b"Content-Length: %d\r\n\r\n%sGET / HTTP/1.1\r\n\r\n" % (len(body), body)
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return where keys and log are."""
    made: Path = tmp_path_factory.mktemp("fuzz")
    return made


@pytest.fixture(scope="module")
def service(postgres_server, redis_server, folder) -> Iterator[Service]:
    """Two workers; their log is read afterwards: nothing in it may be a fault."""
    url = postgres_server.create_database()
    env = development(
        url, redis_server.url, folder, CACHE_KEY_PREFIX="fuzz", WEB_CONCURRENCY="2", LOG_FORMAT="json"
    )
    migrate(env)
    create_root(env, folder)
    with running(env, folder) as started:
        workers = started.workers()
        yield started
        assert started.workers() == workers
    log = started.log.read_text()
    assert "Traceback" not in log
    assert '"request.failed"' not in log
    drop_database(postgres_server.url, url)


@pytest.fixture(scope="module")
def lines(service) -> Iterator[list[Line]]:
    """Yield one line to each worker."""
    with open_lines(service) as opened:
        yield opened


def can_be_sent(text: str) -> bool:
    """Not what no HTTP client can put into a header."""
    return all(character not in "\r\n" and ord(character) < 256 for character in text)


def test_no_forged_token_gets_past_the_server(lines, folder):
    """400 or 401, as a header of any bytes that HTTP can carry; the genuine one is good all the while."""
    pair = lines[0].log_in(ROOT, PASSWORD).json
    (file,) = (folder / "keys").glob("*.pem")
    kinds = (*TEXT_KINDS, *HEADER_KINDS, *CLAIM_KINDS)
    forger = Forger(pair["access_token"], read_key(file), Random(COUNT), kinds)
    answers = Counter[int]()
    for number, (kind, text) in enumerate(forger.forgeries(COUNT)):
        if can_be_sent(text):
            reply = lines[number % 2].verify(text)
            is_same = reply.status == 200 and kind == "other_curve_point"
            assert is_same or reply.status in {400, 401}, (reply, kind, text)
            answers[reply.status] += 1

    assert [line.verify(forger.genuine).status for line in lines] == [200, 200]
    assert answers[401] > COUNT / 2
    print(f"forged tokens over HTTP: {dict(answers)}")  # noqa: T201 - for long runs


def framed(service: Service, route: str, token: str, frame: bytes) -> int:
    """The status of a request written by hand; 0 if the server hangs up on it without a word."""
    method, path = route.split(" ")
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection((HOST, service.port), timeout=HOPELESS_S) as connection:
        try:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n" + frame)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        except ConnectionError:  # also that: it does not wait for long until the client has read the answer
            return 0
    return int(answer.split()[1]) if answer else 0


def test_no_framing_of_a_body_breaks_a_route(service, lines):
    """Chunked, in pieces, cut off, announced twice: refused, or read for what it is."""
    token = lines[0].log_in(ROOT, PASSWORD).json["access_token"]
    routes = [route for route in ROUTES if route.split(" ")[0] in {"POST", "PUT", "PATCH"}]
    bodies = list(MALFORMED.values())
    answers = Counter[int]()
    for number, route in enumerate(routes):
        for place, (name, frame) in enumerate(FRAMES.items()):
            body = bodies[(number * len(FRAMES) + place) % len(bodies)]
            status = framed(service, route, token, frame(body[:60_000]))
            assert status < 500, (route, name, body)
            answers[status] += 1

    assert answers[400] > len(routes)
    assert [line.ask("GET", "/v1/health/live").status for line in lines] == [200, 200]
