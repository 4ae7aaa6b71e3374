"""
The revocation feed: revocations for verifiers that check tokens themselves, in the order of the log.

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

#: Readers that may wait in one process: a quarter of its threads, to leave threads for other requests.
PLACES = 8

_CURSOR = re.compile(r"1:(0|[1-9][0-9]{0,15}):([0-9a-f]{16}|)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTimings:
    """Intervals and time limits of reads of SQL (seconds)."""

    #: While readers wait, SQL is asked for its highest number at this interval.
    look_every_s: float = 0.15
    #: Time limit of the first read in a process.
    first_look_s: float = 1.0


class FeedLog(Protocol):
    """The revocation log, as the feed reads it; raises StoreUnavailable."""

    def look(self, *, settled: int | None = None) -> Sight:
        """
        The head, and the transactions that may still commit lower numbers.

        Cheap if the head is still *settled*, an earlier result: then no lower number can appear.
        """

    def entry(self, seq: int) -> Revocation | None:
        """Entry *seq*, of any kind."""

    def fatal(self, *, after: int, upto: int, limit: int) -> Sequence[Revocation]:
        """Entries with ``after < seq <= upto`` that end tokens which can still be alive, in order."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    The position of a reader.

    ``trace`` is a digest of the entry *seq*. It detects a restored log, in which another entry has that
    number.
    """

    seq: int = 0
    trace: str = ""

    def text(self) -> str:
        """The opaque text for clients."""
        return base64.urlsafe_b64encode(f"1:{self.seq}:{self.trace}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor in *text*; raises ValueError unless :meth:`text` made it."""
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = _CURSOR.fullmatch(raw.decode("ascii"))
        cursor = cls(int(found[1]), found[2]) if found else cls()
        if cursor.text() != text:
            raise ValueError("not a cursor")
        return cursor

    @classmethod
    def behind(cls, entry: Revocation | None) -> Cursor:
        """The cursor after *entry*; None: the log is empty."""
        return cls() if entry is None else cls(entry.seq, entry.trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedQuery:
    """A request of a reader; *after* is a cursor's text, None for all entries that still matter."""

    after: str | None
    wait_s: float
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedAnswer:
    """
    One page of the feed.

    ``is_reset``: the cursor is not of this log; these entries start at the beginning of the log.
    ``has_more``: ask
    again at once.  ``waited_s`` after the request had arrived (negative: before) the answer was complete;
    later entries may be missing.  ``retry_after_s``: too many readers wait already.
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
    """Reads the head of the log for all waiting readers of this process: one read at a time."""

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
        The latest view, as soon as it has entries after *after*, or at *until_s* (monotonic).

        Returns at once if a read begun after *since_s* ends before *after*: the log was restored from a
        backup.
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
        """The view, renewed if it is due and no other thread is doing so; waits for the first view."""
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
        Read the head, unless another thread has just tried: a failed read loads the database, too.
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
        # The time of the read that settled it: later commits may not be included.
        self._view = _View(settled.seq, self._horizon.settled_at_s)
        if settled.seq != before:
            with self._changed:
                self._changed.notify_all()


class RevocationFeed:
    """Answers readers; at most *places* of them wait at a time, to leave threads for other requests."""

    def __init__(
        self, log: FeedLog, watcher: LogWatcher, monotonic: Monotonic, *, places: int = PLACES
    ) -> None:
        self._log = log
        self._watcher = watcher
        self._monotonic = monotonic
        self._places = threading.BoundedSemaphore(places)

    def read(self, query: FeedQuery, *, is_over: Callable[[], bool]) -> FeedAnswer:
        """
        The entries after the cursor; waits for one, until *is_over* returns True.

        Raises:
            Invalid: not a cursor.
            StoreUnavailable: SQL is away.
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
            # The log was restored from a backup while the reader waited.
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
        """
        The cursor after *head*, never before *start*: another process may have read the log later than this
        one.
        """
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
