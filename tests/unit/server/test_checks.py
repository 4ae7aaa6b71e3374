"""The lane's reader of requests: what it takes, gunicorn's parser understands in the same way."""

from __future__ import annotations

from random import Random

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser

from authsvc.server import ServerOptions
from authsvc.server.checks import CheckReader, CheckRequest
from authsvc.server.process import gunicorn_options
from tests import times
from tests.e2e.server.raw_checks import Checks

PATH = "/v1/auth/verify"
TOKENS = (b"a.b.c", b"eyJ.eyJ-_.x" * 20)
COUNT = times("READER_REQUESTS", 20_000)


def configured() -> Config:
    """What the parser is told in the service."""
    config = Config()
    options = ServerOptions(host="127.0.0.1", port=1, metrics_port=2, workers=1)
    for name in ("limit_request_line", "limit_request_fields", "limit_request_field_size"):
        config.set(name, gunicorn_options(options)[name])
    config.set("http_parser", "python")
    return config


METHODS = {
    PATH: ("GET", "HEAD"),
    f"{PATH}-machine": ("GET", "HEAD"),
    f"{PATH}-any": ("GET", "HEAD"),
    "/v1/me": ("GET",),
}
CONFIG = configured()


def parsed(data: bytes) -> CheckRequest | None:
    """The same by gunicorn's parser; None where it refuses, or where the request is none of the lane's."""
    parser = RequestParser(CONFIG, iter([data]), ("127.0.0.1", 1))
    try:
        request = next(parser)
    except (ParseException, StopIteration):
        return None
    fields: dict[str, str] = {}
    for name, value in request.headers:
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    has_body = {"CONTENT-LENGTH", "TRANSFER-ENCODING"} & fields.keys()
    is_check = request.method in METHODS.get(request.path, ()) and request.version == (1, 1)
    if has_body or not is_check or "HOST" not in fields or parser.unreader.take_buffered():
        return None
    return CheckRequest(
        request.path,
        request.query,
        fields.get("AUTHORIZATION", "").encode("latin-1"),
        fields.get("X-REQUEST-ID", "").encode("latin-1"),
        fields.get("TRACEPARENT", "").encode("latin-1"),
        fields.get("ORIGIN", "").encode("latin-1"),
        request.should_close(),
    )


def test_whatever_is_taken_means_the_same_to_the_parser():
    """Sane, odd, malformed, pipelined, smuggling: taken and understood alike, or not taken."""
    reader = CheckReader(METHODS)
    taken = 0
    for pieces in Checks(Random(7), TOKENS).generate(COUNT):
        data = b"".join(pieces)
        request = reader.read(data)
        if request is not None:
            assert request == parsed(data), data
            taken += 1

    assert COUNT / 5 < taken < COUNT / 2


SANE = (
    b"GET /v1/auth/verify?role=admin HTTP/1.1\r\n"
    b"Host: x\r\nAuthorization: Bearer a.b.c\r\nX-Request-Id: r\r\n\r\n"
)


def test_any_byte_in_any_place_means_the_same_or_is_not_taken():
    """Each byte of a sane request is every other byte in turn, is missing, or is there twice."""
    reader = CheckReader(METHODS)
    for at in range(len(SANE)):
        bent = [SANE[:at] + bytes([byte]) + SANE[at + 1 :] for byte in range(256)]
        for data in (*bent, SANE[:at] + SANE[at + 1 :], SANE[: at + 1] + SANE[at:]):
            request = reader.read(data)
            assert request is None or request == parsed(data), data

    assert reader.read(SANE) == CheckRequest(
        PATH, "role=admin", b"Bearer a.b.c", b"r", b"", b"", closes=False
    )


ODD_FIELDS = (
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Upgrade: h2c",
    b"Host: y",
    b"Authorization: Bearer d.e.f",
    b"X-Request-Id: s",
    b"Connection: upgrade",
    b"X_Odd: 1",
    b"X-Odd : 1",
    b" folded",
)


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_one_odd_field_is_enough(field):
    """What frames a message, comes twice, or is not written as fields are, is for the parser to judge."""
    odd = SANE[:-2] + field + b"\r\n\r\n"

    assert CheckReader(METHODS).read(odd) is None


def test_requests_are_remembered_by_all_their_bytes():
    """The second of the same bytes means the same, and one that differs in a byte is read anew."""
    reader = CheckReader(METHODS)
    first = b"GET /v1/auth/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\n\r\n"
    other = first.replace(b"a.b.c", b"a.b.d")

    assert [reader.read(data) for data in (first, other, first)] == [
        CheckRequest(PATH, "", b"Bearer a.b.c", b"", b"", b"", closes=False),
        CheckRequest(PATH, "", b"Bearer a.b.d", b"", b"", b"", closes=False),
        CheckRequest(PATH, "", b"Bearer a.b.c", b"", b"", b"", closes=False),
    ]


@pytest.mark.parametrize(
    ("line", "is_read"),
    [
        (b"GET /v1/me HTTP/1.1", True),
        (b"HEAD /v1/me HTTP/1.1", False),
        (b"PATCH /v1/me HTTP/1.1", False),
        (b"GET /v1/me/ HTTP/1.1", False),
        (b"GET /v1/me/sessions HTTP/1.1", False),
    ],
)
def test_a_path_is_read_with_its_methods_alone(line, is_read):
    """Views answer the others."""
    data = line + b"\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nOrigin: https://app.test\r\n\r\n"
    request = CheckReader(METHODS).read(data)

    assert (request is not None) is is_read
    assert request is None or request == parsed(data)


@pytest.mark.parametrize("host", [b"", b"a b", b"x:y", b"[::1]", b"h\xe9", b"x/", b"x" * 256])
def test_an_odd_host_is_left_to_the_application(host):
    """It may be refused there."""
    assert CheckReader(METHODS).read(SANE.replace(b"Host: x", b"Host: " + host)) is None


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("-machine?scope=orders:read/all", (f"{PATH}-machine", "scope=orders:read/all")),
        ("-any", (f"{PATH}-any", "")),
        ("-machine/orders/7", None),
        ("-machines", None),
        ("-an", None),
    ],
)
def test_each_path_is_told_from_the_others(target, read):
    """With the query that belongs to it; what is none of them is for the parser."""
    data = SANE.replace(b"?role=admin", target.encode())
    request = CheckReader(METHODS).read(data)

    assert (request and (request.path, request.query)) == read
    assert request is None or request == parsed(data)
