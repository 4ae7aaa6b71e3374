"""Redis as the settings name it, and the user cache in it."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, TypeVar, cast

from authsvc.cache.aside import Aside, Records, Shape, Tagging, Tags, TrustCheck
from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.cache.filling.records import SERVED
from authsvc.cache.filling.single_flight import SingleFlight
from authsvc.cache.keys import KeySpace, Space
from authsvc.cache.lock import Locks
from authsvc.cache.monitor import Meter, Monitor, joined
from authsvc.cache.redis.client import CacheClient, CacheEvents
from authsvc.cache.redis.connections import Deadlines, Generations, Pool, RedisAddress, bounded_pool, stamped
from authsvc.cache.redis.polled import PolledReads, is_available
from authsvc.cache.redis.sentinel import SentinelAddress, sentinel_pool
from authsvc.cache.warmer import Warmed, Warming
from authsvc.domain.revocations import Proof
from authsvc.domain.users import UserStore
from authsvc.observability.metrics import BREAKER_NUMBERS, Metrics
from authsvc.observability.tracing import Tracing
from authsvc.settings import CacheSettings, RedisSettings, Settings
from authsvc.store.copies.admin import CacheAdmin, user_warmers
from authsvc.store.copies.index import IndexKeys
from authsvc.store.copies.polled import PolledIndex
from authsvc.store.copies.users import (
    ALL_USERS,
    PAGE_SHAPE,
    USER_SHAPE,
    CachedUserStore,
    CopyTimings,
    UserCaches,
)
from authsvc.store.sql import Database
from authsvc.wiring.timings import Timings

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Connections of the requests to Redis: one for each thread, opened at the start and not on the hot path.
REDIS_POOL = 32
#: A tag outlives the pages that hang on it.
TAG_TTL_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Redis for this process, before it was compared with SQL."""

    client: CacheClient
    #: The reconciler's own, over a connection of its own.
    reconciling: CacheClient
    #: For the lane of checks; None without one.
    polled: PolledIndex | None
    keys: KeySpace
    proof: Proof
    user_caches: UserCaches
    meter: Meter

    def close(self) -> None:
        """Let all connections go."""
        if self.polled is not None:
            self.polled.reads.close()
        self.client.close()
        self.reconciling.close()


def open_redis(settings: Settings, timings: Timings, metrics: Metrics, tracing: Tracing) -> Redis:
    """Connects to nothing yet: pools fill when they are used."""
    meter = Meter(time.monotonic)
    events = joined(_counted(metrics), meter.events(), tracing.redis)
    pool, single = _pools(settings.redis, timings.redis, size=REDIS_POOL)
    client = _client(pool, _breaker(settings.cache, metrics), events)
    keys = key_space(settings.cache)
    proof = Proof(settings.redis.max_staleness_s)
    return Redis(
        client=client,
        # The reconciler asks at its own pace, also while the breaker of the requests is open.
        reconciling=_client(single, CircuitBreaker(clock=time.monotonic)),
        polled=_polled(settings, pool, client, events, proof, timings.redis),
        keys=keys,
        proof=proof,
        user_caches=_user_caches(settings.cache, timings.copies, client, keys, proof, events),
        meter=meter,
    )


def key_space(cache: CacheSettings) -> KeySpace:
    """The keys under the prefix of the settings."""
    return KeySpace(cache.key_prefix, cache.key_version, cache.max_key_length)


def single_client(redis: RedisSettings, timings: Timings | None = None) -> CacheClient:
    """A client of one connection, for the checks before the start."""
    pool, _ = _pools(redis, (timings or Timings()).redis, size=1)
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


def _breaker(cache: CacheSettings, metrics: Metrics) -> CircuitBreaker:
    """The breaker of the requests, shown by the metrics."""
    metrics.breaker_state(BREAKER_NUMBERS[State.CLOSED])
    return CircuitBreaker(
        cache.breaker_failure_threshold,
        cache.breaker_monitoring_ms / 1000,
        cache.breaker_recovery_ms / 1000,
        cache.breaker_half_open_max_calls,
        clock=time.monotonic,
        on_change=lambda _, state: metrics.breaker_state(BREAKER_NUMBERS[state]),
    )


def _client(pool: Pool, breaker: CircuitBreaker, events: CacheEvents | None = None) -> CacheClient:
    return CacheClient(pool, breaker=breaker, clock=time.monotonic, events=events, misuse_is_outage=True)


def _user_caches(
    cache: CacheSettings,
    timings: CopyTimings,
    client: CacheClient,
    keys: KeySpace,
    proof: Proof,
    events: CacheEvents,
) -> UserCaches:
    """The three kinds of copies, each believed only under *proof*; who misses waits for who loads."""
    retry_s = cache.lock_retry_delay_ms / 1000
    trust = TrustCheck(
        marker_key=IndexKeys(keys).marker,
        trusted=lambda marker, generation: proof.holds(marker, generation, time.monotonic()),
    )

    def aside(space: Space, shape: Shape[T], tagging: Tagging | None = None) -> Aside[T]:
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

    tags = Tags(client=client, space=keys.space("users:tag", ttl_s=TAG_TTL_S))
    return UserCaches(
        users=aside(keys.space("user", ttl_s=cache.ttl_s), USER_SHAPE),
        emails=keys.space("user:email", ttl_s=cache.ttl_s),
        pages=aside(
            keys.space("users:list", ttl_s=cache.list_ttl_s),
            PAGE_SHAPE,
            Tagging(tags=tags, by=lambda _: (ALL_USERS,)),
        ),
        page_tags=tags,
    )


def _counted(metrics: Metrics) -> CacheEvents:
    """The cache's hooks, counted."""

    def operation(_name: str, seconds: float, outcome: str) -> None:
        metrics.cache_operation(seconds)
        if outcome != "ok":
            metrics.cache_error(outcome)

    def lookup(_space: str, outcome: str) -> None:
        (metrics.user_cache_hits if outcome in SERVED else metrics.user_cache_misses)(1)

    return CacheEvents(on_operation=operation, on_lookup=lookup)


def _polled(
    settings: Settings,
    pool: Pool,
    client: CacheClient,
    events: CacheEvents,
    proof: Proof,
    deadlines: Deadlines,
) -> PolledIndex | None:
    """What the lane reads; without hiredis, and with a Redis in memory, there is none."""
    if not settings.http.check_lane or settings.redis.is_in_memory or not is_available():
        return None
    return PolledIndex(
        reads=PolledReads(pool, clock=time.monotonic, events=events, deadlines=deadlines),
        client=client,
        key_names=IndexKeys(key_space(settings.cache)),
        proof=proof,
        monotonic=time.monotonic,
    )


def _pools(redis: RedisSettings, deadlines: Deadlines, *, size: int) -> tuple[Pool, Pool]:
    """A pool of *size* and one of a single connection; their connections are counted together."""
    generations = Generations()
    if redis.is_in_memory:
        return _embedded_pools(generations, size)
    protocol = cast("Literal[2, 3]", redis.protocol)

    def pool(size: int) -> Pool:
        common = _Common(
            size=size, protocol=protocol, client_name="authsvc", deadlines=deadlines, generations=generations
        )
        if redis.sentinels:
            return sentinel_pool(_sentinels(redis), **common)
        return bounded_pool(_address(redis), **common)

    return pool(size), pool(1)


class _Common(TypedDict):
    """What both kinds of pools are told."""

    size: int
    protocol: Literal[2, 3]
    client_name: str
    deadlines: Deadlines
    generations: Generations


def _sentinels(redis: RedisSettings) -> SentinelAddress:
    return SentinelAddress(
        sentinels=tuple((address.host, address.port) for address in redis.sentinels),
        service=redis.sentinel_service or "",
        redis=_address(redis),
        username=redis.sentinel_username,
        password=redis.sentinel_password.reveal() if redis.sentinel_password else None,
    )


def _address(redis: RedisSettings) -> RedisAddress:
    authorities = str(redis.ca_file) if redis.ca_file else None
    if redis.url:
        return replace(RedisAddress.from_url(redis.url.reveal()), tls_ca=authorities)
    return RedisAddress(
        host=redis.host or "",
        port=redis.port,
        db=redis.db,
        username=redis.username,
        password=redis.password.reveal() if redis.password else None,
        tls=redis.is_tls,
        tls_ca=authorities,
    )


def _embedded_pools(generations: Generations, size: int) -> tuple[Pool, Pool]:
    """Redis in this process, for development: data and outages of it are nobody else's."""
    import fakeredis
    from redis import ConnectionPool

    connection_class = stamped(fakeredis.FakeRedisConnection, generations=generations)
    server = fakeredis.FakeServer()

    def pool(size: int) -> Pool:
        made = ConnectionPool(connection_class=connection_class, server=server, max_connections=size)
        return cast("Pool", made)

    return pool(size), pool(1)
