"""The hashing lane: a few low-priority threads with a short queue, separate from the request threads."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from authsvc.domain.errors import HashingBusy
from authsvc.domain.passwords.hasher import Passwords, Verification
from authsvc.domain.values.clocks import Monotonic

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Number of recent jobs that the mean time of a job is based on.
MEAN_OVER = 8
QUEUE_PER_THREAD = 8
#: This many jobs may wait in any case: 16 clients of one worker, on half of its threads.
WAITERS_PER_THREAD = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class HashingTimings:
    """Time limit for a hash to begin (seconds), and the priority of the lane."""

    #: A job that has not begun by then is refused: no login waits longer.
    deadline_s: float = 2.0
    #: Added to the threads' nice value, 0 to 19; the system runs everything else first.
    niceness: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSize:
    """
    *threads* jobs run at once; a job that cannot begin within *deadline_s* seconds is refused.

    It is refused at once if the jobs before it probably take longer, or if *queue_limit* wait already,
    because each of them occupies a thread of the server.  But *always_wait* may wait in any case, and are
    refused when the deadline is over: clients that are refused at once may retry at once, and that work would
    slow down the hashing.
    """

    threads: int
    queue_limit: int
    deadline_s: float
    always_wait: int = 0
    #: Added to the threads' nice value, 0 to 19; the system runs everything else first.
    niceness: int

    @classmethod
    def shared_by(cls, workers: int, *, cores: int, timings: HashingTimings) -> LaneSize:
        """
        As many hashes at once as there are cores, over all workers together, but at least two in each.

        Connections are distributed unevenly: with one thread each, a worker with few connections leaves its
        core idle.
        """
        threads = max(2, math.ceil(cores / workers))
        return cls(
            threads=threads,
            queue_limit=QUEUE_PER_THREAD * threads,
            always_wait=WAITERS_PER_THREAD * threads,
            deadline_s=timings.deadline_s,
            niceness=timings.niceness,
        )


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """A function and its future; the future decides, once, whether it runs or was cancelled."""

    work: Callable[[], T]
    outcome: Future[T]

    def run(self) -> None:
        """Do the work; an exception is raised again in the thread that waits for the result."""
        try:
            self.outcome.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 - passed on, not swallowed
            self.outcome.set_exception(error)


class HashingLane:
    """
    Its own threads, for work that keeps a core busy for a fifth of a second.

    They start with the first job, so a process may fork before that; they are daemons, so they never
    keep a process from ending.  *clock* (seconds) times the jobs for *on_done*, which runs in the lane.
    """

    def __init__(
        self, size: LaneSize, *, clock: Monotonic, on_done: Callable[[float], None] = lambda _seconds: None
    ) -> None:
        self._size = size
        self._clock = clock
        self._on_done = on_done
        self._changed = threading.Condition()
        self._waiting: deque[_Job[Any]] = deque()
        self._running = 0
        #: Mean time of recent jobs (seconds), weighted towards the latest; 0 before the first.
        self._mean_s = 0.0
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    @property
    def queue_depth(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    def run(self, work: Callable[[], T]) -> T:
        """
        The result of *work*, or what it raises, computed by one of the lane's threads.

        Raises:
            HashingBusy: the queue is full or closed, or the job did not begin in time and was cancelled.
        """
        job = _Job(work=lambda: self._timed(work), outcome=Future[T]())
        self._enter(job)
        wait([job.outcome], timeout=self._size.deadline_s)
        if self._gave_up(job):
            raise self._busy()
        return job.outcome.result()

    def require_room(self) -> None:
        """Raise HashingBusy if a job would be refused now."""
        with self._changed:
            if self._is_closed or not self._has_room():
                raise self._busy()

    def close(self) -> None:
        """Accept no more jobs, finish those that wait, and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enter(self, job: _Job[Any]) -> None:
        with self._changed:
            if self._is_closed or not self._has_room():
                raise self._busy()
            if not self._threads:
                self._start()
            self._waiting.append(job)
            self._changed.notify()

    def _has_room(self) -> bool:
        before = self._running + len(self._waiting)
        threads = self._size.threads
        wait_s = max(0, before + 1 - threads) / threads * self._mean_s
        is_soon = wait_s <= self._size.deadline_s or before < threads + self._size.always_wait
        return is_soon and before < threads + self._size.queue_limit

    def _gave_up(self, job: _Job[Any]) -> bool:
        """Cancel *job* unless a thread has begun it; holds the lock under which threads begin jobs."""
        with self._changed:
            is_cancelled = job.outcome.cancel()
            if is_cancelled:
                self._waiting.remove(job)
            return is_cancelled

    def _busy(self) -> HashingBusy:
        return HashingBusy(retry_after_s=max(1, math.ceil(self._size.deadline_s)))

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._serve, name=f"hashing-{number}", daemon=True)
            for number in range(self._size.threads)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        _lower_own_priority(self._size.niceness)
        # One call for each job, so that no local variable keeps the last password in memory while the thread
        # is idle.
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Wait for a job and run it; False when the lane is closed and empty."""
        job = self._next()
        if job is None:
            return False
        job.run()
        return True

    def _next(self) -> _Job[Any] | None:
        """The oldest waiting job, marked as begun; None if there is none and the lane is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            job.outcome.set_running_or_notify_cancel()
            self._running += 1
            return job

    def _timed(self, work: Callable[[], T]) -> T:
        started = self._clock()
        try:
            return work()
        finally:
            # Free the slot before publishing the result, so that an immediate retry finds room.
            took_s = self._clock() - started
            with self._changed:
                self._running -= 1
                self._mean_s += (took_s - self._mean_s) / (MEAN_OVER if self._mean_s else 1)
            self._on_done(took_s)


@dataclass(frozen=True, slots=True)
class BoundedPasswords:
    """*passwords* whose work runs in *lane*: one job for each hash and each verification."""

    passwords: Passwords
    lane: HashingLane

    def hash(self, password: str) -> str:
        """The stored form of *password*; raises HashingBusy."""
        return self.lane.run(lambda: self.passwords.hash(password))

    def verify(self, password: str, stored: str | None) -> Verification:
        """Whether *password* is the one that *stored* was made of; raises HashingBusy."""
        return self.lane.run(lambda: self.passwords.verify(password, stored))

    def needs_rehash(self, stored: str) -> bool:
        """True unless *stored* is of the configured scheme and cost; costs nothing."""
        return self.passwords.needs_rehash(stored)

    def require_room(self) -> None:
        """Raise HashingBusy if a password would be refused now."""
        self.lane.require_room()


def _lower_own_priority(niceness: int) -> None:
    """Add *niceness* to the calling thread's nice value; if that fails, log it and go on."""
    if (
        sys.platform != "linux"
    ):  # on other systems a thread's id is not a process id, and could name another process
        _log.warning("hashing.priority_unchanged", extra={"cause": "threads have no priority here"})
        return
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
    except OSError as error:
        _log.warning("hashing.priority_unchanged", extra={"cause": error.strerror})
