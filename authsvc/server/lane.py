"""
The lane: token checks that are answered in the main loop, many with one read of Redis.

Only a plain check that can be answered with *yes* at once is answered here.  Every other request goes, with
its unchanged bytes, through the parser and a thread to the application.
"""

from __future__ import annotations

import logging
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from authsvc.server.arrival import Arrival, Progress
from authsvc.server.checks import CheckReader, CheckRequest
from authsvc.server.exchange import ClientLost, ResponseSender, opening_of
from authsvc.server.parking import Connection, ParkingWorker, WaitQueue

if TYPE_CHECKING:
    from authsvc.domain.tokens.checks import PolledReads

log = logging.getLogger(__name__)

#: Checks in one read: it occupies Redis for less than 0.1 ms.
MAX_BATCH: Final = 64
#: The share of the threads that may wait for slow clients: one in this many.
SLOW_SHARE: Final = 4


#: A request that can be asked about, and its answer but for the request id; the lane's own.
Prepared: TypeAlias = Any
Answer: TypeAlias = Any


class CheckLane(Protocol):
    """What an application provides so that its checks are answered here; no method waits or raises."""

    #: Requests with these methods, by path, on any port but the other.
    methods: Mapping[str, Sequence[str]]
    metrics_port: int
    #: Decides by the text of a ``traceparent`` whether a check is traced, which is done in a thread.
    sample: Callable[[str], bool]

    @property
    def reads(self) -> PolledReads:
        """What :meth:`ask` begins."""

    def open(self) -> bool:
        """Begin a round; True if there is something to be asked."""

    def prepare(self, request: CheckRequest) -> Prepared | None:
        """The request, if it can be asked about."""

    def ask(self, checks: Sequence[Prepared]) -> bool:
        """Begin to ask about all *checks*; False if that cannot be."""

    def answers(self, checks: Sequence[Prepared]) -> Sequence[Answer | None] | None:
        """
        The answer to each; None where a thread has to answer, as to all after a failure.

        None in all while nothing has come from Redis.
        """

    def text(self, prepared: Prepared, answer: Answer, given_id: bytes, took_s: float) -> bytes:
        """The answer's text under the client's request id if that is sane, else a new one; noted."""

    def upkeep(self) -> None:
        """Do what keeps the lane open; called in a thread every half second, for it may wait."""


class Waiting(NamedTuple):
    """A check that waits for its answer, and the bytes that it came in."""

    conn: Connection
    check: Prepared
    request: CheckRequest
    data: bytes
    began_s: float


def _keep_up(lane: CheckLane) -> None:
    try:
        lane.upkeep()
    except Exception:
        # The end of the thread: nobody looks at its result.
        log.exception("lane.neglected")


class LaneWorker(ParkingWorker):
    """Answers checks in the main loop, as far as the application's ``lane`` can."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.lane: CheckLane | None = None
        self.sender = ResponseSender(max(1, self.cfg.threads // SLOW_SHARE), within_s=self.timings.send_s)
        self._reader: CheckReader
        #: Connections whose request is being answered here, or will be.
        self.checking_conns = WaitQueue()
        self._batch: list[Waiting] = []
        #: When, on the monotonic clock, the read under way must have been answered.
        self._due_s = 0.0
        self._next: list[Waiting] = []
        #: Whether the lane is open in this round of the loop; None before anybody has asked.
        self._is_open: bool | None = None
        #: When the lane was first asked in this round.
        self._began_s = 0.0
        self._upkeep: Future[None] | None = None
        self._upkeep_at_s = 0.0
        self._notify_at_s = 0.0
        #: The lane's sockets that are watched; True for those that are watched for writing, too.
        self._watched: Mapping[socket.socket, bool] = {}

    def load_wsgi(self) -> None:
        """Load the application, and take its lane."""
        super().load_wsgi()
        sys.setswitchinterval(self.timings.switch_s)
        self.lane = getattr(self.wsgi, "lane", None)
        if self.lane is not None:
            self._reader = CheckReader(self.lane.methods)

    def notify(self) -> None:
        """Tell the master that the loop goes round."""
        now_s = time.monotonic()
        if now_s >= self._notify_at_s:
            self._notify_at_s = now_s + self.timings.notify_s
            super().notify()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Rounds of the loop until no check waits; behind each, one read for all checks that came in."""
        lane = self.lane
        if lane is None:
            super().wait_for_and_dispatch_events(timeout)
            self._end_round()
            return
        ends_s = time.monotonic() + self.timings.checks_s
        while True:
            left_s = max(0.0, self._due_s - time.monotonic()) if self._batch else timeout
            self._is_open = None
            super().wait_for_and_dispatch_events(min(timeout, left_s))
            self._end_round()
            if self._batch and time.monotonic() >= self._due_s:
                lane.reads.abandon()
                self._watch()
                self._finish(lane, [None] * len(self._batch))
            if self._next and not self._batch:
                # Some have arrived since, mostly from clients that were just answered: one read for all.
                super().wait_for_and_dispatch_events(0)
                self._end_round()
                self._ask(lane)
            if not self._batch or time.monotonic() >= ends_s:
                break
        if time.monotonic() >= self._upkeep_at_s:
            self._begin_upkeep(lane)

    def _end_round(self) -> None:
        """Called when all that had arrived was read."""

    def _begin_upkeep(self, lane: CheckLane) -> None:
        if self._upkeep is None or self._upkeep.done():
            self._upkeep_at_s = time.monotonic() + self.timings.upkeep_s
            self._upkeep = self.tpool.submit(_keep_up, lane)

    def _receive(self, conn: Connection) -> None:
        if conn.queue is self.checking_conns:  # its next request, or its end: later
            self.poller.unregister(conn.sock)
            conn.is_watched = False
        else:
            super()._receive(conn)

    def _take(self, conn: Connection, piece: bytes) -> None:
        if conn.arrival.data or not self._enters(conn, piece):
            super()._take(conn, piece)
        else:
            conn.held_bytes += len(piece)
            self.held_bytes += len(piece)

    def _hand_over(self, conn: Connection, progress: Progress) -> None:
        is_in_pieces = isinstance(conn.arrival.data, bytearray)
        if not (is_in_pieces and progress is Progress.WHOLE and self._enters(conn, bytes(conn.arrival.data))):
            super()._hand_over(conn, progress)

    def _enters(self, conn: Connection, data: bytes) -> bool:
        """True if *data* is a check that waits for the next read from now on."""
        lane = self.lane
        if lane is None or not self.alive or conn.server[1] == lane.metrics_port:
            return False
        request = self._reader.read(data)
        if request is None or not self._has_room(lane):
            return False
        check = lane.prepare(request)
        if check is None:
            return False
        conn.is_sampled = lane.sample(request.traceparent.decode("latin-1"))
        if conn.is_sampled:
            return False
        if conn.deadline:  # it came in pieces
            conn.arrival, conn.deadline = Arrival(), 0.0
        self._move(conn, self.checking_conns)
        self._next.append(Waiting(conn, check, request, data, self._began_s))
        return True

    def _has_room(self, lane: CheckLane) -> bool:
        if self._is_open is None:
            self._began_s = time.monotonic()
            self._is_open = lane.open()
            self._watch()
        return self._is_open and len(self.keepalived_conns) < self.max_keepalived

    def _ask(self, lane: CheckLane) -> None:
        self._batch, self._next = self._next[:MAX_BATCH], self._next[MAX_BATCH:]
        is_asked = lane.ask([waiting.check for waiting in self._batch])
        self._due_s = lane.reads.due_s
        self._watch()
        if not is_asked:  # nor could be those that wait for the next read
            self._batch, self._next = [*self._batch, *self._next], []
            self._finish(lane, [None] * len(self._batch))

    def _on_answer(self, _sock: object) -> None:
        lane = self.lane
        if lane is None:
            return
        answers = lane.answers([waiting.check for waiting in self._batch])
        self._watch()
        if answers is not None:
            self._finish(lane, answers)

    def _finish(self, lane: CheckLane, answers: Sequence[Answer | None]) -> None:
        batch, self._batch = self._batch, []
        now_s = time.monotonic()
        for waiting, answer in zip(batch, answers, strict=True):
            if answer is None:
                self._take_ordinary_way(waiting.conn, waiting.data)
            else:
                self._grant(lane, waiting, answer, now_s)

    def _grant(self, lane: CheckLane, waiting: Waiting, answer: Answer, now_s: float) -> None:
        conn, check, request, _, began_s = waiting
        closes = request.closes or not self.alive
        text = lane.text(check, answer, request.request_id, now_s - began_s)
        self._send(conn, opening_of("200 OK", closes=closes) + text, now_s, closes=closes)

    def _send(self, conn: Connection, data: bytes, now_s: float, *, closes: bool) -> None:
        """Send the answer to a connection whose request is being answered here."""
        try:
            sent = conn.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # gone, which the thread will find, too
            sent = 0
        if sent < len(data):
            self._send_in_thread(conn, data[sent:], closes=closes)
            return
        self._release(conn)
        if closes:
            self._leave(conn)
            self._linger(conn)
        else:
            self._keep(conn, now_s)

    def _keep(self, conn: Connection, now_s: float) -> None:
        """Let the connection wait for its next request."""
        conn.timeout = now_s + self.timings.keepalive_s
        self._move(conn, self.keepalived_conns)
        if not conn.is_watched:
            conn.is_watched = True
            self.poller.register(
                conn.sock, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn)
            )

    def _move(self, conn: Connection, queue: WaitQueue) -> None:
        if conn.queue is not None:
            conn.queue.remove(conn)
        conn.queue = queue
        queue.append(conn)

    def _leave(self, conn: Connection) -> None:
        """Take the connection from the loop."""
        self.checking_conns.remove(conn)
        conn.queue = None
        if conn.is_watched:
            self.poller.unregister(conn.sock)
        conn.is_watched = True

    def _take_ordinary_way(self, conn: Connection, data: bytes) -> None:
        """Hand the very bytes that came in to a thread."""
        self._leave(conn)
        conn.arrival.add(data)
        conn.progress = Progress.WHOLE
        self.enqueue_req(conn)

    def _send_in_thread(self, conn: Connection, data: bytes, *, closes: bool) -> None:
        """Wait in a thread for a client that does not read."""
        self._leave(conn)
        conn.init()
        future = self.tpool.submit(self._send_rest, conn.sock, data, closes=closes)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def _send_rest(self, sock: socket.socket, data: bytes, *, closes: bool) -> bool:
        """Whether the connection can serve another request."""
        try:
            self.sender.send(sock, data, 0.0)
        except ClientLost as lost:
            log.debug("connection.lost", extra={"reason": str(lost)})
            return False
        return not closes

    def _watch(self) -> None:
        """Watch the lane's sockets, whichever they are now."""
        wanted = self.lane.reads.sockets if self.lane is not None else {}
        if wanted == self._watched:
            return
        for sock, is_writing in self._watched.items():
            if wanted.get(sock) is not is_writing:
                # Also if it is closed already: its descriptor may soon be that of a client's connection.
                self.poller.unregister(sock)
        for sock, is_writing in wanted.items():
            if self._watched.get(sock) is not is_writing:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_writing else 0)
                self.poller.register(sock, events, self._on_answer)
        self._watched = wanted
