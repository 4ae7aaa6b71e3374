"""Health of the process: liveness, readiness, degraded parts."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from authsvc import __version__
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.clocks import Clock, Monotonic, rfc3339
from authsvc.observability.totals import CacheTotals

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthTimings:
    """Time limits of answers about the stores (seconds)."""

    #: How long one result is reused: probes are public and must not load the stores.
    look_s: float = 0.5
    #: SQL answers a comparison every second; without one for this long it counts as degraded.
    answered_s: float = 4.0


class LastAnswers:
    """
    When SQL last answered, when it last failed to, and when Redis was last compared with it, in any worker.

    Make it before the fork: the memory is shared, so all workers report the same.  Times are
    those of the system's monotonic clock, in seconds; each is eight aligned bytes, written at once.
    """

    def __init__(self) -> None:
        self._times = memoryview(mmap.mmap(-1, 24)).cast("d")

    def answered(self, now_s: float) -> None:
        """Record that SQL answered."""
        self._times[0] = now_s

    def failed(self, now_s: float) -> None:
        """Record that SQL did not answer."""
        self._times[1] = now_s

    def compared(self, now_s: float) -> None:
        """Record that Redis was compared with SQL."""
        self._times[2] = now_s

    def is_answering(self, now_s: float, *, within_s: float) -> bool:
        """
        True if the last result in any worker is an answer, and younger than *within_s*.

        If a server answers but its tables are locked, comparisons fail, which shows here.
        """
        answered_s, failed_s, compared_s = self._times
        return answered_s >= failed_s and now_s - min(answered_s, compared_s) < within_s


@dataclass(frozen=True, slots=True)
class Report:
    """An answer to a probe; ``is_good`` decides between 200 and 503."""

    is_good: bool
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """The state of both stores at one moment."""

    #: Number of proven *shards*; None if Redis did not answer.
    proven: int | None
    shards: int
    is_sql_up: bool
    redis_ms: float
    sql_ms: float
    totals: CacheTotals

    @property
    def is_redis_up(self) -> bool:
        """True if Redis answered."""
        return self.proven is not None

    @property
    def is_redis_proven(self) -> bool:
        """True if all of Redis is proven."""
        return self.proven == self.shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The probes of the stores; each raises StoreUnavailable if the store is away."""

    #: In how many of its *shards* Redis proves that it holds every revocation.
    proven_shards: Callable[[], int]
    shards: int
    sql: Callable[[], bool]
    is_in_memory: bool
    is_cache_enabled: bool
    #: The cache's counts over all workers.
    totals: Callable[[], CacheTotals]
    #: Details for admins: breakers, pool.
    details: Callable[[], dict[str, Any]]
    #: True while there is a key to sign with.
    has_keys: Callable[[], bool]


@dataclass(slots=True)
class Health:
    """Answers the probes; the first comparison of the stores sets ``started``."""

    probes: Probes
    answers: LastAnswers
    timings: HealthTimings
    clock: Clock
    monotonic: Monotonic
    started: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: tuple[float, Vitals] | None = None

    def has_started(self) -> bool:
        """True after the first attempt to compare Redis with SQL."""
        return self.started.is_set()

    def readiness(self, *, is_draining: bool) -> Report:
        """
        Good if this process can answer token checks, from either store, and has a signing key.

        A proven Redis answers at once, also while SQL hangs; SQL is asked only without it.  Without SQL, a
        part of Redis suffices: the other replicas have the same.
        """
        if is_draining or not self.has_started():
            return Report(is_good=False, body={"status": "draining" if is_draining else "starting"})
        if not self.probes.has_keys():
            return Report(is_good=False, body={"status": "down", "impaired": ["signing_keys"]})
        proven, _ = self._timed(self.probes.proven_shards)
        if proven == self.probes.shards:
            impaired = [] if self._is_sql_answering() else ["database"]
            return Report(
                is_good=True, body={"status": "degraded" if impaired else "ok", "impaired": impaired}
            )
        vitals = self._look()
        is_good = vitals.is_sql_up or bool(proven)
        return Report(is_good=is_good, body={"status": _word(vitals), "impaired": _impaired(vitals)})

    def summary(self) -> Report:
        """Both stores and the cache."""
        vitals = self._look()
        return Report(is_good=_word(vitals) != "down", body=self._summary(vitals))

    def detail(self) -> Report:
        """The same with version, latencies and further results of the probes."""
        vitals = self._look()
        body = self._summary(vitals) | {
            "version": __version__,
            "latency_ms": {"redis": vitals.redis_ms, "database": vitals.sql_ms},
            "redis_proven": vitals.is_redis_proven,
            "redis_shards": {"proven": vitals.proven or 0, "all": vitals.shards},
            **self.probes.details(),
        }
        return Report(is_good=_word(vitals) != "down", body=body)

    def _summary(self, vitals: Vitals) -> dict[str, Any]:
        totals = vitals.totals
        cache = "up" if vitals.is_redis_up else "down"
        redis = "connected" if vitals.is_redis_up else "disconnected"
        return {
            "status": _word(vitals),
            "service": "authsvc",
            "timestamp": rfc3339(self.clock()),
            "redis": "in-memory" if self.probes.is_in_memory else redis,
            "database": "up" if vitals.is_sql_up else "down",
            "cache": {
                "status": cache if self.probes.is_cache_enabled else "disabled",
                "stats": {
                    "hits": totals.hits,
                    "misses": totals.misses,
                    "hit_ratio": round(totals.hit_ratio, 4),
                },
            },
        }

    def _is_sql_answering(self) -> bool:
        return self.answers.is_answering(self.monotonic(), within_s=self.timings.answered_s)

    def _look(self) -> Vitals:
        """Ask the stores, or reuse the last answers if they are fresh or another thread is asking now."""
        last = self._last
        if last is not None and self.monotonic() - last[0] < self.timings.look_s:
            return last[1]
        if not self._lock.acquire(blocking=last is None):
            return last[1] if last else self._vitals()
        try:
            vitals = self._vitals()
            self._last = (self.monotonic(), vitals)
            return vitals
        finally:
            self._lock.release()

    def _vitals(self) -> Vitals:
        proven, redis_ms = self._timed(self.probes.proven_shards)
        answered, sql_ms = self._timed(self.probes.sql)
        return Vitals(
            proven=proven,
            shards=self.probes.shards,
            is_sql_up=answered is not None,
            redis_ms=redis_ms,
            sql_ms=sql_ms,
            totals=self.probes.totals(),
        )

    def _timed(self, probe: Callable[[], T]) -> tuple[T | None, float]:
        """The result of *probe*, None if the store is away, and its duration in milliseconds."""
        began = self.monotonic()
        try:
            answer = probe()
        except StoreUnavailable:
            answer = None
        return answer, round((self.monotonic() - began) * 1000, 2)


def _word(vitals: Vitals) -> str:
    """``ok``; ``degraded`` with one store down, or a Redis that is not proven; ``down`` with both."""
    if vitals.is_redis_proven and vitals.is_sql_up:
        return "ok"
    return "degraded" if vitals.is_redis_up or vitals.is_sql_up else "down"


def _impaired(vitals: Vitals) -> list[str]:
    """The degraded parts."""
    faults = {
        "redis": not vitals.is_redis_up,
        "redis_proof": vitals.is_redis_up and not vitals.is_redis_proven,
        "database": not vitals.is_sql_up,
    }
    return [name for name, is_faulty in faults.items() if is_faulty]
