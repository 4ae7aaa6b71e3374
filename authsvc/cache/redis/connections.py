"""
Connections to one Redis: deadlines, a bounded pool, and a generation stamp on each connection.

The stamp is a number that rises with every connection made or remade. After a comparison of Redis with SQL at
generation *g*, connections up to *g* can be trusted. One with a higher stamp may lead to another server, or
to the same server with other data.

A pool connects when it is first used. A process that has used it must not fork others that use it, too:
processes that share a connection would receive each other's replies.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, BlockingConnectionPool, Connection
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from authsvc.cache.errors import HandshakeRefused
from authsvc.cache.redis.sockets import DeadlineSocket, NothingSent
from authsvc.cache.redis.tls import TlsConnection

#: Read from a socket at once. Each connection has a buffer of this size; most replies have less than 4 KiB.
READ_BYTES = 8192

Argument: TypeAlias = "str | bytes | int | float"
Reply: TypeAlias = "bytes | int | float | bool | list[Reply] | dict[Reply, Reply] | None"


class Wire(Protocol):
    """The part of a redis-py connection that is used here."""

    generation: int
    idle_s: float
    released_at_s: float
    #: The socket below the driver's wrappers.
    bare_socket: socket.socket

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def pack_commands(self, commands: Iterable[Sequence[Argument]]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes]) -> None: ...
    def send_command(self, *args: Argument) -> None: ...
    def read_response(self) -> Reply: ...


class Pool(Protocol):
    """The part of a redis-py connection pool that is used here."""

    connection_class: type[Any]
    connection_kwargs: dict[str, Any]
    max_connections: int

    def get_connection(self) -> Any: ...  # noqa: ANN401 a Wire, which redis-py does not know
    def release(self, connection: Any) -> None: ...  # noqa: ANN401 the same
    def disconnect(self, inuse_connections: bool = ...) -> None: ...  # noqa: FBT001 redis-py's own signature


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """
    The address of a Redis server, with the login.

    TLS verifies the certificate and its name with the roots in the file *tls_ca*, else with the system's;
    *tls_certificate* and *tls_key* are the files of our own certificate, if the server requires one.
    """

    host: str
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """Read ``redis[s]://[user[:password]@]host[:port][/db]``; ValueError never repeats the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
        except ValueError:
            raise ValueError("a Redis URL has a port between 1 and 65535") from None
        db = parts.path.removeprefix("/") or "0"
        sound = parts.hostname and not parts.query and not parts.fragment and db.isascii() and db.isdigit()
        if parts.scheme not in {"redis", "rediss"} or not sound:
            raise ValueError("a Redis URL reads redis[s]://[user[:password]@]host[:port][/db]")
        return cls(
            host=unquote(parts.hostname or ""),
            port=port,
            db=int(db),
            username=unquote(parts.username or "") or None,
            password=unquote(parts.password or "") or None,
            tls=parts.scheme == "rediss",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """
    Seconds to connect, to wait for the next piece of a reply, and to wait for a free connection.

    *total_s* limits the whole reply to a request, and a handshake: otherwise a reply in many small pieces
    would never time out.  A connection that was idle for *idle_s* must answer a PING before it is used:
    servers and load balancers drop idle connections, some without closing them.
    """

    connect_s: float = 0.25
    read_s: float = 0.25
    wait_s: float = 0.1
    total_s: float = 0.4
    idle_s: float = 1.0


class Generations:
    """
    Rising stamps after *latest*, for one pool or for several whose connections are counted in one order.
    """

    def __init__(self, latest: int = 0) -> None:
        self.latest = latest
        self._lock = Lock()

    def next(self) -> int:
        """Return the next stamp."""
        with self._lock:
            self.latest += 1
            return self.latest


class _Stamping(AbstractConnection):
    """A redis-py connection that gets a new generation whenever it connects."""

    generations: Generations
    announced_name: str | None
    total_s: float
    idle_s: float
    generation = 0
    released_at_s = 0.0
    bare_socket: Any

    def _connect(self) -> Any:  # noqa: ANN401 a socket, or what stands for one in memory
        sock = super()._connect()  # type: ignore[no-untyped-call,safe-super]  # the driver's
        self.bare_socket = sock
        return DeadlineSocket(sock, self.total_s) if isinstance(sock, socket.socket) else sock

    def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 redis-py's
        """Take a stamp, do the handshake, set the client's name."""
        # Take the stamp after the TCP connection is made. A stamp taken earlier could be compared and trusted
        # before the connection is established, maybe to another server.
        self.generation = self.generations.next()
        try:
            super().on_connect_check_health(check_health)
        except (ResponseError, AttributeError, TypeError) as error:
            # The driver raises the last two if the reply to HELLO has an unexpected form.
            raise HandshakeRefused from error
        if self.announced_name:
            self._announce(self.announced_name)
        if isinstance(self._sock, DeadlineSocket):
            self._sock.is_in_handshake = False

    def finish_within(self, seconds: float) -> None:
        """Limit all reads to *seconds* from now; for a subscriber, which reads without sending."""
        if isinstance(self._sock, DeadlineSocket):
            self._sock.last_moment_s = time.monotonic() + seconds

    def _announce(self, name: str) -> None:
        # Only for CLIENT LIST; an ACL that denies it must not fail the connection.
        with suppress(ResponseError):
            self.send_command("CLIENT", "SETNAME", name, check_health=False)  # type: ignore[no-untyped-call]
            self.read_response()


def stamped(
    connection_class: type[Any],
    *,
    client_name: str | None = None,
    generations: Generations | None = None,
    deadlines: Deadlines | None = None,
) -> type[Any]:
    """Return a subclass of redis-py's *connection_class* with a ``generation`` from *generations*."""
    attributes = {
        "generations": generations or Generations(),
        "announced_name": client_name,
        "total_s": (deadlines or Deadlines()).total_s,
        "idle_s": (deadlines or Deadlines()).idle_s,
    }
    return type(f"Stamped{connection_class.__name__}", (_Stamping, connection_class), attributes)


def bounded_pool(
    address: RedisAddress,
    *,
    size: int,
    protocol: Literal[2, 3] = 3,
    client_name: str | None = None,
    deadlines: Deadlines | None = None,
    generations: Generations | None = None,
) -> Pool:
    """
    Return a pool of at most *size* stamped connections that never retries; opens none yet.

    Pools that share *generations* count their connections in one order.
    """
    limits = deadlines or Deadlines()
    pool = BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=size,
        timeout=limits.wait_s,
        connection_class=stamped(
            TlsConnection if address.tls else Connection,
            client_name=client_name,
            generations=generations,
            deadlines=limits,
        ),
        host=address.host,
        port=address.port,
        **login_options(address),
        **socket_options(limits, protocol),
    )
    return cast("Pool", pool)


def login_options(address: RedisAddress) -> dict[str, Any]:
    """Return the driver's options for logging in at *address*."""
    options: dict[str, Any] = {"username": address.username, "password": address.password, "db": address.db}
    if address.tls:
        options |= {
            "ssl_ca_certs": address.tls_ca,
            "ssl_certfile": address.tls_certificate,
            "ssl_keyfile": address.tls_key,
        }
    return options


def socket_options(limits: Deadlines, protocol: Literal[2, 3]) -> dict[str, Any]:
    """Return the driver's options for deadlines, without retries and hidden commands."""
    return {
        "socket_connect_timeout": limits.connect_s,
        "socket_timeout": limits.read_s,
        "socket_read_size": READ_BYTES,
        "retry": Retry(NoBackoff(), 0),
        "protocol": protocol,
        "driver_info": None,  # saves two round trips for each connection
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def was_never_sent(error: RedisError) -> bool:
    """Return whether *error* proves that no byte of the request was sent."""
    return isinstance(error.__context__, NothingSent)


class Connections:
    """Hands out the connections of *pool*, whose class must come from :func:`stamped`."""

    def __init__(self, pool: Pool) -> None:
        if not issubclass(pool.connection_class, _Stamping):
            raise TypeError("the pool's connection_class must come from stamped()")
        self._pool = pool
        self._generations: Generations = pool.connection_class.generations
        self._suspect_through = 0

    @property
    def generation(self) -> int:
        """The latest stamp handed out."""
        return self._generations.latest

    def suspect(self) -> None:
        """Have all existing connections closed and remade before their next use."""
        self._suspect_through = max(self._suspect_through, self._generations.latest)

    def acquire(self) -> Wire:
        """Take a connected connection; raises the driver's RedisError."""
        wire: Wire = self._pool.get_connection()
        if wire.generation <= self._suspect_through:
            self._remake(wire)
        elif wire.released_at_s and time.monotonic() - wire.released_at_s > wire.idle_s:
            self._check(wire)
        return wire

    def release(self, wire: Wire) -> None:
        """Return *wire* to the pool; closes it if it is suspect."""
        if wire.generation <= self._suspect_through:
            wire.disconnect()
        wire.released_at_s = time.monotonic()
        self._pool.release(wire)

    def fill(self) -> int:
        """
        Open (or remake) connections up to the pool's size, and return how many are open.

        Best effort: stops at the first failure. Meanwhile other threads wait for connections, so call it at
        the start and after :meth:`suspect`, not in a request.
        """
        held: list[Wire] = []
        try:
            with suppress(RedisError):  # the returned number shows it
                for _ in range(self._pool.max_connections):
                    held.append(self.acquire())  # noqa: PERF401 what was taken before an error goes back
        finally:
            for wire in held:
                self.release(wire)
        return len(held)

    def close(self) -> None:
        """Close idle connections now, and those in use when they are released."""
        self.suspect()
        self._pool.disconnect(inuse_connections=False)

    def _check(self, wire: Wire) -> None:
        """Remake *wire* if it does not answer; then the other idle connections are probably broken, too."""
        try:
            wire.send_command("PING")
            wire.read_response()
        except ResponseError:
            return
        except RedisError:
            self.suspect()
            self._remake(wire)
        except BaseException:
            wire.disconnect()
            self._pool.release(wire)
            raise

    def _remake(self, wire: Wire) -> None:
        wire.disconnect()
        try:
            wire.connect()
        except BaseException:
            self._pool.release(wire)
            raise
