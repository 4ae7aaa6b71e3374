"""The thread that compares Redis with SQL every second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from authsvc.cache.errors import CacheError
from authsvc.domain.errors import StoreUnavailable
from authsvc.store.copies.reconciler import Reconciler

#: Consecutive failures after which a line is logged.
NOTABLE_FAILURES: Final = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatTimings:
    """Time between two comparisons (seconds)."""

    interval_s: float = 1.0
    #: Shortest time between two comparisons, if a new connection wakes the thread early.
    shortest_s: float = 0.1


class Heartbeat:
    """
    Runs the comparison every second on its own thread, sooner if it is woken.

    *alongside* is called after each.  Logs when Redis becomes proven, or is not any more.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        alongside: Callable[[], object],
        timings: HeartbeatTimings | None = None,
    ) -> None:
        self._timings = timings or HeartbeatTimings()
        self._reconciler = reconciler
        self._alongside = alongside
        self._afterwards: list[Callable[[], None]] = []
        self._failures = 0
        self._is_believed = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: Set after the first attempt of a comparison.
        self.has_begun = threading.Event()

    def start(self) -> None:
        """Start the thread; once per process, after the fork."""
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def when_begun(self, begin: Callable[[], None]) -> None:
        """Have *begin* called after the first comparison; call this before :meth:`start`."""
        self._afterwards.append(begin)

    def wake(self) -> None:
        """Compare soon: a connection was made that no comparison has covered yet."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the current comparison."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            is_proven = self.beat()
            self.has_begun.set()
            self._go_along(is_proven=is_proven)
            self._wake.wait(self._timings.interval_s - self._timings.shortest_s)
            self._wake.clear()
            self._stop.wait(self._timings.shortest_s)

    def beat(self) -> bool:
        """Run one comparison; after a failure, the next one is tried as usual."""
        try:
            return self._note(is_proven=self._reconciler.tick(), cause="sql or another process at work")
        except (CacheError, StoreUnavailable) as error:
            return self._note(is_proven=False, cause=str(error))
        except Exception:
            # Top of the thread: it must survive unexpected exceptions.
            log.exception("reconciler.crashed")
            return self._note(is_proven=False, cause="crashed")

    def _go_along(self, *, is_proven: bool) -> None:
        """Call *alongside* after a comparison; its failure does not stop the next comparison."""
        try:
            while is_proven and self._afterwards:
                self._afterwards.pop()()
            self._alongside()
        except Exception:
            log.exception("reconciler.crashed")

    def _note(self, *, is_proven: bool, cause: str) -> bool:
        """
        Log when Redis becomes proven, and when it has failed twice in a row: single failures are normal.
        """
        self._failures = 0 if is_proven else self._failures + 1
        if is_proven and not self._is_believed:
            self._is_believed = True
            log.info("redis.proven")
        elif self._failures == NOTABLE_FAILURES:
            self._is_believed = False
            log.warning("redis.unproven", extra={"cause": cause})
        return is_proven
