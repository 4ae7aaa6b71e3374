"""
Single flight: of several concurrent misses of one key, one loads; the others wait for its result.

The result is valid for a waiter only if a proof that it is current began after the waiter joined. The proof
is a fill under the leader's own lease, or a lookup. The leader calls :meth:`SharedLoad.begin_proof` before
it; a waiter that joins later must look again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class SharedLoad(Generic[V]):
    """One load in this process with its waiters; made by :class:`SingleFlight`."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: Number of threads that joined, including the leader.
        self.joined = 0
        self._proven_for = 0
        self._result: tuple[V] | None = None
        self.finished = Event()
        #: True if the loader raised: then each waiter loads the record itself.
        self.has_failed = False

    def join(self) -> int:
        """Take the next number; the leader is number 0."""
        with self._lock:
            number, self.joined = self.joined, self.joined + 1
            return number

    def begin_proof(self) -> None:
        """Called by the leader before a proof: the result will be valid for all that have joined by now."""
        with self._lock:
            self._proven_for = self.joined

    def set_result(self, value: V) -> None:
        """Share *value*, proven after the last :meth:`begin_proof`."""
        self._result = (value,)

    def result_for(self, number: int) -> tuple[V] | None:
        """Return the result, in a tuple; None if it is not proven for the waiter *number*."""
        return self._result if number < self._proven_for else None


@dataclass(slots=True, kw_only=True)
class SingleFlight:
    """
    Settings and state of the shared loads of one process.

    A waiter waits at most *patience_s* seconds for others, in this process or another, then loads the record
    itself; it checks for the result of another process every *retry_s* seconds.  *clock* is monotonic.
    """

    patience_s: float = 5.0
    retry_s: float = 0.1
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    _loads: dict[str, SharedLoad[object]] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def join(self, key: str) -> tuple[SharedLoad[object], int]:
        """Join the load of *key*; number 0 leads it and must finish it."""
        with self._lock:
            load = self._loads.setdefault(key, SharedLoad())
            return load, load.join()

    def finish(self, key: str) -> None:
        """End the load of *key*; the next reader begins a new one."""
        with self._lock:
            load = self._loads.pop(key)
        load.finished.set()
