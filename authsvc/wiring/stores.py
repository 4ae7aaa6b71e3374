"""SQL and Redis as the settings name them, and what stands directly on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Literal, TypedDict, cast

from authsvc.cache.aside import Proof as CacheProof
from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.cache.keys import KeySpace
from authsvc.cache.monitor import Meter, joined
from authsvc.cache.redis.client import CacheClient, CacheEvents
from authsvc.cache.redis.connections import Generations, Pool, RedisAddress, bounded_pool, stamped
from authsvc.cache.redis.polled import PolledReads, is_available
from authsvc.cache.redis.sentinel import SentinelAddress, sentinel_pool
from authsvc.domain.revocations import COPY_MARGIN_S, Proof
from authsvc.domain.tokens.access import TokenProfile
from authsvc.domain.users import RoleNames
from authsvc.domain.values.clocks import Clock
from authsvc.observability.health import LastAnswers
from authsvc.observability.metrics import Metrics
from authsvc.observability.tracing import Tracing
from authsvc.settings import RedisSettings, Secret, Settings
from authsvc.store.copies.index import IndexKeys, RedisIndex
from authsvc.store.copies.marker import FreshnessMarker
from authsvc.store.copies.ownership import Ownership, installation_id
from authsvc.store.copies.polled import PolledIndex
from authsvc.store.copies.reconciler import Heartbeat, Reconciler
from authsvc.store.copies.users import UserCaches
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sql import POOL_SIZE, Database, DatabaseEvents
from authsvc.wiring.caching import counting, user_caches

#: Connections of the requests to Redis: one for each thread, opened at the start and not on the hot path.
REDIS_POOL = 32

#: What jitter makes of a TTL at most.
LONGEST_TTL = 1.1

_BREAKER_NUMBERS = {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The truth, the fast copy, and who keeps the second honest."""

    database: Database
    following: Database
    log: SqlRevocationLog
    redis: CacheClient
    reconciling: CacheClient
    keys: KeySpace
    user_caches: UserCaches
    meter: Meter
    proof: Proof
    index: RedisIndex
    #: The same for the lane; None without one.
    polled: PolledIndex | None
    heartbeat: Heartbeat
    profile: TokenProfile

    def close(self) -> None:
        """Stop comparing and let all connections go."""
        self.heartbeat.close()
        if self.polled is not None:
            self.polled.reads.close()
        self.redis.close()
        self.reconciling.close()
        self.following.close()
        self.database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fast:
    """Redis, before anybody has compared it with SQL."""

    redis: CacheClient
    reconciling: CacheClient
    polled: PolledIndex | None
    keys: KeySpace
    proof: Proof
    user_caches: UserCaches
    meter: Meter


def open_stores(
    settings: Settings, metrics: Metrics, tracing: Tracing, answers: LastAnswers, clock: Clock
) -> Stores:
    """Connects to nothing yet: pools fill when they are used or started."""
    profile = TokenProfile(
        issuer=settings.tokens.issuer,
        audience=settings.tokens.audience,
        lifetime_s=settings.tokens.access_ttl_s,
        leeway_s=settings.tokens.leeway_s,
        has_client_id=settings.tokens.has_client_id,
        roles=RoleNames(settings.tokens.roles),
    )
    noted = _noted_in(answers)
    database = open_database(settings, observed_by(metrics, tracing, noted), pool_size=POOL_SIZE - 1)
    # Slow commits of requests can take all of their connections: the log is followed over one of its own.
    following = open_database(settings, noted, pool_size=1)
    copies_live = timedelta(seconds=profile.lifetime_s + profile.leeway_s + COPY_MARGIN_S)
    # A Redis that was away, and kept what it had, must still be told what changed when it comes back.
    users_live = timedelta(seconds=settings.cache.ttl_s * LONGEST_TTL + COPY_MARGIN_S)
    log = SqlRevocationLog(
        database, copies_live=copies_live, users_live=users_live, clock=clock, following=following
    )
    fast = _open_redis(settings, metrics, tracing)
    waker = _Waker()
    index = RedisIndex(
        client=fast.redis,
        key_names=IndexKeys(fast.keys),
        profile=profile,
        proof=fast.proof,
        drop_copies=fast.user_caches.drop_commands,
        on_new_connection=waker.wake,
        on_written=metrics.revocation_propagation,
        clock=clock,
        monotonic=time.monotonic,
        user_copies=fast.user_caches if settings.cache.is_enabled else None,
    )
    heartbeat = Heartbeat(_reconciler(fast, index, log, following, metrics, answers), metrics.heal)
    waker.wakes = heartbeat.wake
    return Stores(
        database=database,
        following=following,
        log=log,
        redis=fast.redis,
        reconciling=fast.reconciling,
        keys=fast.keys,
        user_caches=fast.user_caches,
        meter=fast.meter,
        proof=fast.proof,
        index=index,
        polled=fast.polled,
        heartbeat=heartbeat,
        profile=profile,
    )


def open_database(
    settings: Settings, events: DatabaseEvents | None = None, *, pool_size: int = POOL_SIZE
) -> Database:
    """The database of *settings*, with a breaker of its own."""
    events = events or DatabaseEvents()
    breaker = CircuitBreaker(clock=time.monotonic, on_change=lambda _, state: events.on_breaker(state))
    url = settings.database.url.reveal()
    return Database(url, breaker=breaker, clock=time.monotonic, pool_size=pool_size, events=events)


def _noted_in(answers: LastAnswers) -> DatabaseEvents:
    """The hooks that tell all workers whether SQL answers."""
    return DatabaseEvents(
        on_answer=lambda: answers.answered(time.monotonic()),
        on_outage=lambda: answers.failed(time.monotonic()),
    )


def observed_by(metrics: Metrics, tracing: Tracing, noted: DatabaseEvents) -> DatabaseEvents:
    """The hooks of the database, beside *noted*: connections and breaker are counted, statements traced."""
    metrics.sql_breaker_state(_BREAKER_NUMBERS[State.CLOSED])
    return replace(
        noted,
        on_breaker=lambda state: metrics.sql_breaker_state(_BREAKER_NUMBERS[state]),
        on_pool=metrics.sql_connections,
        on_connect=tracing.connection,
    )


def open_pools(redis: RedisSettings, *, size: int) -> tuple[Pool, Pool]:
    """A pool of *size* and one of a single connection; their connections are counted together."""
    generations = Generations()
    if redis.is_in_memory:
        return _embedded_pools(generations, size)
    protocol = cast("Literal[2, 3]", redis.protocol)

    def pool(size: int) -> Pool:
        common = _Common(size=size, protocol=protocol, client_name="authsvc", generations=generations)
        if redis.sentinels:
            return sentinel_pool(_sentinels(redis), **common)
        return bounded_pool(_address(redis), **common)

    return pool(size), pool(1)


def _open_redis(settings: Settings, metrics: Metrics, tracing: Tracing) -> _Fast:
    cache = settings.cache
    breaker = CircuitBreaker(
        cache.breaker_failure_threshold,
        cache.breaker_monitoring_ms / 1000,
        cache.breaker_recovery_ms / 1000,
        cache.breaker_half_open_max_calls,
        clock=time.monotonic,
        on_change=lambda _, state: metrics.breaker_state(_BREAKER_NUMBERS[state]),
    )
    metrics.breaker_state(_BREAKER_NUMBERS[State.CLOSED])
    meter = Meter(time.monotonic)
    events = joined(counting(metrics), meter.events(), tracing.redis)
    pool, single = open_pools(settings.redis, size=REDIS_POOL)
    redis = _client(pool, breaker, events)
    # The reconciler asks at its own pace, also while the breaker of the requests is open.
    reconciling = _client(single, CircuitBreaker(clock=time.monotonic))
    keys = _key_space(settings)
    proof = Proof(settings.redis.max_staleness_s)
    trusted = CacheProof(
        marker_key=IndexKeys(keys).marker,
        trusted=lambda marker, generation: proof.holds(marker, generation, time.monotonic()),
    )
    return _Fast(
        redis=redis,
        reconciling=reconciling,
        polled=_polled(settings, pool, redis, events, proof),
        keys=keys,
        proof=proof,
        user_caches=user_caches(settings, redis, keys, trusted, events),
        meter=meter,
    )


def _client(pool: Pool, breaker: CircuitBreaker, events: CacheEvents | None = None) -> CacheClient:
    return CacheClient(pool, breaker=breaker, clock=time.monotonic, events=events, misuse_is_outage=True)


def _key_space(settings: Settings) -> KeySpace:
    cache = settings.cache
    return KeySpace(cache.key_prefix, cache.key_version, cache.max_key_length)


def _polled(
    settings: Settings, pool: Pool, client: CacheClient, events: CacheEvents, proof: Proof
) -> PolledIndex | None:
    """What the lane reads; without hiredis, and with a Redis in memory, there is none."""
    if not settings.http.check_lane or settings.redis.is_in_memory or not is_available():
        return None
    return PolledIndex(
        reads=PolledReads(pool, clock=time.monotonic, events=events),
        client=client,
        key_names=IndexKeys(_key_space(settings)),
        proof=proof,
        monotonic=time.monotonic,
    )


def _reconciler(
    fast: _Fast,
    index: RedisIndex,
    log: SqlRevocationLog,
    following: Database,
    metrics: Metrics,
    answers: LastAnswers,
) -> Reconciler:
    return Reconciler(
        revocations=log,
        # Over its own connection, like the marker: what was written before a failover is not vouched for.
        index=replace(index, client=fast.reconciling),
        marker=FreshnessMarker(fast.reconciling, IndexKeys(fast.keys).marker),
        ownership=Ownership(
            # Over the connection of the log: a pool that requests have used up must not stop a comparison.
            installation=partial(installation_id, following),
            client=fast.reconciling,
            checks=fast.redis,
            key=IndexKeys(fast.keys).installation,
        ),
        client=fast.reconciling,
        checks=fast.redis,
        proof=fast.proof,
        monotonic=time.monotonic,
        on_lag=metrics.revocation_lag,
        on_compared=lambda: answers.compared(time.monotonic()),
        lane=fast.polled.reads if fast.polled is not None else None,
    )


class _Waker:
    """Lets the index wake the reconciler, which is made after it."""

    def __init__(self) -> None:
        self.wakes: Callable[[], None] | None = None

    def wake(self) -> None:
        if self.wakes is not None:
            self.wakes()


class _Common(TypedDict):
    """What both kinds of pools are told."""

    size: int
    protocol: Literal[2, 3]
    client_name: str
    generations: Generations


def _sentinels(redis: RedisSettings) -> SentinelAddress:
    return SentinelAddress(
        sentinels=tuple((address.host, address.port) for address in redis.sentinels),
        service=redis.sentinel_service or "",
        redis=_address(redis),
        username=redis.sentinel_username,
        password=_revealed(redis.sentinel_password),
    )


def _revealed(secret: Secret | None) -> str | None:
    return secret.reveal() if secret else None


def _address(redis: RedisSettings) -> RedisAddress:
    authorities = str(redis.ca_file) if redis.ca_file else None
    if redis.url:
        return replace(RedisAddress.from_url(redis.url.reveal()), tls_ca=authorities)
    return RedisAddress(
        host=redis.host or "",
        port=redis.port,
        db=redis.db,
        username=redis.username,
        password=_revealed(redis.password),
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
