"""One HTTP exchange on a socket: reads the arrived bytes, sends answers without a product's name."""

from __future__ import annotations

import io
import logging
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus

from gunicorn import util
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import Body as GunicornBody
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response

from authsvc.domain.values.problems import MEDIA_TYPE, problem_body

log = logging.getLogger(__name__)

#: SO_LINGER on, with 0 s: closing the socket discards unsent data.
_FORGET = struct.pack("ii", 1, 0)


class Refusal(OSError):
    """A rejected request; the text names the error and repeats nothing of the request."""


class BodyBroken(Refusal):
    """The framing of the request's body is invalid."""


class HeadTooLong(Refusal):
    """The head of a request is longer than allowed, or than the remaining memory."""


class BodyTooLong(Refusal):
    """The application reads more of a body than the server accepts."""


class RequestUnfinished(Refusal):
    """The rest of a request did not arrive in time."""


class ClientLost(OSError):
    """The client has disconnected, or does not read its answer; the text names the cause."""


_STATUS_OF: dict[type[BaseException], HTTPStatus] = {
    HeadTooLong: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    BodyTooLong: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RequestUnfinished: HTTPStatus.REQUEST_TIMEOUT,
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.InvalidResponseHeader: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidResponseHeaderName: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ConfigurationProblem: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class Received:
    """The arrived bytes, which a parser reads in small pieces; reading never blocks."""

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._at = 0
        self._is_cut = False

    def fill(self, data: bytes | bytearray, *, is_cut: bool) -> None:
        """Provide *data*; *is_cut*: the server, not the client, ends the body after it."""
        self._data, self._at, self._is_cut = data, 0, is_cut

    def recv(self, size: int) -> bytes:
        """Read up to *size* bytes, b"" at the end; raises BodyTooLong where the body was cut."""
        piece = self._data[self._at : self._at + size]
        if not piece and self._is_cut:
            raise BodyTooLong
        self._at += len(piece)
        return bytes(piece)

    def take_rest(self) -> bytes:
        """Return the unread bytes, and drop everything."""
        rest = bytes(self._data[self._at :])
        self._data, self._at = b"", 0
        return rest


class ResponseSender:
    """
    Sends on non-blocking sockets; at most *waiters* threads wait for clients that read slowly. They wait
    *within_s* seconds for the whole answer, from the first piece that does not fit the buffer. Further slow
    clients are disconnected, so that threads remain for other requests.
    """

    def __init__(self, waiters: int, *, within_s: float) -> None:
        self._within_s = within_s
        self._waiters = threading.BoundedSemaphore(waiters)

    def send(self, sock: socket.socket, data: bytes, deadline: float) -> float:
        """
        Send *data*; an answer usually fits into the socket's buffer.

        *deadline* is that of the whole answer, on the monotonic clock; 0: not set yet. Returns it; raises
        ClientLost.
        """
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientLost(type(error).__name__) from error
        if sent == len(data):
            return deadline
        deadline = deadline or time.monotonic() + self._within_s
        self._wait(sock, memoryview(data)[sent:], deadline)
        return deadline

    def _wait(self, sock: socket.socket, data: memoryview, deadline: float) -> None:
        if not self._waiters.acquire(blocking=False):
            _forget(sock)
            raise ClientLost("too many are slow")
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.sendall(data)
            sock.settimeout(0)
        except OSError as error:
            _forget(sock)
            raise ClientLost(type(error).__name__) from error
        finally:
            self._waiters.release()


def _forget(sock: socket.socket) -> None:
    """Have the system discard unsent data when the socket is closed."""
    with suppress(OSError):  # the connection is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)


class Body:
    """
    ``wsgi.input``: an incomplete or malformed body raises OSError.

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
        """Read one line, at most *size* bytes; raises OSError."""
        return self._checked(self._body.readline, size, 1)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Read all lines; ignores *hint*, which PEP 3333 allows."""
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
    """``wsgi.errors``: text that an application writes becomes log records."""

    def write(self, text: str) -> int:
        """Log *text*, unless it is blank."""
        if text.strip():
            log.error("application.complained", extra={"text": text.rstrip()})
        return len(text)


class Answer(Response):  # type: ignore[misc]  # gunicorn has no annotations
    """A response without a product's name; head and body are sent in one packet if they fit."""

    def __init__(self, request: Request, sock: socket.socket, cfg: Config, sender: ResponseSender) -> None:
        super().__init__(request, sock, cfg)
        self.headers_sent: bool
        self._sender = sender
        self._unsent = b""
        self._deadline = 0.0

    def default_headers(self) -> list[str]:
        """Return status line, date and framing."""
        begin = opening(self.req.version, self.status, closes=self.should_close())
        return [begin, "Transfer-Encoding: chunked\r\n"] if self.chunked else [begin]

    def send_headers(self) -> None:
        """Make the head; it is sent with the first piece of the body, or at the end."""
        if self.headers_sent:
            return
        lines = self.default_headers()
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        self._unsent = f"{''.join(lines)}\r\n".encode("latin-1")
        self.headers_sent = True

    def close(self) -> None:
        """Send the rest."""
        self.send_headers()
        self._send(b"0\r\n\r\n" if self.chunked else b"")

    def _emit_body(self, data: bytes) -> None:
        self._send(b"%X\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def _send(self, data: bytes) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent or data:
            self._deadline = self._sender.send(self.sock, unsent + data, self._deadline)


def opening(version: tuple[int, int], status: str, *, closes: bool) -> str:
    """Return the beginning of every answer: status line, date, and whether the connection stays open."""
    return (
        f"HTTP/{version[0]}.{version[1]} {status}\r\n"
        f"Date: {_http_date(int(time.time()))}\r\n"
        f"Connection: {'close' if closes else 'keep-alive'}\r\n"
    )


def opening_of(status: str, *, closes: bool) -> bytes:
    """Return the beginning of an answer over HTTP/1.1, in bytes."""
    return _opening_of(int(time.time()), status, closes)


@lru_cache(maxsize=16)
def _opening_of(_second: int, status: str, closes: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    return opening((1, 1), status, closes=closes).encode("ascii")


def length_of(environ: Mapping[str, object]) -> int | None:
    """Size of the request's body (the parser has checked the number); None if it is chunked."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    return int(str(environ.get("CONTENT_LENGTH", 0)))


def refuse(sock: socket.socket, client_ip: str, error: BaseException) -> None:
    """Answer and log a request that did not reach the application, or that it failed to answer."""
    status = _status_of(error)
    request_id = secrets.token_hex(16)
    fields = {"status": status.value, "client_ip": client_ip, "refusal_id": request_id}
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request.failed", extra=fields, exc_info=error)
    else:
        log.info("request.refused", extra=fields | {"reason": type(error).__name__})
    try:
        # A full buffer means that the client is not reading: drop the rest.
        sock.send(_problem(status, request_id))
    except OSError as lost:
        log.debug("connection.lost", extra=fields | {"reason": type(lost).__name__})


def _status_of(error: BaseException) -> HTTPStatus:
    if isinstance(error, errors.ParseException | Refusal):
        return _STATUS_OF.get(type(error), HTTPStatus.BAD_REQUEST)
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _problem(status: HTTPStatus, request_id: str) -> bytes:
    """RFC 9457, with nothing of the request in it."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error" if is_ours else "malformed_request"
    body = problem_body(status, code, kind="about:blank", request_id=request_id)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {_http_date(int(time.time()))}\r\n"
        f"Connection: close\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: {request_id}\r\n\r\n"
    )
    return head.encode("ascii") + body


@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    date: str = util.http_date(second)
    return date
