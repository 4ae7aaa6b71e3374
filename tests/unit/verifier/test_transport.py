"""HTTP as the verifier speaks it: bounded in time and size, without redirects, over kept connections."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from typing import Any

import pytest

from authsvc.verifier.transport import MAX_BODY_BYTES, Answer, Connection, Origin, TransportError
from tests.servers.certificates import self_signed
from tests.unit.verifier.fake_service import FakeService

PATH = "/thing"
#: Far above what anything here takes, far below what would hang.
SAFE_S = 60


def origin(url: str, **options: Any) -> Origin:
    """The service at *url* and a client of it."""
    return Origin(url=url, client_id="an id", client_secret="s:e c+ret", **options)


@pytest.fixture
def connection(service):
    """A connection to the fake service."""
    connection = Connection(origin(service.url))
    yield connection
    connection.close()


def answering(service: FakeService, answer: Any) -> None:
    """Let *service* answer so."""
    service.answers[PATH] = answer if callable(answer) else lambda _: answer


def ask(connection: Connection, *, deadline_s: float = SAFE_S, **options: Any) -> Answer:
    """One request."""
    return connection.request("GET", PATH, deadline_s=deadline_s, **options)


def test_an_answer_comes_as_a_whole(service, connection):
    """Status, headers in lower case, body; the client is named as RFC 6749 §2.3.1 has it."""
    answering(service, Answer(201, {"X-Thing": "One"}, b"body"))

    answer = ask(connection, body="a=b")

    assert (answer.status, answer.headers["x-thing"], answer.body) == (201, "One", b"body")
    assert service.bodies == ["a=b"]
    sent = service.headers[0]
    assert base64.b64decode(sent["authorization"].removeprefix("Basic ")) == b"an+id:s%3Ae+c%2Bret"
    assert sent["content-type"] == "application/x-www-form-urlencoded"


def test_a_secret_goes_only_where_it_is_needed(service, connection):
    """Keys are public."""
    answering(service, Answer(200, {}, b""))

    ask(connection, with_secret=False)

    assert "authorization" not in service.headers[0]


def test_a_redirect_is_an_answer(service, connection):
    """Nobody is sent elsewhere with a secret."""
    answering(service, Answer(302, {"Location": "/elsewhere"}, b""))

    assert ask(connection).status == 302
    assert sum(service.asked.values()) == 1


def test_connections_are_kept(service, connection):
    """One for many requests, another after an answer that ends it."""
    answering(service, Answer(200, {}, b"x"))
    for _ in range(5):
        ask(connection)
    assert service.connections == 1
    answering(service, Answer(200, {"Connection": "close"}, b"x"))
    ask(connection)
    ask(connection)

    assert service.connections == 2


def test_a_kept_connection_that_was_closed_is_made_anew(service, connection):
    """Servers close idle connections at any time: that is no failure.  A fresh one that breaks is."""
    answers = [Answer(200, {}, b"1"), None, Answer(200, {}, b"2"), None, None]
    answering(service, lambda _: answers.pop(0))

    assert [ask(connection).body, ask(connection).body] == [b"1", b"2"]
    assert not ask_fails(connection)
    assert answers == []


def ask_fails(connection: Connection, **options: Any) -> bool:
    """Assert that asking fails by the one error; False, for there is no answer."""
    with pytest.raises(TransportError):
        ask(connection, **options)
    return False


def drip(service: FakeService, *, beginning: bytes) -> None:
    """Answer a byte every 20 ms, after *beginning*: no single step ever takes long."""

    def slowly(handler: Any) -> None:
        handler.wfile.write(beginning)
        while not service.over.wait(0.02):
            handler.wfile.write(b"x")

    answering(service, slowly)


@pytest.mark.parametrize(
    "beginning", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_the_deadline_holds_for_all_of_an_answer(service, connection, beginning):
    """Not only for each step of it."""
    drip(service, beginning=beginning)
    began_s = time.monotonic()

    ask_fails(connection, deadline_s=0.3)

    assert 0.3 <= time.monotonic() - began_s < SAFE_S


def test_a_silent_service_is_given_up(service, connection):
    """Within the deadline."""
    answering(service, lambda _: service.over.wait(SAFE_S) and None)
    began_s = time.monotonic()

    ask_fails(connection, deadline_s=0.2)

    assert time.monotonic() - began_s < SAFE_S


def test_an_endless_answer_is_given_up(service, connection):
    """Memory is bounded."""
    body = b"x" * (MAX_BODY_BYTES + 1)
    answering(service, Answer(200, {}, body))

    ask_fails(connection)
    answering(service, Answer(200, {}, body[1:]))
    assert len(ask(connection).body) == MAX_BODY_BYTES


@pytest.mark.parametrize("noise", [b"", b"HELLO\r\n\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"\x00" * 70_000])
def test_what_is_no_http_is_one_error(service, connection, noise):
    """Whatever speaks there."""
    answering(service, lambda handler: handler.wfile.write(noise) and None)

    ask_fails(connection)


def test_a_closed_port_is_one_error(socket_enabled):
    """And so is a name that nobody has."""
    with FakeService() as gone:
        url = gone.url

    ask_fails(Connection(origin(url)))
    ask_fails(Connection(origin("http://nobody.invalid")))


def test_a_wait_is_ended_from_another_thread(service, connection):
    """At once: a process that ends does not wait for a poll."""
    arrived = threading.Event()

    def wait(_handler: object) -> None:
        arrived.set()
        service.over.wait(SAFE_S)

    answering(service, wait)
    failed = threading.Thread(target=lambda: ask_fails(connection, deadline_s=4 * SAFE_S))
    failed.start()
    assert arrived.wait(SAFE_S)

    connection.abort()

    failed.join(SAFE_S)
    assert not failed.is_alive()


@pytest.mark.parametrize(
    "url",
    ["", "authsvc:8080", "ftp://host", "http://", "http://u:p@host", "https://host/?a=b", "file:///etc"],
)
def test_only_a_plain_web_address_is_taken(url):
    """A mistake shows when the service starts, not when the first token comes."""
    with pytest.raises(ValueError, match="URL"):
        origin(url)


def test_the_secret_is_in_no_text():
    """What is logged by accident."""
    assert "e c+ret" not in repr(origin("http://host"))


def test_a_certificate_is_verified(service, tmp_path):
    """One that nobody vouches for, or for another name, ends it; one that is trusted does not."""
    certificate = self_signed(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    service.socket = context.wrap_socket(service.socket, server_side=True)
    answering(service, Answer(200, {}, b"safe"))
    named = service.url.replace("http://127.0.0.1", "https://localhost")
    trusting = ssl.create_default_context(cafile=certificate.public)

    ask_fails(Connection(origin(named)))
    ask_fails(Connection(origin(named.replace("localhost", "127.0.0.1"), tls=trusting)))
    connection = Connection(origin(named, tls=trusting))
    assert [ask(connection).body for _ in range(2)] == [b"safe"] * 2
    connection.close()
