"""Brings Redis up to the SQL log every second, and only then lets this process believe it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from authsvc.cache.errors import CacheError
from authsvc.cache.redis.client import CacheClient
from authsvc.cache.redis.polled import PolledReads
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Horizon, Position, Proof, Sight, whole_number
from authsvc.domain.values.clocks import Monotonic
from authsvc.store.copies.backlog import Backlog
from authsvc.store.copies.index import RedisIndex
from authsvc.store.copies.marker import FreshnessMarker, Reading, is_claim
from authsvc.store.copies.ownership import Ownership
from authsvc.store.revocations import SqlRevocationLog

#: How many comparisons lie between two looks at the eviction policy.
POLICY_EVERY: Final = 5
#: Failures in a row that are worth a line.
NOTABLE_FAILURES: Final = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatTimings:
    """How long lies between two comparisons (seconds)."""

    interval_s: float = 1.0
    #: Woken early by a new connection, but never more often than this.
    shortest_s: float = 0.1


def nothing() -> None:
    """Stand in for a callback that nobody gave."""


@dataclass(slots=True, kw_only=True)
class Reconciler:
    """
    Compares Redis with SQL, one comparison at a time.

    *client* is the reconciler's own, with a single connection: one connection for a whole comparison
    means that no failover came between its steps.  *checks* is the client of the token checks, whose
    connections count their generations together with it.  *on_lag* hears how many entries Redis was
    behind.
    """

    revocations: SqlRevocationLog
    index: RedisIndex
    marker: FreshnessMarker
    ownership: Ownership
    client: CacheClient
    checks: CacheClient
    proof: Proof
    monotonic: Monotonic
    on_lag: Callable[[int], None]
    #: Called after each comparison that SQL and Redis both took part in.
    on_compared: Callable[[], None] = nothing
    #: The connection of the lane for checks: one more of theirs.
    lane: PolledReads | None = None
    _horizon: Horizon = field(default_factory=Horizon, init=False)
    _backlog: Backlog = field(default_factory=Backlog, init=False)
    #: The head of the log when it was last seen.
    _last: Position = field(default=Position(), init=False)
    _over: int = field(default=-1, init=False)
    _newest: int = field(default=-1, init=False)
    _ticks: int = field(default=0, init=False)
    _is_evicting: bool = field(default=False, init=False)
    #: Everybody was cut off after a restore of SQL, and the log has not been moved on yet.
    _has_cut: bool = field(default=False, init=False)

    def tick(self) -> bool:
        """Compare once; True if Redis is proven now.  Raises CacheError and StoreUnavailable."""
        self._follow_checks()
        reading = self.marker.read(self._backlog.seal)
        if not self.ownership.holds(reading.over):
            self.proof.distrust()
            return False
        newest = self._renew_connections(reading.over)
        if self._evicts():
            return False
        # Before SQL is asked: a process that stood still since then must not take its answer for a new one,
        # and what a request commits from here on may lie beyond the answer without SQL having gone back.
        began_s, seen = self.monotonic(), self.proof.seen
        try:
            sight = self._look(reading)
        except StoreUnavailable:
            return self._go_on_without_sql(reading)
        start = self._start(reading, sight, seen)
        settled = self._horizon.settled
        if start is None or settled is None or not self._bring_up_or_distrust(start, settled, reading):
            return False
        # Entries above the marker are in Redis, too, but the marker does not say so: it is enough.
        self.proof.compared(seq=settled.seq, over=reading.over, newest=newest, now_s=began_s)
        self.on_compared()
        return True

    def _follow_checks(self) -> None:
        """
        Checks made, or need, connections that no comparison has seen: make ours anew, it may lead elsewhere.

        Not without SQL: nothing can be compared then, and what is trusted hangs on our connection.
        """
        is_wanted = self.lane is not None and self.lane.wants_renewal()
        if self.checks.connections.generation == self._newest and not is_wanted:
            return
        with suppress(StoreUnavailable):
            self.revocations.head()
            self.client.connections.suspect()

    def _renew_connections(self, over: int) -> int:
        """
        The newest generation, before anything is compared.

        Where the reconciler's own connection was remade, older ones may lead elsewhere: remake them all.
        """
        if over != self._over:
            self.checks.connections.suspect()
            self.checks.connections.fill()
            if self.lane is not None:
                self.lane.renew()
            self._over = over
        self._newest = self.checks.connections.generation
        return self._newest

    def _evicts(self) -> bool:
        """True if Redis drops, or just dropped, keys of its own accord; an untold policy is left alone."""
        self._ticks += 1
        if self._ticks % POLICY_EVERY != 1:
            return False
        policy = (self.client.info("memory") or {}).get("maxmemory_policy", "noeviction")
        did_evict, self._is_evicting = self._is_evicting, policy != "noeviction"
        if not did_evict and not self._is_evicting:
            return False
        if not did_evict:
            log.error("redis.evicting", extra={"policy": policy})
        self.proof.distrust()
        # Once more when the policy is mended: others, which had not looked, may have kept the marker going,
        # and what was dropped stays away until all is replayed.
        self.marker.discard()
        self._ticks -= 1
        return True

    def _go_on_without_sql(self, reading: Reading) -> bool:
        """Keep a marker that is exactly what this process knows, over the connection that was compared."""
        known = self.proof.known
        if whole_number(reading.value) != known or not self.proof.still_connected(reading.over):
            return False
        return self.marker.renew(known)

    def _look(self, reading: Reading) -> Sight:
        """The log, and those of its entries that Redis and this process remember."""
        reached = whole_number(reading.value)
        remembered = {reading.position.seq, self._last.seq, reached or 0}
        return self.revocations.look(settled=reached, at=remembered)

    def _start(self, reading: Reading, sight: Sight, seen: int) -> bytes | None:
        """From where to replay, a marker or a claim on all of it; None: not now, or others are at it."""
        reached = whole_number(reading.value)
        is_other = self._undo_rewind(sight, reading.position, max(seen, reached or 0))
        if is_other:
            sight = self.revocations.look()
        self._take_in(sight)
        if reached is not None and not is_other:
            self._horizon.hear(next((at for at in sight.found if at.seq == reached), Position(reached)))
            return reading.value
        if self._horizon.settled is None:
            return None
        claim = self._claim(None if is_other else reading.value)
        # Asked again under the claim: what was revoked after the first answer was written to Redis at once,
        # perhaps before it was emptied.  What is written from now on is lost only together with the claim.
        if claim is not None:
            self._take_in(self.revocations.look())
        return claim

    def _take_in(self, sight: Sight) -> None:
        """Remember what was seen; a sequence that is behind is set right."""
        self._last = sight.head
        self.proof.saw(sight.head.seq)
        self._horizon.look(sight, self.monotonic())
        if sight.is_behind:
            log.error("revocations.numbers_behind", extra={"head": sight.head.seq})
            with suppress(StoreUnavailable):  # not now: the next comparison tries again
                self.revocations.catch_up()

    def _undo_rewind(self, sight: Sight, position: Position, seen: int) -> bool:
        """
        True if this is not the log that Redis or this process has *seen* the end of: SQL was restored.

        Either it ends before, or another entry has the number of one that is remembered.  Numbers go on
        behind all that was seen.
        """
        head = sight.head.seq
        is_renumbered = any(sight.contradicts(remembered) for remembered in (position, self._last))
        if head >= seen and not is_renumbered:
            return False
        self.ownership.confirm()
        log.error("revocations.rewound", extra={"head": head, "seen": seen})
        # The marker goes first: new entries below it were perhaps never replayed, and once the log is moved
        # on nobody could tell any more.
        self.marker.discard()
        # Once: the last step may have to be tried again, and each cut is an entry of the log for every user.
        if not self._has_cut:
            # Each entry that was lost may have raised an epoch.  How many were lost before the log grew again
            # nobody knows: no more than there have ever been.
            self.revocations.cut_everybody_off(by=seen + 1 if is_renumbered else seen - head + 1)
            self._has_cut = True
        self.revocations.skip_to(seen)
        self._has_cut = False
        self._horizon, self._backlog = Horizon(), Backlog()
        return True

    def _claim(self, value: bytes | None) -> bytes | None:
        """The right to refill a Redis without a marker; None while another process does it."""
        if value is not None and whole_number(value) is None and not is_claim(value):
            self.marker.discard()
        return self.marker.claim()

    def _bring_up(self, start: bytes, settled: Position, reading: Reading) -> bool:
        """
        Write what Redis lacks, and move the marker as far as nothing is still to come.

        False if it was lost meanwhile.
        """
        # Kept at the end alone: a step that fails says that something was lost, not what.
        backlog, self._backlog = self._backlog, Backlog()
        ranges = backlog.begin(
            marker=whole_number(start) or 0,
            head=self._last.seq,
            over=reading.over,
            is_sealed=reading.is_sealed and start.isdigit(),
        )
        self.on_lag(sum(high - low + 1 for low, high in ranges))
        for page in self.revocations.pages(ranges):
            seal = self.marker.seal()
            self.index.write(page, then=seal.command, are_news=start.isdigit())
            backlog.wrote(page, seal)
            after_page = self.marker.step(start, min(settled, Position.of(page[-1])), seal)
            if after_page is None:
                return False
            start = after_page
        if not self.marker.advance(start, settled, over=reading.over, seal=backlog.seal):
            return False
        self._backlog = backlog
        self.on_lag(0)
        return True

    def _bring_up_or_distrust(self, start: bytes, settled: Position, reading: Reading) -> bool:
        """
        The same; where it fails, this process knows from now on that the marker is behind.

        A full Redis still answers reads: its old marker must not prove what it could not be told.
        """
        try:
            return self._bring_up(start, settled, reading)
        except (CacheError, StoreUnavailable):
            self.proof.learned(self._last.seq)
            raise


class Heartbeat:
    """
    Runs the comparison every second on a thread of its own, sooner when it is woken.

    *alongside* is called after each.  That Redis is believed, or is not, is logged when it changes.
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
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        #: Set after the first comparison was tried.
        self.has_begun = threading.Event()

    def start(self) -> None:
        """Begin; once per process, after the fork."""
        self._thread.start()

    def when_begun(self, begin: Callable[[], None]) -> None:
        """Have *begin* called behind the first comparison; to be said before :meth:`start`."""
        self._afterwards.append(begin)

    def wake(self) -> None:
        """A connection was made that no comparison has seen yet: do not wait for the second to pass."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the comparison that is running."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
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
        """One comparison; an outage makes it fail, and the next one is tried all the same."""
        try:
            return self._note(is_proven=self._reconciler.tick(), cause="sql or another process at work")
        except (CacheError, StoreUnavailable) as error:
            return self._note(is_proven=False, cause=str(error))
        except Exception:
            # The edge of the thread: it must outlive what nobody thought of.
            log.exception("reconciler.crashed")
            return self._note(is_proven=False, cause="crashed")

    def _go_along(self, *, is_proven: bool) -> None:
        """What is done after a comparison; whatever becomes of it, there is a next comparison."""
        try:
            while is_proven and self._afterwards:
                self._afterwards.pop()()
            self._alongside()
        except Exception:
            log.exception("reconciler.crashed")

    def _note(self, *, is_proven: bool, cause: str) -> bool:
        """Log when Redis comes to be believed, and when it has failed twice: once is in the ordinary."""
        self._failures = 0 if is_proven else self._failures + 1
        if is_proven and not self._is_believed:
            self._is_believed = True
            log.info("redis.proven")
        elif self._failures == NOTABLE_FAILURES:
            self._is_believed = False
            log.warning("redis.unproven", extra={"cause": cause})
        return is_proven
