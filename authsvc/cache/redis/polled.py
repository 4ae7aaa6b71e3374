"""
Reads over one connection for an event loop, which must never block.

Another thread makes the connection, with all that takes time (name resolution, TLS, log-in, asking
Sentinels): :meth:`PolledReads.renew`.  The loop adopts it, sends one MGET at a time, and reads the reply when
it has arrived.  After any error the loop closes the connection, and another thread makes a new one later.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn

from redis.exceptions import RedisError

from authsvc.cache.errors import CacheUnavailable, Reason
from authsvc.cache.events import CacheEvents
from authsvc.cache.redis.connections import Deadlines, Pool, Wire

if TYPE_CHECKING:
    import socket

PIECE_BYTES: Final = 65_536
#: After a connection that lasted less than this (seconds), the next one is delayed.
STABLE_S: Final = 5.0
#: Delays after short-lived connections: first and longest (seconds), doubled each time.
SHORTEST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 8.0

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INCOMPLETE: Final = object()


def is_available() -> bool:
    """True if replies can be parsed in pieces without waiting: that needs hiredis."""
    return find_spec("hiredis") is not None


class PolledReads:
    """
    MGETs over one connection made like those of *pool*, with ``read_s`` of *deadlines* as time limit. Only
    the thread of the loop may use it, except :meth:`renew` and :meth:`wants_renewal`.  *clock* is monotonic,
    in seconds; *events* is called for each read that was answered.  With *takes_refusals*, a refused MGET
    (its slot has moved, for example) yields None for its values; without, the connection is closed.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        clock: Callable[[], float],
        events: CacheEvents | None = None,
        deadlines: Deadlines | None = None,
        takes_refusals: bool = False,
    ) -> None:
        self._pool = pool
        self._takes_refusals = takes_refusals
        self._clock = clock
        self._on_operation = (events or CacheEvents()).on_operation
        self._deadline_s = (deadlines or Deadlines()).read_s
        #: To be watched for reading; None without a connection.
        self.socket: socket.socket | None = None
        #: True while the socket is to be watched for writing, too.
        self.has_unsent = False
        #: The stamp of the connection in use; 0 without one.
        self.generation = 0
        self._handover = Lock()
        self._fresh: Wire | None = None
        self._wire: Wire | None = None
        self._reader: Any = None
        self._unsent: bytes = b""
        #: The expected number of values of each pending MGET, and the replies so far.
        self._wanted: Sequence[int] = ()
        self._replies: list[object] = []
        self._sent_at_s = 0.0
        self._adopted_at_s = 0.0
        self._pause_s = 0.0
        self._renew_at_s = 0.0

    @property
    def is_busy(self) -> bool:
        """True while a read is pending."""
        return bool(self._wanted)

    @property
    def due_s(self) -> float:
        """The deadline of the pending read, on the clock."""
        return self._sent_at_s + self._deadline_s

    def wants_renewal(self) -> bool:
        """True if there is no connection, and one may be made now."""
        return self._wire is None and self._fresh is None and self._clock() >= self._renew_at_s

    def renew(self) -> None:
        """Make a connection for the loop to adopt; blocks, and may fail."""
        wire: Wire = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            wire.connect()
        except RedisError:  # other users of Redis report the outage
            self._put_off()
            return
        wire.bare_socket.settimeout(0)
        self._offer(wire)

    def adopt(self, is_trusted: Callable[[int], bool]) -> bool:
        """
        Adopt the connection made meanwhile, if *is_trusted* accepts its stamp; True if there is one now.
        """
        if self._fresh is not None and not self.is_busy and is_trusted(self._fresh.generation):
            self._disconnect()
            with self._handover:
                self._wire, self._fresh = self._fresh, None
            if self._wire is not None:
                self.socket, self.generation = self._wire.bare_socket, self._wire.generation
            self._reader = _reader()
            self._adopted_at_s = self._clock()
        return self._wire is not None

    def send(self, request: bytes, *counts: int) -> None:
        """Send *request*: MGETs with *counts* as expected numbers of values; raises CacheUnavailable."""
        self._unsent, self._wanted, self._sent_at_s = request, counts, self._clock()
        self._replies = []
        self._send_rest()

    def receive(self) -> Sequence[bytes | None] | None:
        """
        The values if all have arrived, else None; first sends the rest of the request. Raises
        CacheUnavailable.
        """
        if self.has_unsent:
            self._send_rest()
        sock = self._connected()
        try:
            while not self._is_answered():
                piece = sock.recv(PIECE_BYTES)
                # Redis sends nothing unrequested: extra bytes would be read as the next reply.
                if not piece or not self._wanted:
                    self._fail(Reason.REFUSED)
                self._reader.feed(piece)
        except _NOT_NOW:
            return None
        except OSError as error:  # the errors of the parser are ConnectionErrors, too
            self._fail(Reason.REFUSED, error)
        return self._checked()

    def abandon(self, reason: Reason = Reason.TIMEOUT) -> None:
        """Close the connection after a late or unusable reply."""
        if self.is_busy:
            self._on_operation("mget", self._clock() - self._sent_at_s, reason)
        if self._wire is not None:
            self._pause_s = 0.0 if self._clock() - self._adopted_at_s >= STABLE_S else self._pause_s
            self._put_off()
        self._disconnect()

    def close(self) -> None:
        """Close all connections; nothing can be read afterwards."""
        self._disconnect()
        self._offer(None)

    def _is_answered(self) -> bool:
        """True if all replies have arrived; False if no read is pending."""
        while self._wanted and len(self._replies) < len(self._wanted):
            reply = self._reader.gets()
            if reply is _INCOMPLETE:
                return False
            self._replies.append(reply)
        return bool(self._wanted)

    def _checked(self) -> list[bytes | None]:
        values: list[bytes | None] = []
        for reply, count in zip(self._replies, self._wanted, strict=True):
            if isinstance(reply, list) and len(reply) == count:
                values += reply
            elif isinstance(reply, Exception) and self._takes_refusals:
                values += [None] * count
            else:
                self._fail(Reason.OTHER)
        if self._reader.has_data():
            self._fail(Reason.OTHER)
        self._wanted = ()
        self._on_operation("mget", self._clock() - self._sent_at_s, "ok")
        return values

    def _send_rest(self) -> None:
        try:
            sent = self._connected().send(self._unsent)
        except _NOT_NOW:
            sent = 0
        except OSError as error:
            self._fail(Reason.REFUSED, error)
        self._unsent = self._unsent[sent:]
        self.has_unsent = bool(self._unsent)

    def _connected(self) -> socket.socket:
        if self.socket is None:
            raise CacheUnavailable(Reason.REFUSED)
        return self.socket

    def _fail(self, reason: Reason, error: OSError | None = None) -> NoReturn:
        self.abandon(reason)
        raise CacheUnavailable(reason) from error

    def _offer(self, wire: Wire | None) -> None:
        with self._handover:
            stale, self._fresh = self._fresh, wire
        if stale is not None:
            stale.disconnect()

    def _put_off(self) -> None:
        self._renew_at_s = self._clock() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, 2 * self._pause_s))

    def _disconnect(self) -> None:
        self._wanted, self._unsent, self.has_unsent = (), b"", False
        self.socket, self.generation = None, 0
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.disconnect()


class PolledFleet:
    """
    The polled reads of all servers; *make* makes each when its name is first used.

    A read from several servers is pending until the last of them has answered.
    """

    def __init__(self, make: Callable[[str], PolledReads]) -> None:
        self._make = make
        self._making = Lock()
        self._by_name: dict[str, PolledReads] = {}
        #: The reads of all servers used so far.
        self.all: tuple[PolledReads, ...] = ()

    def at(self, name: str) -> PolledReads:
        """The reads of the server called *name*."""
        return self._by_name.get(name) or self._made(name)

    @property
    def sockets(self) -> dict[socket.socket, bool]:
        """What is to be watched for reading; True for what is to be watched for writing, too."""
        return {reads.socket: reads.has_unsent for reads in self.all if reads.socket is not None}

    @property
    def due_s(self) -> float:
        """The earliest deadline of the pending reads, on the clock."""
        return min((reads.due_s for reads in self.all if reads.is_busy), default=0.0)

    def abandon(self) -> None:
        """Close the connections whose reads were not answered in time."""
        for reads in self.all:
            if reads.is_busy:
                reads.abandon()

    def close(self) -> None:
        """Close all connections; nothing can be read afterwards."""
        for reads in self.all:
            reads.close()

    def _made(self, name: str) -> PolledReads:
        with self._making:
            if name not in self._by_name:
                self._by_name[name] = self._make(name)
                self.all = tuple(self._by_name.values())
            return self._by_name[name]


def _reader() -> Any:  # noqa: ANN401 - hiredis' own
    # An extra: without it nothing comes here.
    from hiredis import Reader  # noqa: PLC0415

    return Reader(protocolError=ConnectionError, notEnoughData=_INCOMPLETE)
