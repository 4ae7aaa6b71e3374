"""
The worker process: gunicorn's threads, with every connection parked until its request is there.

Stock ``gthread`` gives a new connection a thread before it has sent a byte, for up to 5 s, and reads
requests without a deadline: as many silent or slow clients as threads, and nobody else is served.  Here
the main loop waits and reads; a thread is for a request that has arrived.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.sock import BaseSocket
from gunicorn.workers.gthread import TConn, ThreadWorker

from authsvc.observability.logs import bind_request, get_logger
from authsvc.server.exchange import Answer, Body, ErrorLog, TimedSocket, length_of, refuse

#: A request must have arrived, its body included, so long after its first byte.
READ_DEADLINE_S = 5.0
#: A connection closes when the client has closed it too, or so long after; before, it could lose the answer.
LINGER_S = 2.0
#: A stopping worker still accepts for so long while it has work, to say to probes that it is not ready.
NOTICE_S = 2.0
PIECE_BYTES = 65_536
#: Larger requests get a thread to be refused or streamed in; the application takes 64 KiB at most.
MAX_PARKED_BODY_BYTES = 65_536
MAX_LINE_BYTES = 4_094
MAX_FIELDS = 100
MAX_FIELD_BYTES = 8_190
MAX_PARKED_HEAD_BYTES = MAX_LINE_BYTES + MAX_FIELDS * (MAX_FIELD_BYTES + 2)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:", re.IGNORECASE)


def has_arrived(data: bytes) -> bool:
    """
    True if *data* is worth a thread: a request as a whole, or something that waiting will not improve.

    A guess for the order of work alone; what the request means is the parser's to say.
    """
    end = data.find(b"\r\n\r\n", 2)
    if end < 0:
        return len(data) > MAX_PARKED_HEAD_BYTES or _is_hopeless(data)
    length = _LENGTH.search(data, 0, end + 2)
    if length is None:
        return True
    missing = end + 4 + int(length[1]) - len(data)
    return missing <= 0 or int(length[1]) > MAX_PARKED_BODY_BYTES or bool(_EXPECTS.search(data, 0, end))


def _is_hopeless(head: bytes) -> bool:
    """True where no further byte can make an unfinished head right: a bare LF, an endless first line."""
    return head.count(b"\n") != head.count(b"\r\n") or (
        len(head) > MAX_LINE_BYTES and head.find(b"\r\n", 2, MAX_LINE_BYTES + 4) < 0
    )


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no annotations
    """A client's connection and what it has sent of its next request."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.parser: RequestParser
        self.received = b""
        #: The queue of connections in which this one waits.
        self.lot: deque[Connection] = deque()
        #: When the request being received must be complete, on the monotonic clock.
        self.deadline = 0.0
        self.source = TimedSocket(self.sock)

    def init(self) -> None:
        """Make what was received ready for the parser, and let it wait for the rest until the deadline."""
        if self.parser is None:
            self.parser = http.get_parser(self.cfg, self.source, self.client)
        self.parser.unreader.unread(self.received)
        self.received = b""
        self.source.deadline = self.deadline or time.monotonic() + READ_DEADLINE_S
        self.deadline = 0.0


class ParkingWorker(ThreadWorker):  # type: ignore[misc]
    """Waits for requests in the main loop: silent clients cost a descriptor each, never a thread."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        #: Connections with a part of a request; those to be closed as soon as the client has seen our end.
        self.reading_conns: deque[Connection] = deque()
        self.lingering_conns: deque[Connection] = deque()

    def accept(self, listener: BaseSocket) -> None:
        """Take a new connection and park it; where too many are open, a silent one gives way."""
        try:
            client_sock, address = listener.accept()
        except OSError as error:  # gone again, or no descriptor is left; the next round tries again
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
        conn.lot = self.keepalived_conns
        self._receive(conn)

    def finish_request(self, conn: Connection, future: Future[bool]) -> None:
        """Park the connection for its next request, or say good-bye."""
        if future.cancelled() or future.exception() or not future.result():
            self._linger(conn)
            return
        conn.received = conn.parser.unreader.take_buffered()
        if not conn.received:
            super().finish_request(conn, future)
        elif has_arrived(conn.received):
            self.enqueue_req(conn)
        else:
            conn.sock.settimeout(0)
            self._park_reading(conn)

    def murder_pending(self) -> None:
        """End what has waited too long; half a request is answered for what it is."""
        super().murder_pending()
        now = time.monotonic()
        while self.reading_conns and self.reading_conns[0].deadline <= now:
            self._hand_over(self.reading_conns[0])
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
        conn.received += piece
        if not conn.received:
            self._drop(conn)
        elif not piece or has_arrived(conn.received):
            self._hand_over(conn)
        elif not conn.deadline:
            self._unpark(conn)
            self._park_reading(conn)

    def _park_reading(self, conn: Connection) -> None:
        conn.deadline = time.monotonic() + READ_DEADLINE_S
        self._park(conn, self.reading_conns, self.on_pending_socket_readable)

    def _hand_over(self, conn: Connection) -> None:
        self._unpark(conn)
        self.enqueue_req(conn)

    def _linger(self, conn: Connection) -> None:
        try:
            conn.sock.settimeout(0)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + LINGER_S
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
        for lot in (self.lingering_conns, self.pending_conns, self.reading_conns, self.keepalived_conns):
            if lot:
                lot[0].lot = lot
                self._drop(lot[0])
                return

    def _park(
        self, conn: Connection, lot: deque[Connection], on_readable: Callable[[Connection, object], None]
    ) -> None:
        conn.lot = lot
        lot.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def _unpark(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        conn.lot.remove(conn)

    def _drop(self, conn: Connection) -> None:
        self._unpark(conn)
        self.nr_conns -= 1
        conn.close()


class Worker(ParkingWorker):
    """
    Answers requests, and stops in good order.

    The application finds in the environ ``authsvc.draining``, a ``threading.Event`` that is set when the
    worker has been told to stop, and a body whose faults are OSErrors.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.draining = threading.Event()
        self.errors = ErrorLog()
        self._refuses_at = 0.0

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - gunicorn's signature
        """
        Start or stop accepting.

        Told to stop, gunicorn's loop asks for the latter at once: the worker is not ready from then on, but
        while it still has work it says so to whoever asks, until its notice is over.
        """
        if enabled or self.alive:
            super().set_accept_enabled(enabled)
        else:
            self.draining.set()
            self._refuses_at = time.monotonic() + NOTICE_S

    def murder_pending(self) -> None:
        """End what has waited too long, accepting while stopping included."""
        super().murder_pending()
        if self._accepting and self._refuses_at and time.monotonic() >= self._refuses_at:
            super().set_accept_enabled(enabled=False)
            # Newcomers shall be refused now, not queue up for an answer that never comes.
            for listener in self.sockets:
                listener.close()

    def handle(self, conn: Connection) -> bool:
        """Answer one request in a pool thread; True if the connection can serve another."""
        bind_request("")
        request = None
        try:
            conn.init()
            request = next(conn.parser)
            return bool(self._keepalive_after(conn, self.handle_request(request, conn)))
        except (StopIteration, NoMoreData, TimeoutError, ConnectionError) as error:
            get_logger().debug("connection.lost", reason=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is, it is answered
            self.handle_error(request, conn.sock, conn.client, error)
        return False

    def handle_request(self, request: Request, conn: Connection) -> bool:
        """Run the application; True if the connection stays open."""
        answer, environ = wsgi.create(
            request, conn.sock, conn.client, conn.server, self.cfg, response_class=Answer
        )
        environ["wsgi.multithread"] = True
        environ["wsgi.errors"] = self.errors
        environ["wsgi.input"] = Body(request.body, length_of(environ))
        environ["authsvc.draining"] = self.draining
        if self._is_last():
            answer.force_close()
        try:
            self._answer(answer, environ)
        except Exception as error:
            if answer.headers_sent:  # too late for another status: the client must see that it is cut off
                get_logger().error("response.broken", exc_info=error)
                return False
            raise
        return not answer.should_close()

    def handle_error(
        self, _request: Request, client: socket.socket, address: object, error: BaseException
    ) -> None:
        """Say what was wrong with a request that the application has not answered."""
        refuse(client, address[0] if isinstance(address, tuple) else "", error)

    def _answer(self, answer: Answer, environ: dict[str, Any]) -> None:
        pieces = self.wsgi(environ, answer.start_response)
        try:
            for piece in pieces:
                answer.write(piece)
            answer.close()
        finally:
            if hasattr(pieces, "close"):
                pieces.close()

    def _is_last(self) -> bool:
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False
        return self.draining.is_set() or not self.alive or len(self.keepalived_conns) >= self.max_keepalived

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)
