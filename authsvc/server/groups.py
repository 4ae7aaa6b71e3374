"""
Plain POST requests that are answered many at once: a thread takes all that wait for the same path.

They share the round trips to the stores, and the hand-over between the main loop and the thread.  While two
groups are being answered, the next one gathers.  Every other request goes through the parser to the
application.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple, Protocol

from authsvc.server.arrival import Arrival
from authsvc.server.checks import PostReader, PostRequest
from authsvc.server.exchange import opening_of, refuse
from authsvc.server.lane import LaneWorker
from authsvc.server.parking import Connection

#: Requests in one group: one of them waits for the work of all.
MAX_GROUP: Final = 32
#: Groups of one path that are answered at the same time: while one waits for a store, the other computes.
GROUPS_AT_ONCE: Final = 2


class Answer(Protocol):
    """An answer but for what every one begins with: its status, and all after the date."""

    @property
    def status(self) -> str:
        """Code and phrase."""

    @property
    def rest(self) -> bytes:
        """Further header fields, and the body."""


class GroupedRoutes(Protocol):
    """What an application provides so that its requests are answered in groups."""

    @property
    def paths(self) -> Sequence[str]:
        """Where POST requests are answered, on any port but the metrics port."""

    @property
    def metrics_port(self) -> int:
        """That port."""

    def answer(self, requests: Sequence[PostRequest], /) -> Sequence[Answer | None]:
        """The answer to each of *requests*, which have one path; None where the application has to answer."""


class Member(NamedTuple):
    """A request of a group, with its connection and the bytes that came in."""

    conn: Connection
    request: PostRequest
    data: bytes


class GroupWorker(LaneWorker):
    """Gathers plain POST requests by path, and has each group answered by one thread."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.grouped: GroupedRoutes | None = None
        self._post_reader: PostReader
        #: Requests that wait, by path.
        self._gathered: dict[str, list[Member]] = {}
        #: How many groups are being answered, by path.
        self._answering: Counter[str] = Counter()

    def load_wsgi(self) -> None:
        """Load the application, and take its grouped routes."""
        super().load_wsgi()
        self.grouped = getattr(self.wsgi, "grouped", None)
        if self.grouped is not None:
            self._post_reader = PostReader(self.grouped.paths)

    def _enters(self, conn: Connection, data: bytes) -> bool:
        return self._joins(conn, data) if data.startswith(b"POST ") else super()._enters(conn, data)

    def _joins(self, conn: Connection, data: bytes) -> bool:
        """True if *data* is a request that waits for its group from now on."""
        grouped = self.grouped
        if grouped is None or not self.alive or conn.server[1] == grouped.metrics_port:
            return False
        request = self._post_reader.read(data, address=conn.client[0], began_s=time.monotonic())
        if request is None or len(self.keepalived_conns) >= self.max_keepalived:
            return False
        if conn.deadline:  # it came in pieces
            conn.arrival, conn.deadline = Arrival(), 0.0
        self._move(conn, self.checking_conns)
        self._gathered.setdefault(request.path, []).append(Member(conn, request, data))
        return True

    def _end_round(self) -> None:
        if self.grouped is not None:
            for path in self._gathered:
                self._answer_next(self.grouped, path)

    def _answer_next(self, grouped: GroupedRoutes, path: str) -> None:
        """Have a thread answer those that wait, unless enough threads are answering others."""
        waiting = self._gathered.get(path)
        if not waiting or self._answering[path] >= GROUPS_AT_ONCE:
            return
        group, self._gathered[path] = waiting[:MAX_GROUP], waiting[MAX_GROUP:]
        self._answering[path] += 1
        future = self.tpool.submit(grouped.answer, [member.request for member in group])
        done = partial(self.method_queue.defer, self._finish_group, path, group)
        future.add_done_callback(done)

    def _finish_group(
        self,
        path: str,
        group: Sequence[Member],
        future: Future[Sequence[Answer | None]],
    ) -> None:
        """Send the answers; the next group begins when what has arrived meanwhile was read."""
        self._answering[path] -= 1
        error = future.exception()
        if error is not None:
            for member in group:
                self._fail(member.conn, error)
            return
        now_s = time.monotonic()
        for member, answer in zip(group, future.result(), strict=True):
            if answer is None:
                self._take_ordinary_way(member.conn, member.data)
            else:
                closes = member.request.closes or not self.alive
                data = opening_of(answer.status, closes=closes) + answer.rest
                self._send(member.conn, data, now_s, closes=closes)

    def _fail(self, conn: Connection, error: BaseException) -> None:
        """Answer a request that the application did not answer."""
        self._leave(conn)
        self._release(conn)
        refuse(conn.sock, conn.client[0], error)
        self._linger(conn)
