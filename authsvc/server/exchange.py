"""One HTTP exchange on a socket: reading under a deadline, answering without a product's name."""

from __future__ import annotations

import io
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus

from gunicorn import util
from gunicorn.http import errors
from gunicorn.http.body import Body as GunicornBody
from gunicorn.http.wsgi import Response

from authsvc.observability.logs import get_logger

#: For one piece of an answer that the client does not take at once.
SEND_TIMEOUT_S = 10.0

_STATUS_OF: dict[type[BaseException], HTTPStatus] = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.InvalidResponseHeader: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidResponseHeaderName: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ConfigurationProblem: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class BodyBroken(OSError):
    """The client's framing of its body is wrong; the text names the fault, and nothing that was sent."""


class TimedSocket:
    """The reading side of a connection; *deadline*, on the monotonic clock, is for a request as a whole."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0

    def recv(self, size: int) -> bytes:
        """Read up to *size* bytes; raises TimeoutError once the deadline has passed."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.sock.settimeout(left_s)
        return self.sock.recv(size)


class Body:
    """
    ``wsgi.input``: a body that breaks off, or breaks the rules of HTTP, raises OSError.

    *length* is in bytes, None for a chunked body.
    """

    def __init__(self, body: GunicornBody, length: int | None) -> None:
        self._body = body
        self._missing = length

    def read(self, size: int | None = None) -> bytes:
        """Read *size* bytes, or all; raises OSError."""
        wanted = sys.maxsize if size is None or size < 0 else size
        return self._checked(self._body.read, wanted, wanted)

    def readline(self, size: int | None = None) -> bytes:
        """Read one line, *size* bytes of it at most; raises OSError."""
        return self._checked(self._body.readline, size, 1)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Read all lines; *hint* is allowed to be ignored (PEP 3333)."""
        del hint
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _checked(self, read: Callable[[int | None], bytes], size: int | None, least: int) -> bytes:
        try:
            data = read(size)
        except errors.ParseException as error:
            raise BodyBroken(type(error).__name__) from error
        if self._missing is not None:
            if size != 0 and len(data) < min(least, self._missing):
                raise BodyBroken("cut off")
            self._missing -= len(data)
        return data


class ErrorLog(io.TextIOBase):
    """``wsgi.errors``: what an application writes there becomes log records."""

    def write(self, text: str) -> int:
        """Log *text*, unless it is blank."""
        if text.strip():
            get_logger().error("application.complained", message=text.rstrip())
        return len(text)


class Answer(Response):  # type: ignore[misc]  # gunicorn has no annotations
    """A response that names no product, and sends head and body in one packet where they fit."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.headers_sent: bool
        self._unsent = b""

    def default_headers(self) -> list[str]:
        """Return status line, date and framing."""
        closes = "close" if self.should_close() else "keep-alive"
        lines = [
            f"HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status}\r\n",
            f"Date: {_http_date(int(time.time()))}\r\n",
            f"Connection: {closes}\r\n",
        ]
        return [*lines, "Transfer-Encoding: chunked\r\n"] if self.chunked else lines

    def send_headers(self) -> None:
        """Make the head; it goes with the first piece of the body, or with the end."""
        if self.headers_sent:
            return
        lines = self.default_headers()
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        self._unsent = f"{''.join(lines)}\r\n".encode("latin-1")
        self.headers_sent = True

    def close(self) -> None:
        """Send what is left."""
        self.send_headers()
        self._send(b"0\r\n\r\n" if self.chunked else b"")

    def _emit_body(self, data: bytes) -> None:
        self._send(b"%X\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def _send(self, data: bytes) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent or data:
            send_all(self.sock, unsent + data)


def length_of(environ: Mapping[str, object]) -> int | None:
    """Bytes of the request's body (the parser has checked the number), or None where it is chunked."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    return int(str(environ.get("CONTENT_LENGTH", 0)))


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send *data* on a socket in any mode; raises TimeoutError if the client does not take it in 10 s."""
    try:
        sent = sock.send(data)  # an answer as a rule fits the socket's buffer
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        sock.settimeout(SEND_TIMEOUT_S)
        sock.sendall(memoryview(data)[sent:])


def refuse(sock: socket.socket, client_ip: str, error: BaseException) -> None:
    """Answer, and log, a request that never reached the application or that it failed to answer."""
    status = _status_of(error)
    request_id = secrets.token_hex(16)
    log = get_logger().bind(status=status.value, client_ip=client_ip, refusal_id=request_id)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request.failed", exc_info=error)
    else:
        log.info("request.refused", reason=type(error).__name__)
    try:
        send_all(sock, _problem(status, request_id))
    except OSError as lost:
        log.debug("connection.lost", reason=type(lost).__name__)


def _status_of(error: BaseException) -> HTTPStatus:
    if isinstance(error, errors.ParseException | BodyBroken):
        return _STATUS_OF.get(type(error), HTTPStatus.BAD_REQUEST)
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _problem(status: HTTPStatus, request_id: str) -> bytes:
    """RFC 9457, with nothing of the request in it."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    body = json.dumps(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "code": "internal_error" if is_ours else "malformed_request",
            "request_id": request_id,
        }
    )
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {_http_date(int(time.time()))}\r\n"
        f"Connection: close\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: {request_id}\r\n\r\n"
    )
    return (head + body).encode("ascii")


@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    date: str = util.http_date(second)
    return date
