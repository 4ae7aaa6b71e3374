"""
The receiving half of the worker: a connection waits in the main loop until its request has arrived.

gunicorn's ``gthread`` assigns a thread to a new connection before it has sent a byte, for up to 5 s, and
reads requests without a deadline. So a few silent or slow clients could occupy all threads. Here the main
loop reads, and threads get only complete requests.
"""

from __future__ import annotations

import errno
import select
import selectors
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gunicorn import http
from gunicorn.http.parser import RequestParser
from gunicorn.sock import BaseSocket
from gunicorn.workers.gthread import TConn, ThreadWorker

from authsvc.server.arrival import Arrival, Progress, heads_below
from authsvc.server.exchange import BodyTooLong, HeadTooLong, Received, RequestUnfinished, refuse

if TYPE_CHECKING:
    from authsvc.server import ServerTimings

PIECE_BYTES = 65_536
#: Total bytes of all requests in a worker.  Beyond that, a request that does not arrive at once is
#: refused.
MAX_HELD_BYTES = 16 * 1024 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: By those of a selector.
_EPOLL_EVENTS = {
    selectors.EVENT_READ: select.EPOLLIN,
    selectors.EVENT_READ | selectors.EVENT_WRITE: select.EPOLLIN | select.EPOLLOUT,
}
#: What is watched: a socket, a listener of gunicorn's, or a descriptor.
Socket: TypeAlias = Any


class WaitQueue:
    """
    Connections in the order of their deadlines: the deque methods that gunicorn uses, with fast removal.
    """

    def __init__(self) -> None:
        self._conns: OrderedDict[Connection, None] = OrderedDict()
        #: Add a connection at the end, and remove one; without a call in between, for each check needs both.
        self.append: Callable[[Connection], None] = self._conns.setdefault
        self.remove: Callable[[Connection], None] = self._conns.__delitem__

    def popleft(self) -> Connection:
        """Remove the first and return it."""
        return self._conns.popitem(last=False)[0]

    def __getitem__(self, position: Literal[0]) -> Connection:
        return next(iter(self._conns))

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._conns)

    def __len__(self) -> int:
        return len(self._conns)


class Poller:
    """The methods of a selector that gunicorn uses, and a :meth:`dispatch` that costs less for each event."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._numbers: dict[Socket, int] = {}
        self._calls: dict[int, Callable[[], object]] = {}

    def register(self, sock: Socket, events: int, on_ready: Callable[[Any], object]) -> None:
        """Call *on_ready* with *sock* whenever it is ready for *events*, which are those of a selector."""
        number = sock if isinstance(sock, int) else sock.fileno()
        self._epoll.register(number, _EPOLL_EVENTS[events])
        self._numbers[sock] = number
        self._calls[number] = partial(on_ready, sock)

    def unregister(self, sock: Socket) -> None:
        """Call nothing for *sock* any longer, not even for an event of this round; it may be closed."""
        number = self._numbers.pop(sock)
        del self._calls[number]
        with suppress(OSError):  # closed: the system does not watch it any longer
            self._epoll.unregister(number)

    def dispatch(self, timeout_s: float) -> None:
        """Wait for events, and make the calls for all of them."""
        calls = self._calls
        for number, _ in self._epoll.poll(timeout_s):
            if number in calls:
                calls[number]()

    def close(self) -> None:
        """Watch nothing any longer."""
        self._epoll.close()


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no annotations
    """A client's connection, with the bytes of its next request."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.parser: RequestParser
        self.arrival = Arrival()
        #: Progress of the request that a thread is answering.
        self.progress = Progress.WHOLE
        #: The queue of connections in which this one waits; None while a thread has it.
        self.queue: WaitQueue | None = None
        #: When the request being received must be complete, on the monotonic clock.
        self.deadline = 0.0
        #: Its share of the worker's total bytes, until its request is answered.
        self.held_bytes = 0
        self.received = Received()
        #: Whether to trace the request, if the check lane has decided that.
        self.is_sampled: bool | None = None
        #: False while it waits without being registered in the poller.
        self.is_watched = True

    def init(self) -> None:
        """Provide the arrived bytes to the parser."""
        if self.parser is None:
            self.parser = http.get_parser(self.cfg, self.received, self.client)
        self.received.fill(self.arrival.data, is_cut=self.progress is Progress.BODY_TOO_LONG)
        self.arrival = Arrival()
        self.deadline = 0.0

    def take_ahead(self) -> bytes:
        """Return the bytes after the request that the parser has read."""
        buffered: bytes = self.parser.unreader.take_buffered()
        return buffered + self.received.take_rest()

    def forget(self) -> None:
        """Release the bytes that will not be read."""
        self.arrival = Arrival()
        self.received.take_rest()
        self.parser = None


class ParkingWorker(ThreadWorker):  # type: ignore[misc]
    """Receives requests in the main loop: a silent client needs a descriptor, but no thread."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        #: Connections with a partial request, and connections to close once the client has read the answer.
        self.reading_conns = WaitQueue()
        self.lingering_conns = WaitQueue()
        # gunicorn uses deques, in which removal scans all other connections.
        self.pending_conns = WaitQueue()
        self.keepalived_conns = WaitQueue()
        self.poller: Poller
        self.held_bytes = 0
        self.timings: ServerTimings = self.app.options.timings
        bodiless: tuple[str, ...] = self.app.options.bodiless
        self._bodiless = heads_below(*bodiless) if bodiless else None

    def load_wsgi(self) -> None:
        """Load the application; nothing is watched before that."""
        super().load_wsgi()
        self.poller.close()
        self.poller = Poller()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, and call what is registered for them."""
        self.poller.dispatch(timeout)

    def accept(self, listener: BaseSocket) -> None:
        """Accept a connection and let it wait; if too many are open, a silent one is closed."""
        try:
            client_sock, address = listener.accept()
        except OSError as error:  # the client is gone, or no descriptor is left; the next round tries again
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._evict()
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, client_sock, address, listener.getsockname())
        conn.set_timeout()
        self._park(conn, self.pending_conns, self.on_pending_socket_readable)
        if self.nr_conns >= self.worker_connections:
            self._evict()

    def on_pending_socket_readable(self, conn: Connection, _client: object) -> None:
        """Read from a connection that waits for its first request, or for the rest of one."""
        self._receive(conn)

    def on_client_socket_readable(self, conn: Connection, _client: object) -> None:
        """Read from a kept-alive connection."""
        self._receive(conn)

    def finish_request(self, conn: Connection, future: Future[bool]) -> None:
        """Let the connection wait for its next request, or close it."""
        self._release(conn)
        if future.cancelled() or future.exception() or not future.result():
            self._linger(conn)
            return
        ahead = conn.take_ahead()
        if ahead:
            self._park_reading(conn)
            self._take(conn, ahead)
        else:
            super().finish_request(conn, future)
            conn.queue = self.keepalived_conns

    def murder_pending(self) -> None:
        """Close connections that have waited too long; an incomplete request is answered with an error."""
        super().murder_pending()
        now = time.monotonic()
        while self.reading_conns and self.reading_conns[0].deadline <= now:
            self._refuse(self.reading_conns[0], RequestUnfinished())
        while self.lingering_conns and self.lingering_conns[0].timeout <= now:
            self._drop(self.lingering_conns[0])

    def _receive(self, conn: Connection) -> None:
        try:
            piece = conn.sock.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(conn)
            return
        if piece:
            self._take(conn, piece)
        elif conn.arrival.data:
            self._hand_over(conn, Progress.HOPELESS)
        else:
            self._drop(conn)

    def _take(self, conn: Connection, piece: bytes) -> None:
        conn.held_bytes += len(piece)
        self.held_bytes += len(piece)
        progress = conn.arrival.add(piece)
        if progress is Progress.PARTIAL and self._reads_no_body(conn.arrival):
            progress = Progress.BODY_UNREAD
        if progress is Progress.PARTIAL:
            self._wait_on(conn)
        elif progress is Progress.HEAD_TOO_LONG:
            self._refuse(conn, HeadTooLong())
        else:
            self._hand_over(conn, progress)

    def _reads_no_body(self, arrival: Arrival) -> bool:
        return arrival.has_head and self._bodiless is not None and bool(self._bodiless.match(arrival.data))

    def _wait_on(self, conn: Connection) -> None:
        if self.held_bytes > MAX_HELD_BYTES:
            self._refuse(conn, BodyTooLong() if conn.arrival.has_head else HeadTooLong())
            return
        if conn.arrival.expects_continue:
            conn.arrival.expects_continue = False
            with suppress(OSError):  # the client sends its body without this, or has disconnected
                conn.sock.send(CONTINUE)
        if not conn.deadline:
            self._unpark(conn)
            self._park_reading(conn)

    def _park_reading(self, conn: Connection) -> None:
        conn.deadline = time.monotonic() + self.timings.read_s
        self._park(conn, self.reading_conns, self.on_pending_socket_readable)

    def _hand_over(self, conn: Connection, progress: Progress) -> None:
        conn.progress = progress
        self._unpark(conn)
        self.enqueue_req(conn)

    def _refuse(self, conn: Connection, error: Exception) -> None:
        self._unpark(conn)
        self._release(conn)
        refuse(conn.sock, conn.client[0], error)
        self._linger(conn)

    def _release(self, conn: Connection) -> None:
        self.held_bytes -= conn.held_bytes
        conn.held_bytes = 0

    def _linger(self, conn: Connection) -> None:
        conn.forget()
        try:
            conn.sock.settimeout(0)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + self.timings.linger_s
        self._park(conn, self.lingering_conns, self._on_lingering_socket_readable)

    def _on_lingering_socket_readable(self, conn: Connection, _client: object) -> None:
        try:
            if conn.sock.recv(PIECE_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(conn)

    def _evict(self) -> None:
        for queue in (self.lingering_conns, self.pending_conns, self.reading_conns, self.keepalived_conns):
            if queue:
                queue[0].queue = queue
                self._drop(queue[0])
                return

    def _park(
        self, conn: Connection, queue: WaitQueue, on_readable: Callable[[Connection, object], None]
    ) -> None:
        conn.queue = queue
        queue.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def _unpark(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        if conn.queue is not None:
            conn.queue.remove(conn)
            conn.queue = None

    def _drop(self, conn: Connection) -> None:
        self._unpark(conn)
        self._release(conn)
        self.nr_conns -= 1
        conn.close()
