"""
Single flight: of those who miss the same key at once one loads, the others wait for what it gets.

What a leader brought is good for a waiter only if nothing was invalidated between the waiter's asking
and the proof that the value was still current: a fill under the leader's own lease, or a look.  So the
leader *seals* the flight before that proof; who joins later looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Flight(Generic[V]):
    """One load in this process, and those aboard; made by :class:`SingleFlight`."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: How many came aboard.
        self.aboard = 0
        self._covered = 0
        self._cargo: tuple[V] | None = None
        self.landed = Event()
        #: True where the loader raised: a waiter then loads on its own.
        self.has_failed = False

    def board(self) -> int:
        """Come aboard; the leader is number 0."""
        with self._lock:
            number, self.aboard = self.aboard, self.aboard + 1
            return number

    def seal(self) -> None:
        """Say, in the leader, that a proof is about to be made: it will be good for those aboard by now."""
        with self._lock:
            self._covered = self.aboard

    def carry(self, value: V) -> None:
        """Bring *value*, proven after the last :meth:`seal`."""
        self._cargo = (value,)

    def cargo_for(self, number: int) -> tuple[V] | None:
        """Return what landed, in a tuple; None where it is not proven for passenger *number*."""
        return self._cargo if number < self._covered else None


@dataclass(slots=True, kw_only=True)
class SingleFlight:
    """
    Settings and state of the flights of one process.

    A waiter waits *patience_s* seconds for others, in this process or another, then loads on its own;
    a lease of another process is looked at every *retry_s* seconds.  *clock* is monotonic.
    """

    patience_s: float = 5.0
    retry_s: float = 0.1
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    _flights: dict[str, Flight[object]] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def board(self, key: str) -> tuple[Flight[object], int]:
        """Come aboard the flight for *key*; number 0 leads it and must land it."""
        with self._lock:
            flight = self._flights.setdefault(key, Flight())
            return flight, flight.board()

    def land(self, key: str) -> None:
        """End the flight for *key*; who comes from now on takes the next one."""
        with self._lock:
            flight = self._flights.pop(key)
        flight.landed.set()
