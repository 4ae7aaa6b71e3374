"""
The revocation feed: what verifiers that check tokens by themselves must hear, in the order of the log.

A reader asks for what came after its cursor, and waits for a while if there is nothing.  An empty answer says
that there was nothing up to the last look at SQL.  All readers of a process share one read of the log's head,
also those that cannot wait and are answered at once.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from authsvc.domain.errors import Invalid, StoreUnavailable
from authsvc.domain.revocations import Horizon, Revocation, Sight
from authsvc.domain.values.clocks import Monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The longest wait (seconds): proxies close connections that are silent for a minute, and a stopping worker
#: waits for 20 s.
MAX_WAIT_S = 15.0
MAX_PAGE = 1000
#: A reader that could not wait asks again after this time (seconds).
RETRY_AFTER_S = 0.5

#: Readers that wait in one process: a quarter of its threads, so that the feed leaves room for all else.
PLACES = 8

_CURSOR = re.compile(r"1:(0|[1-9][0-9]{0,15}):([0-9a-f]{16}|)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTimings:
    """How often, and how long, SQL is asked (seconds)."""

    #: While anybody waits, SQL is asked so often for its highest number.
    look_every_s: float = 0.15
    #: The first look of a process is waited for so long.
    first_look_s: float = 1.0


class FeedLog(Protocol):
    """The log as the feed reads it; raises StoreUnavailable."""

    def look(self, *, settled: int | None = None) -> Sight:
        """
        The head, and who may still commit lower numbers.

        Cheap where the head is *settled* still, an earlier answer: nobody can.
        """

    def entry(self, seq: int) -> Revocation | None:
        """Entry *seq*, whatever it is about."""

    def fatal(self, *, after: int, upto: int, limit: int) -> Sequence[Revocation]:
        """Entries with ``after < seq <= upto`` that end tokens which can still be alive, in order."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    How far a reader has come.

    ``trace`` is drawn from the entry *seq* itself: in a log that was restored and has grown past *seq*
    since, another entry has that number.
    """

    seq: int = 0
    trace: str = ""

    def text(self) -> str:
        """What a client keeps, without a meaning to it."""
        return base64.urlsafe_b64encode(f"1:{self.seq}:{self.trace}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor in *text*; raises ValueError for anything that :meth:`text` did not make."""
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = _CURSOR.fullmatch(raw.decode("ascii"))
        cursor = cls(int(found[1]), found[2]) if found else cls()
        if cursor.text() != text:
            raise ValueError("not a cursor")
        return cursor

    @classmethod
    def behind(cls, entry: Revocation | None) -> Cursor:
        """The cursor of a reader who knows everything up to *entry*; None: there is none yet."""
        return cls() if entry is None else cls(entry.seq, entry.trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedQuery:
    """What a reader asks for; *after* is a cursor's text, None for everything that still matters."""

    after: str | None
    wait_s: float
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedAnswer:
    """
    A part of the feed.

    ``is_reset``: the cursor is not of this log, and these entries begin at its beginning.  ``has_more``: ask
    again at once.  ``waited_s`` after the request had arrived (negative: before) the answer was complete;
    nothing is known of what came later.  ``retry_after_s``: nobody can wait here now.
    """

    entries: tuple[Revocation, ...]
    cursor: Cursor
    is_reset: bool
    has_more: bool
    waited_s: float
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class _View:
    """The head of the log: everything committed before *began_s* (monotonic) is included."""

    head: int
    began_s: float


class LogWatcher:
    """Reads the head of the log for all who wait in this process: one read at a time, as often as needed."""

    def __init__(self, log: FeedLog, monotonic: Monotonic, timings: FeedTimings | None = None) -> None:
        self._log = log
        self._monotonic = monotonic
        self._timings = timings or FeedTimings()
        self._looking = threading.Lock()
        self._looked_s = -self._timings.look_every_s
        self._horizon = Horizon()
        self._changed = threading.Condition()
        self._view: _View | None = None

    def wait(self, *, after: int, since_s: float, until_s: float, is_over: Callable[[], bool]) -> _View:
        """
        The latest view once it has news behind *after*, or when *until_s* (monotonic) has come.

        Sooner, too, if it lies before *after*, and not because it is from before *since_s*: SQL went back.
        """
        while True:
            view = self._latest()
            left_s = until_s - self._monotonic()
            if view.head > after or left_s <= 0 or is_over():
                return view
            if view.head < after and view.began_s >= since_s:
                return view
            with self._changed:
                self._changed.wait(min(left_s, self._timings.look_every_s))

    def _latest(self) -> _View:
        """The view, renewed if that is due and no other thread does it; the first view is waited for."""
        if self._looking.acquire(timeout=0 if self._view else self._timings.first_look_s):
            try:
                self._renew()
            finally:
                self._looking.release()
        if self._view is None:
            raise StoreUnavailable("sql: no look at the log yet")
        return self._view

    def _renew(self) -> None:
        """
        Read the head, unless another thread has just tried: even a failed read costs the database something.
        """
        began_s = self._monotonic()
        if began_s - self._looked_s < self._timings.look_every_s:
            return
        self._looked_s = began_s
        before = self._view.head if self._view else None
        self._horizon.look(self._log.look(settled=before), began_s)
        settled = self._horizon.settled
        if settled is None:
            return
        # As of the look that settled it: what was committed since may lie beyond.
        self._view = _View(settled.seq, self._horizon.settled_at_s)
        if settled.seq != before:
            with self._changed:
                self._changed.notify_all()


class RevocationFeed:
    """Answers readers; at most *places* of them wait at a time, so that threads are left for all else."""

    def __init__(
        self, log: FeedLog, watcher: LogWatcher, monotonic: Monotonic, *, places: int = PLACES
    ) -> None:
        self._log = log
        self._watcher = watcher
        self._monotonic = monotonic
        self._places = threading.BoundedSemaphore(places)

    def read(self, query: FeedQuery, *, is_over: Callable[[], bool]) -> FeedAnswer:
        """
        What came after the cursor; waits for it, until *is_over* says that nobody may wait any longer.

        Raises:
            Invalid: the cursor is none.
            StoreUnavailable: SQL cannot say.
        """
        arrived_s = self._monotonic()
        cursor = _parsed(query.after)
        is_reset = not self._is_of_this_log(cursor)
        start = Cursor() if is_reset else cursor
        with self._place() as has_place:
            may_wait = has_place and not is_reset
            until_s = arrived_s + (query.wait_s if may_wait else 0)
            wait = partial(self._watcher.wait, since_s=arrived_s, until_s=until_s, is_over=is_over)
            entries, view = self._news(start.seq, query.limit, wait)
        if view.head < start.seq and view.began_s >= arrived_s:
            # SQL went back while the reader waited.
            return self.read(replace(query, wait_s=0), is_over=is_over)
        has_more = len(entries) > query.limit
        entries = entries[: query.limit]
        return FeedAnswer(
            entries=tuple(entries),
            cursor=Cursor.behind(entries[-1]) if has_more else self._cursor(start, view.head),
            is_reset=is_reset,
            has_more=has_more,
            waited_s=view.began_s - arrived_s,
            retry_after_s=RETRY_AFTER_S if query.wait_s and (not has_place or is_over()) else None,
        )

    def _is_of_this_log(self, cursor: Cursor) -> bool:
        return cursor == Cursor() or cursor == Cursor.behind(self._log.entry(cursor.seq))

    def _news(self, after: int, limit: int, wait: Callable[..., _View]) -> tuple[list[Revocation], _View]:
        """
        The entries after *after*, one more than *limit*; many entries of the log end no token and are
        skipped.
        """
        while True:
            view = wait(after=after)
            found = list(self._log.fatal(after=after, upto=view.head, limit=limit + 1))
            if found or view.head <= after:
                return found, view
            after = view.head

    def _cursor(self, start: Cursor, head: int) -> Cursor:
        """Behind *head*, never before *start*: another process may have looked later than this one."""
        return start if head <= start.seq else Cursor.behind(self._log.entry(head))

    @contextmanager
    def _place(self) -> Iterator[bool]:
        has_place = self._places.acquire(blocking=False)
        try:
            yield has_place
        finally:
            if has_place:
                self._places.release()


def _parsed(text: str | None) -> Cursor:
    try:
        return Cursor() if text is None else Cursor.parse(text)
    except ValueError as error:
        raise Invalid({"after": ["Not a cursor of this feed."]}) from error
