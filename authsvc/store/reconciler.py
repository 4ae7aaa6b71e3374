"""Brings Redis up to the SQL log every second, and only then lets this process believe it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from authsvc.cache.client import CacheClient
from authsvc.cache.errors import CacheError
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Proof, RevocationIndex
from authsvc.domain.values.clocks import Monotonic
from authsvc.store.marker import FreshnessMarker
from authsvc.store.revocations import SqlRevocationLog

INTERVAL_S: Final = 1.0
#: Woken early by a new connection, but never more often than this.
SHORTEST_INTERVAL_S: Final = 0.1
#: How many comparisons lie between two looks at the eviction policy.
POLICY_EVERY: Final = 5
#: A number beyond this comes from nobody's log.
HIGHEST: Final = 1 << 53

log = logging.getLogger(__name__)


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
    index: RevocationIndex
    marker: FreshnessMarker
    client: CacheClient
    checks: CacheClient
    proof: Proof
    monotonic: Monotonic
    on_lag: Callable[[int], None]
    _over: int = field(default=-1, init=False)
    _ticks: int = field(default=0, init=False)

    def tick(self) -> bool:
        """Compare once; True if Redis is proven now.  Raises CacheError and StoreUnavailable."""
        value, over = self.marker.read()
        self._renew_connections(over)
        newest = self.checks.connections.generation
        if self._evicts():
            return False
        try:
            head = self.revocations.head()
        except StoreUnavailable:
            return self._go_on_without_sql(value, over)
        reached = _number(value)
        head = self._undo_rewind(head, reached)
        start = self._claim(value) if reached is None else value
        if start is None or not self._bring_up(start, head, over):
            return False
        self.proof.compared(seq=head, over=over, newest=newest, now_s=self.monotonic())
        return True

    def _renew_connections(self, over: int) -> None:
        """The reconciler's own connection was remade: older ones may lead elsewhere, so remake them all."""
        if over != self._over:
            self.checks.connections.suspect()
            self.checks.connections.fill()
            self._over = over

    def _evicts(self) -> bool:
        """True if Redis drops keys on its own account; a policy that it does not tell is left alone."""
        self._ticks += 1
        if self._ticks % POLICY_EVERY != 1:
            return False
        policy = (self.client.info("memory") or {}).get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            return False
        log.error("redis.evicting", extra={"policy": policy})
        self.proof.distrust()
        self._ticks -= 1
        return True

    def _go_on_without_sql(self, value: bytes | None, over: int) -> bool:
        """Keep a marker that is exactly what this process knows, over the connection that was compared."""
        known = self.proof.known
        if _number(value) != known or not self.proof.still_connected(over):
            return False
        return self.marker.renew(known)

    def _undo_rewind(self, head: int, reached: int | None) -> int:
        """The head of the log, moved on if SQL was restored to before what Redis or this process has seen."""
        seen = max(self.proof.known, reached or 0)
        if head >= seen:
            return head
        log.error("revocations.rewound", extra={"head": head, "seen": seen})
        self.revocations.skip_to(seen)
        self.marker.discard()
        return seen

    def _claim(self, value: bytes | None) -> bytes | None:
        """The right to refill a Redis without a marker; None while another process does it."""
        if value is not None and _number(value) is None and not self.marker.is_claim(value):
            self.marker.discard()
        return self.marker.claim()

    def _bring_up(self, start: bytes, head: int, over: int) -> bool:
        """Replay what Redis lacks and move the marker; False if it was lost meanwhile."""
        reached = _number(start) or 0
        self.on_lag(head - reached)
        for page in self.revocations.pages(after=reached, upto=head):
            self.index.write(page)
            if _number(start) is None and not self.marker.hold(start):
                return False
        return self.marker.advance(start, head, over=over)


class Heartbeat:
    """
    Runs the comparison every second on a thread of its own, sooner when it is woken.

    *alongside* is called after each.  A change between proven and unproven is logged, not its lasting.
    """

    def __init__(self, reconciler: Reconciler, alongside: Callable[[], object]) -> None:
        self._reconciler = reconciler
        self._alongside = alongside
        self._is_proven: bool | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        #: Set after the first comparison was tried.
        self.has_begun = threading.Event()

    def start(self) -> None:
        """Begin; once per process, after the fork."""
        self._thread.start()

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
            self.beat()
            self.has_begun.set()
            self._alongside()
            self._wake.wait(INTERVAL_S - SHORTEST_INTERVAL_S)
            self._wake.clear()
            self._stop.wait(SHORTEST_INTERVAL_S)

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

    def _note(self, *, is_proven: bool, cause: str) -> bool:
        """Log a change; the cause where Redis is no longer believed."""
        if is_proven != self._is_proven:
            self._is_proven = is_proven
            if is_proven:
                log.info("redis.proven")
            else:
                log.warning("redis.unproven", extra={"cause": cause})
        return is_proven


def _number(marker: bytes | None) -> int | None:
    """The sequence number in *marker*; None for a claim, for nothing, and for what no log can have given."""
    if marker is None or not marker.isdigit() or len(marker) > len(str(HIGHEST)):
        return None
    return int(marker)
