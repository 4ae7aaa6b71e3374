"""
Single flight: of those who miss the same key at once one loads, the others wait for its result.

The result is good for a waiter only if nothing was invalidated between the waiter's asking and the
proof that the value was still current: a fill under the leader's own lease, or a lookup.  So the leader
calls :meth:`SharedLoad.begin_proof` before that proof; who joins later looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class SharedLoad(Generic[V]):
    """One load in this process, and those who wait for it; made by :class:`SingleFlight`."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: How many joined, the leader among them.
        self.joined = 0
        self._proven_for = 0
        self._result: tuple[V] | None = None
        self.finished = Event()
        #: True where the loader raised: a waiter then loads on its own.
        self.has_failed = False

    def join(self) -> int:
        """Take the next number; the leader is number 0."""
        with self._lock:
            number, self.joined = self.joined, self.joined + 1
            return number

    def begin_proof(self) -> None:
        """Say, in the leader, that a proof is about to be made: it will be good for all who joined by now."""
        with self._lock:
            self._proven_for = self.joined

    def set_result(self, value: V) -> None:
        """Share *value*, proven after the last :meth:`begin_proof`."""
        self._result = (value,)

    def result_for(self, number: int) -> tuple[V] | None:
        """Return the result, in a tuple; None where it is not proven for the waiter *number*."""
        return self._result if number < self._proven_for else None


@dataclass(slots=True, kw_only=True)
class SingleFlight:
    """
    Settings and state of the shared loads of one process.

    A waiter waits *patience_s* seconds for others, in this process or another, then loads on its own;
    a lease of another process is looked at every *retry_s* seconds.  *clock* is monotonic.
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
        """End the load of *key*; who comes from now on begins the next one."""
        with self._lock:
            load = self._loads.pop(key)
        load.finished.set()
