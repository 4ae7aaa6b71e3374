"""
A circuit breaker as a pure state machine: callers ask it before a call and report the result afterwards; it
holds no lock during the call. It does not depend on what is called.

closed     every call passes; *failure_threshold* failures within *monitoring_period_s* open it
open       no call passes for *recovery_timeout_s*
half open  at most *half_open_max_calls* probes pass; the first success closes it, a failure opens it again

Every change of state starts a new generation, and results of calls permitted in an older generation are
ignored: the late result of a hung call does not show the present state.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from threading import Lock

from authsvc.cache.events import ignore


class State(Enum):
    """States of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission for one call; given back with its result."""

    generation: int
    state: State


class CircuitBreaker:
    """
    See the module's docstring.  Durations in seconds, *clock* monotonic.

    *on_change* is called after every change of state, in order and outside the lock: a slow callback delays
    only its own thread.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        monitoring_period_s: float = 10.0,
        recovery_timeout_s: float = 2.0,
        half_open_max_calls: int = 3,
        *,
        clock: Callable[[], float],
        on_change: Callable[[State, State], None] = ignore,
    ) -> None:
        if failure_threshold < 1 or half_open_max_calls < 1:
            raise ValueError("failure_threshold and half_open_max_calls count from 1")
        self._failure_threshold = failure_threshold
        self._monitoring_period_s = monitoring_period_s
        self._recovery_timeout_s = recovery_timeout_s
        self._half_open_max_calls = half_open_max_calls
        self._clock = clock
        self._on_change = on_change
        self._lock = Lock()
        # State and generation are one attribute, so that both can be read together without a lock while
        # closed.
        self._current = Permit(0, State.CLOSED)
        self._since_s = 0.0
        self._probes = 0
        self._failures_s: deque[float] = deque(maxlen=failure_threshold)
        self._changes: deque[tuple[State, State]] = deque()
        self._delivery = Lock()

    def another(self) -> CircuitBreaker:
        """Return a closed breaker with the same settings and without a callback."""
        return CircuitBreaker(
            self._failure_threshold,
            self._monitoring_period_s,
            self._recovery_timeout_s,
            self._half_open_max_calls,
            clock=self._clock,
        )

    @property
    def state(self) -> State:
        """
        The state as of the last call; an open breaker becomes half open only on the next request for a
        permit.
        """
        return self._current.state

    @property
    def is_steady(self) -> bool:
        """True while it is closed and nothing has failed within the monitoring period."""
        with self._lock:
            failed_at_s = self._failures_s[-1] if self._failures_s else -math.inf
            is_closed = self._current.state is State.CLOSED
        return is_closed and self._clock() - failed_at_s > self._monitoring_period_s

    def permit(self) -> Permit | None:
        """
        Ask before a call. Returns a permit, to be passed to one of the next three methods, or None: do not
        call.
        """
        current = self._current
        if current.state is State.CLOSED:
            return current
        with self._lock:
            permit = self._probe()
        self._deliver()
        return permit

    def succeeded(self, permit: Permit) -> None:
        """Report that the call was answered."""
        if permit.state is State.CLOSED:
            return
        with self._lock:
            if permit is self._current:
                self._enter(State.CLOSED)
        self._deliver()

    def failed(self, permit: Permit) -> None:
        """Report that the call was not answered."""
        with self._lock:
            if permit is self._current and (permit.state is State.HALF_OPEN or self._too_many()):
                self._enter(State.OPEN)
        self._deliver()

    def withdrawn(self, permit: Permit) -> None:
        """
        Report that the call was not made, or that its result does not show whether the other side works.
        """
        with self._lock:
            if permit is self._current and self._probes:
                self._probes -= 1

    def open(self) -> None:
        """Open manually, for one recovery time-out."""
        with self._lock:
            self._enter(State.OPEN)
        self._deliver()

    def close(self) -> None:
        """Close manually and forget the failures."""
        with self._lock:
            self._enter(State.CLOSED)
        self._deliver()

    def _too_many(self) -> bool:
        now_s = self._clock()
        self._failures_s.append(now_s)
        full = len(self._failures_s) == self._failures_s.maxlen
        return full and now_s - self._failures_s[0] <= self._monitoring_period_s

    def _probe(self) -> Permit | None:
        if self._current.state is State.CLOSED:
            return self._current
        if self._clock() - self._since_s >= self._recovery_timeout_s:
            self._admit_probes()
        if self._current.state is State.OPEN or self._probes >= self._half_open_max_calls:
            return None
        self._probes += 1
        return self._current

    def _admit_probes(self) -> None:
        if self._current.state is State.OPEN:
            self._enter(State.HALF_OPEN)
        else:  # a probe that never reports must not block its slot for ever
            self._since_s, self._probes = self._clock(), 0

    def _enter(self, state: State) -> None:
        before = self._current
        self._current = Permit(before.generation + 1, state)
        self._since_s = self._clock()
        self._probes = 0
        self._failures_s.clear()
        if state is not before.state:
            self._changes.append((before.state, state))

    def _deliver(self) -> None:
        while self._changes and self._delivery.acquire(blocking=False):
            try:
                while self._changes:
                    self._on_change(*self._changes.popleft())
            finally:
                self._delivery.release()
