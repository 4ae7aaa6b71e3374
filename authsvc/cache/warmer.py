"""
Warmers load records into the cache before they are requested, at a limited rate.

A stopped run, or one that another process is doing, is not an error. The next run skips cached records,
because the loaders of ``get_or_load_many`` get only the missing ones.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Final

from authsvc.cache.errors import CacheUnavailable
from authsvc.cache.events import ignore
from authsvc.cache.lock import Held, Locks

log = logging.getLogger(__name__)

#: Time limit for a run to stop when the process shuts down, in seconds.
JOIN_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmer:
    """
    What to warm: the ids that *idents* yields, in batches.

    *warm* loads a batch and returns how many of it are cached now; after one of *errors* the next batch
    follows.  At most *limit* ids, at most *rate_per_s* of them a second, *batch_size* at a time.
    """

    name: str
    idents: Callable[[], Iterable[str]]
    warm: Callable[[Sequence[str]], int]
    errors: tuple[type[Exception], ...] = ()
    limit: int = 10_000
    batch_size: int = 100
    rate_per_s: float = 1000


class Ending(StrEnum):
    """How a run ended."""

    DONE = "done"
    BUSY = "busy"  # another process, or thread, is running it
    STOPPED = "stopped"  # the process shuts down, or the lock was lost


@dataclass(frozen=True, slots=True)
class Warmed:
    """Counts of one run, or of a run so far."""

    name: str
    seen: int
    warmed: int
    failed: int
    ending: Ending


class Warming:
    """
    Runs the registered warmers: on demand, or all of them in the background after the start of the process.

    With *locks* a warmer runs in one process at a time.  *on_progress* is called after every batch.  *pause*
    waits that many seconds, or less, and returns True if the run should stop.
    """

    def __init__(
        self,
        *,
        locks: Locks | None = None,
        on_progress: Callable[[Warmed], None] = ignore,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._locks = locks
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._warmers: dict[str, Warmer] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The registered warmers, in order."""
        return tuple(self._warmers)

    def register(self, warmer: Warmer) -> None:
        """Add *warmer*; raises ValueError if its name is taken."""
        if warmer.name in self._warmers:
            raise ValueError(f"there is a warmer called {warmer.name}")
        self._warmers[warmer.name] = warmer

    def run(self, name: str) -> Warmed:
        """
        Run one; raises KeyError for an unknown name, and exceptions of its sources other than its *errors*.
        """
        warmer = self._warmers[name]
        with self._lock:
            if name in self._running:
                return Warmed(name, 0, 0, 0, Ending.BUSY)
            self._running.add(name)
        try:
            return self._run_locked(warmer)
        finally:
            with self._lock:
                self._running.discard(name)

    def run_all(self) -> dict[str, Warmed]:
        """Run all, one after the other."""
        return {name: self.run(name) for name in self.names}

    def start(self) -> None:
        """Run all on a separate thread; exceptions of one are logged, and the next one runs."""
        self._thread = threading.Thread(target=self._run_at_start, name="cache-warming", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current batches, and wait for them."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=JOIN_S)

    def _run_at_start(self) -> None:
        for name in self.names:
            try:
                result = self.run(name)
            except Exception:
                # Nothing above this catches exceptions, and one failing warmer must not stop the others.
                log.exception("cache.warming_failed", extra={"warmer": name})
            else:
                log.info("cache.warmed", extra={"warmer": name, "count": result.warmed, "end": result.ending})

    def _run_locked(self, warmer: Warmer) -> Warmed:
        if self._locks is None:
            return self._run(warmer, None)
        with self._locks.holding(f"warm:{warmer.name}", waits=False) as held:
            if held is None:
                return Warmed(warmer.name, 0, 0, 0, Ending.BUSY)
            return self._run(warmer, held)

    def _run(self, warmer: Warmer, held: Held | None) -> Warmed:
        sofar = Warmed(warmer.name, 0, 0, 0, Ending.DONE)
        for batch in _batches(warmer):
            if self._stop.is_set() or (sofar.seen and self._pause(len(batch) / warmer.rate_per_s)):
                return _ended(sofar, Ending.STOPPED)
            if not _still_ours(held):
                return _ended(sofar, Ending.STOPPED)
            sofar = _with_batch(sofar, warmer, batch)
            self._on_progress(sofar)
        return sofar


def _batches(warmer: Warmer) -> Iterator[list[str]]:
    idents = islice(warmer.idents(), warmer.limit)
    while batch := list(islice(idents, warmer.batch_size)):
        yield batch


def _with_batch(sofar: Warmed, warmer: Warmer, batch: Sequence[str]) -> Warmed:
    try:
        warmed = warmer.warm(batch)
    except warmer.errors as error:
        log.warning(
            "cache.warming_batch_failed", extra={"warmer": warmer.name, "cause": type(error).__name__}
        )
        return Warmed(
            sofar.name, sofar.seen + len(batch), sofar.warmed, sofar.failed + len(batch), sofar.ending
        )
    return Warmed(sofar.name, sofar.seen + len(batch), sofar.warmed + warmed, sofar.failed, sofar.ending)


def _ended(sofar: Warmed, ending: Ending) -> Warmed:
    return Warmed(sofar.name, sofar.seen, sofar.warmed, sofar.failed, ending)


def _still_ours(held: Held | None) -> bool:
    """Renew the lock; if Redis is away, the work goes on, and its writes to the cache fail."""
    try:
        return held is None or held.renew()
    except CacheUnavailable:
        return True
