"""
The writer of the audit trail: rows are stored at once if SQL answers, otherwise later.

One thread writes all waiting rows in one transaction. Callers wait until their row is stored, but not if SQL
does not answer: then rows wait in memory, and those beyond its limit are only counted. So an outage delays no
request, and many events need no more connections.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from authsvc.domain.audit import AuditTrail, Entry
from authsvc.domain.errors import StoreUnavailable

#: Largest number of waiting rows, and of rows in one transaction.
CAPACITY = 1000
BATCH = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailTimings:
    """How long callers wait for their rows (seconds)."""

    #: Longer than any commit of a healthy server, shorter than the deadline for a hung one.
    wait_s: float = 1.0
    retry_s: float = 1.0
    closing_s: float = 3.0


class TrailWriter:
    """Stores entries in order on its own thread; *on_unwritten* is called with the number of lost entries."""

    def __init__(
        self,
        trail: AuditTrail,
        *,
        on_unwritten: Callable[[int], None],
        capacity: int = CAPACITY,
        timings: TrailTimings | None = None,
    ) -> None:
        self._timings = timings or TrailTimings()
        self._trail = trail
        self._on_unwritten = on_unwritten
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._accepted = self._settled = self._lost = 0
        self._is_stuck = self._is_closing = False
        self._thread: threading.Thread | None = None

    def put(self, entry: Entry) -> None:
        """Store *entry* soon; does not wait."""
        self._accept(entry)

    def put_and_wait(self, entry: Entry) -> None:
        """Store *entry* before this returns, unless SQL does not answer in time."""
        number = self._accept(entry)
        with self._changed:
            self._changed.wait_for(lambda: self._settled >= number or self._is_stuck, self._timings.wait_s)

    def lose(self, count: int) -> None:
        """Count *count* entries as unwritten."""
        self._lost += count
        self._on_unwritten(count)

    def close(self) -> None:
        """Store the waiting entries if SQL answers, and stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._timings.closing_s)

    def _accept(self, entry: Entry) -> int:
        """The sequence number of *entry* in the queue; 0 if the queue is full."""
        with self._changed:
            if self._is_closing or len(self._waiting) >= self._capacity:
                self.lose(1)
                return 0
            self._waiting.append(entry)
            self._accepted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self._accepted

    def _run(self) -> None:
        while batch := self._next():
            self._attempt(batch)

    def _next(self) -> list[Entry]:
        """The oldest waiting entries, which stay in the queue until they are settled; empty after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return list(islice(self._waiting, BATCH))

    def _attempt(self, batch: Sequence[Entry]) -> None:
        try:
            self._trail.write(batch)
        except StoreUnavailable as error:
            self._delay(error)
        except Exception:
            # Top of the thread: it must survive unexpected exceptions.
            log.exception("audit.crashed")
            self.lose(len(batch))
            self._settle(len(batch))
        else:
            self._settle(len(batch))

    def _settle(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            self._settled += count
            self._is_stuck = False
            lost, self._lost = self._lost, 0
            self._changed.notify_all()
        if lost:
            log.error("audit.unwritten", extra={"count": lost})

    def _delay(self, error: StoreUnavailable) -> None:
        """Release all waiting callers, and retry a little later; not after the end."""
        if not self._is_stuck:
            log.warning("audit.delayed", extra={"cause": error.store})
        with self._changed:
            self._is_stuck = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closing, self._timings.retry_s)
            left = len(self._waiting) if self._is_closing else 0
        if left:
            self.lose(left)
            self._settle(left)


class Tally:
    """
    Counts of equal events, and when to write them: at the 1st, 10th, 100th … event.

    Counts restart every *window_s* seconds; each window distinguishes at most *most* events.
    """

    def __init__(self, *, window_s: int, most: int) -> None:
        self._window_s = window_s
        self._most = most
        self._lock = threading.Lock()
        self._window = 0
        self._seen: dict[str, int] = {}

    def window(self, at: datetime) -> int:
        """The number of the window that contains *at*, the same in every process."""
        return int(at.timestamp()) // self._window_s

    def see(self, thing: str, at: datetime) -> int | None:
        """
        The increase of the count of *thing* to write now, mostly 0; None if there are too many different
        things.
        """
        with self._lock:
            if self.window(at) > self._window:
                self._window = self.window(at)
                self._seen.clear()
            if thing not in self._seen and len(self._seen) >= self._most:
                return None
            seen = self._seen[thing] = self._seen.get(thing, 0) + 1
        return seen - seen // 10 if _is_power_of_ten(seen) else 0


def _is_power_of_ten(number: int) -> bool:
    return str(number).rstrip("0") == "1"
