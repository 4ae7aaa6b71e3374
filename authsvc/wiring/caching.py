"""Redis as the settings name it, and the user cache in it."""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass
from typing import TypeVar

from authsvc.cache.aside import Aside, Records, Shape, Tagging, Tags, TrustCheck, TrustChecks
from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.cache.filling.records import SERVED
from authsvc.cache.filling.single_flight import SingleFlight
from authsvc.cache.keys import KeySpace, Space, spread_tags
from authsvc.cache.lock import Locks
from authsvc.cache.monitor import Meter, Monitor, joined
from authsvc.cache.redis.client import CacheClient, CacheEvents
from authsvc.cache.redis.connections import Deadlines, Pool
from authsvc.cache.redis.link import Link
from authsvc.cache.redis.polled import PolledFleet, PolledReads, is_available
from authsvc.cache.warmer import Warmed, Warming
from authsvc.domain.revocations import Proof
from authsvc.domain.users import UserStore
from authsvc.domain.values.shards import CLUSTER_SHARDS, PAGES, Sharded
from authsvc.observability.metrics import BREAKER_NUMBERS, Metrics
from authsvc.observability.tracing import Tracing
from authsvc.settings import CacheSettings, RedisSettings, Settings
from authsvc.store.copies.admin import CacheAdmin, user_warmers
from authsvc.store.copies.index import IndexKeys
from authsvc.store.copies.polled import PolledIndex
from authsvc.store.copies.servers import Servers, shards_of
from authsvc.store.copies.users import (
    ALL_USERS,
    PAGE_SHAPE,
    USER_SHAPE,
    CachedUserStore,
    CopyTimings,
    UserCaches,
)
from authsvc.store.sql import Database
from authsvc.wiring.links import pool_to, redis_links
from authsvc.wiring.timings import Timings

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Connections of the requests to Redis: one for each thread, opened at the start and not on the hot path.
REDIS_POOL = 32
#: A tag must live longer than the cached pages that refer to it.
TAG_TTL_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Redis for this process, before it was compared with SQL."""

    client: CacheClient
    #: The reconciler's own, over a connection of its own to each server.
    reconciling: CacheClient
    #: Which server has which shard.
    servers: Servers
    #: Reads of the check lane; None without one.
    polled: PolledIndex | None
    keys: KeySpace
    names: Sharded[IndexKeys]
    proofs: Sharded[Proof]
    user_caches: UserCaches
    meter: Meter

    def close(self) -> None:
        """Close all connections."""
        if self.polled is not None:
            self.polled.reads.close()
        self.client.close()
        self.reconciling.close()


def open_redis(settings: Settings, timings: Timings, metrics: Metrics, tracing: Tracing) -> Redis:
    """Redis for this process; pools connect when they are first used."""
    meter = Meter(time.monotonic)
    events = joined(_counted(metrics), meter.events(), tracing.redis)
    breakers = _Breakers(settings.cache, metrics)
    pool, single = redis_links(settings.redis, timings.redis, size=REDIS_POOL, breaker_of=breakers.make)
    client = _client(pool, breakers.make("all"), events)
    names = index_keys(settings)
    unwatched_s = timings.marker.unwatched_s if settings.redis.is_cluster else math.inf
    proofs = Sharded(tuple(Proof(settings.redis.max_staleness_s, unwatched_s) for _ in names.each))
    # The reconciler asks at its own pace, also while the breaker of the requests is open.
    reconciling = _client(single, CircuitBreaker(clock=time.monotonic))
    servers = Servers(shards_of(names, proofs, timings.marker), reconciling, client)
    user_caches = _user_caches(settings.cache, timings.copies, client, names, proofs, events)
    copies = user_caches if settings.cache.is_enabled else None
    polled = _polled(settings, pool, client, events, servers, copies, timings.redis)
    if polled is not None:
        servers.lane_to = polled.reads.at
    return Redis(
        client=client,
        reconciling=reconciling,
        servers=servers,
        polled=polled,
        keys=key_space(settings.cache),
        names=names,
        proofs=proofs,
        user_caches=user_caches,
        meter=meter,
    )


def key_space(cache: CacheSettings) -> KeySpace:
    """The keys under the prefix of the settings."""
    return KeySpace(cache.key_prefix, cache.key_version, cache.max_key_length)


def index_keys(settings: Settings) -> Sharded[IndexKeys]:
    """The names of the keys that token checks read: one shard on a single server, many on a cluster."""
    tags = spread_tags(CLUSTER_SHARDS if settings.redis.is_cluster else 1)
    return Sharded(tuple(IndexKeys(key_space(settings.cache), tag) for tag in tags))


def single_client(redis: RedisSettings, timings: Timings | None = None) -> CacheClient:
    """A client of one connection, for the checks before the start."""
    pool, _ = redis_links(redis, (timings or Timings()).redis, size=1)
    return CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)


def cached_users(
    settings: Settings, timings: Timings, redis: Redis, behind: UserStore, metrics: Metrics
) -> UserStore:
    """*behind*, cached unless the settings turn that off."""
    if not settings.cache.is_enabled:
        return behind
    return CachedUserStore(
        behind=behind,
        caches=redis.user_caches,
        on_operation=metrics.user_cache_operation,
        monotonic=time.monotonic,
        timings=timings.copies,
    )


def cache_admin(
    settings: Settings, redis: Redis, database: Database, users: UserStore, metrics: Metrics
) -> CacheAdmin:
    """Statistics, warming and clearing."""
    cache = settings.cache
    locks = Locks(
        redis.client,
        redis.keys,
        ttl_s=cache.lock_ttl_s,
        retry_delay_s=cache.lock_retry_delay_ms / 1000,
        max_retries=cache.lock_max_retries,
        on_active=metrics.active_locks,
    )
    warming = Warming(locks=locks, on_progress=_tell)
    if cache.is_enabled:
        for warmer in user_warmers(users, redis.user_caches, database, batch_size=cache.batch_size):
            warming.register(warmer)
    return CacheAdmin(
        caches=redis.user_caches,
        users=users.behind if isinstance(users, CachedUserStore) else users,
        monitor=Monitor(redis.client, redis.meter, time.monotonic),
        warming=warming,
        totals=metrics.cache_totals,
    )


def _tell(progress: Warmed) -> None:
    fields = {"warmer": progress.name, "seen": progress.seen, "warmed": progress.warmed}
    log.debug("cache.warming", extra=fields)


class _Breakers:
    """Makes the circuit breakers of the requests; the metric shows the worst state of all."""

    def __init__(self, cache: CacheSettings, metrics: Metrics) -> None:
        self._cache = cache
        self._metrics = metrics
        self._states: dict[str, State] = {}

    def make(self, name: str) -> CircuitBreaker:
        """One for the servers called *name*."""
        self._tell(name, State.CLOSED)
        return CircuitBreaker(
            self._cache.breaker_failure_threshold,
            self._cache.breaker_monitoring_ms / 1000,
            self._cache.breaker_recovery_ms / 1000,
            self._cache.breaker_half_open_max_calls,
            clock=time.monotonic,
            on_change=lambda _, state: self._tell(name, state),
        )

    def _tell(self, name: str, state: State) -> None:
        self._states[name] = state
        states = tuple(self._states.values())
        worst = next(one for one in (State.OPEN, State.HALF_OPEN, State.CLOSED) if one in states)
        self._metrics.breaker_state(BREAKER_NUMBERS[worst])


def _client(pool: Pool | Link, breaker: CircuitBreaker, events: CacheEvents | None = None) -> CacheClient:
    return CacheClient(pool, breaker=breaker, clock=time.monotonic, events=events, misuse_is_outage=True)


def _trusted(names: IndexKeys, proof: Proof) -> TrustCheck:
    """The check of one shard's marker, as the user cache makes it."""
    return TrustCheck(
        marker_key=names.marker,
        trusted=lambda marker, generation: proof.holds(marker, generation, time.monotonic()),
    )


def _user_caches(
    cache: CacheSettings,
    timings: CopyTimings,
    client: CacheClient,
    names: Sharded[IndexKeys],
    proofs: Sharded[Proof],
    events: CacheEvents,
) -> UserCaches:
    """
    The three kinds of copies. Each is trusted only while its shard is proven. Concurrent misses share one
    load.  All pages and their tag are in one shard.
    """
    retry_s = cache.lock_retry_delay_ms / 1000
    trusted = Sharded(tuple(map(_trusted, names.each, proofs.each)))
    pages = names.each[PAGES]

    def aside(space: Space, shape: Shape[T], trust: TrustChecks, tagging: Tagging | None = None) -> Aside[T]:
        records = Records(
            client=client,
            space=space,
            shape=shape,
            lease_ms=round(timings.lease_s * 1000),
            rng=random.random,
            trust=trust,
            tagging=tagging,
        )
        return Aside(
            records,
            events=events,
            single_flight=SingleFlight(retry_s=retry_s, patience_s=retry_s * cache.lock_max_retries),
        )

    def by_owner(name: str) -> Space:
        return pages.space.space(name, ttl_s=cache.ttl_s, tag_of=lambda owner: names.about(owner).tag)

    def among_pages(name: str, ttl_s: int) -> Space:
        return pages.space.space(name, ttl_s=ttl_s, tag_of=lambda _: pages.tag)

    tags = Tags(client=client, space=among_pages("users:tag", TAG_TTL_S))
    return UserCaches(
        users=aside(by_owner("user"), USER_SHAPE, trusted),
        emails=by_owner("user:email"),
        pages=aside(
            among_pages("users:list", cache.list_ttl_s),
            PAGE_SHAPE,
            trusted.each[PAGES],
            Tagging(tags=tags, by=lambda _: (ALL_USERS,)),
        ),
        page_tags=tags,
        shards=len(names.each),
    )


def _counted(metrics: Metrics) -> CacheEvents:
    """Hooks that count what the cache does."""

    def operation(_name: str, seconds: float, outcome: str) -> None:
        metrics.cache_operation(seconds)
        if outcome != "ok":
            metrics.cache_error(outcome)

    def lookup(_space: str, outcome: str) -> None:
        (metrics.user_cache_hits if outcome in SERVED else metrics.user_cache_misses)(1)

    return CacheEvents(on_operation=operation, on_lookup=lookup)


def _polled(
    settings: Settings,
    pool: Pool | Link,
    client: CacheClient,
    events: CacheEvents,
    servers: Servers,
    copies: UserCaches | None,
    deadlines: Deadlines,
) -> PolledIndex | None:
    """The reads of the check lane; None without hiredis, and for a Redis in memory."""
    if not settings.http.check_lane or settings.redis.is_in_memory or not is_available():
        return None

    def reads_of(name: str) -> PolledReads:
        return PolledReads(
            pool_to(pool, name),
            clock=time.monotonic,
            events=events,
            deadlines=deadlines,
            takes_refusals=settings.redis.is_cluster,
        )

    return PolledIndex(
        reads=PolledFleet(reads_of),
        client=client,
        key_names=index_keys(settings),
        proofs=servers.proofs,
        owner_of=servers.owner_of,
        monotonic=time.monotonic,
        user_copies=copies,
    )
