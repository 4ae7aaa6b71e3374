"""HTTP to the service: one deadline for all of a request, no redirects, TLS verified, connections kept."""

from __future__ import annotations

import base64
import io
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote_plus, urlsplit

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: No answer of the service is longer.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: The errors of a kept connection that the server has closed meanwhile.
_CLOSED_MEANWHILE = (RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


class TransportError(Exception):
    """No answer in time, or none that can be read; the text names no secret."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as a whole; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the service is, and who is asking it."""

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    #: None: the system's certificates, host names checked.
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
            raise ValueError("the service's URL must be http(s)://host[:port][/path]")

    @property
    def basic(self) -> str:
        """The ``Authorization`` header of the client (RFC 6749 §2.3.1)."""
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def path(self, path: str) -> str:
        """*path* below that of the service."""
        return urlsplit(self.url).path.rstrip("/") + path

    def connection(self) -> HTTPConnection:
        """A new connection, not yet made."""
        parts = urlsplit(self.url)
        host = cast("str", parts.hostname)
        if parts.scheme == "http":
            return HTTPConnection(host, parts.port)
        return HTTPSConnection(host, parts.port, context=self.tls or ssl.create_default_context())


class Connection:
    """
    One connection to the service, kept from request to request and made anew when it was closed.

    For one thread at a time; :meth:`abort` is for any other.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._connection: HTTPConnection | None = None

    def request(
        self, method: str, path: str, *, deadline_s: float, body: str | None = None, with_secret: bool = True
    ) -> Answer:
        """
        One request, all of it within *deadline_s* seconds but for the look-up of the name.

        A form goes as *body*.  Sent a second time only if a kept connection turns out to be closed.

        Raises:
            TransportError: no answer, or a broken or endless one; redirects come back as they are.
        """
        ends_at_s = time.monotonic() + deadline_s
        headers = {"Accept": "application/json", "Connection": "keep-alive"}
        if with_secret:
            headers["Authorization"] = self._origin.basic
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        was_kept = self._connection is not None
        try:
            try:
                return self._exchange(method, path, body, headers, ends_at_s)
            except _CLOSED_MEANWHILE:
                self.close()
                if not was_kept:
                    raise
                return self._exchange(method, path, body, headers, ends_at_s)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise TransportError(f"{type(error).__name__}: {error}") from error

    def abort(self) -> None:
        """End the request that another thread is waiting for."""
        connection = self._connection
        if connection is not None and isinstance(connection.sock, _TimedSocket):
            connection.sock.shut_down()

    def close(self) -> None:
        """Let the connection go; the next request makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _exchange(
        self, method: str, path: str, body: str | None, headers: dict[str, str], ends_at_s: float
    ) -> Answer:
        connection = self._connected(ends_at_s)
        connection.request(method, self._origin.path(path), body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(MAX_BODY_BYTES + 1)
        if len(data) > MAX_BODY_BYTES:
            raise ValueError("the answer is too long")
        if response.will_close:
            self.close()
        return Answer(response.status, {name.lower(): text for name, text in response.getheaders()}, data)

    def _connected(self, ends_at_s: float) -> HTTPConnection:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._origin.connection()
            connection.timeout = _left_s(ends_at_s)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = _TimedSocket(connection.sock)
        cast("_TimedSocket", connection.sock).ends_at_s = ends_at_s
        return connection


class _TimedSocket:
    """What http.client needs of a socket, under a deadline for everything together: a timeout is per step."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.ends_at_s = 0.0

    def sendall(self, data: bytes) -> None:
        """Send *data*."""
        self._sock.settimeout(_left_s(self.ends_at_s))
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What an answer is read from, also after :meth:`close`: so http.client reads the last one."""
        return io.BufferedReader(_TimedReader(self._sock, self.ends_at_s))

    def shut_down(self) -> None:
        """Wake a thread that reads or writes."""
        with suppress(OSError):  # it has ended by itself
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._sock.close()


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a monotonic time."""

    def __init__(self, sock: socket.socket, ends_at_s: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._ends_at_s = ends_at_s

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """What has arrived."""
        self._sock.settimeout(_left_s(self._ends_at_s))
        return self._raw.readinto(buffer) or 0

    def close(self) -> None:
        """With it the socket, if that was closed before."""
        self._raw.close()
        super().close()


def _left_s(ends_at_s: float) -> float:
    """The seconds until *ends_at_s*; raises TimeoutError when there are none."""
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer within the deadline")
    return left_s
