"""SQL as the settings name it, with the revocation log and the reconciler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.domain.revocations import COPY_MARGIN_S
from authsvc.domain.tokens.access import TokenProfile
from authsvc.domain.users import RoleNames
from authsvc.domain.values.clocks import Clock
from authsvc.observability.health import LastAnswers
from authsvc.observability.metrics import BREAKER_NUMBERS, Metrics
from authsvc.observability.tracing import Tracing
from authsvc.settings import Settings
from authsvc.store.accounts.transfers import SqlUserTransfers
from authsvc.store.copies.heartbeat import Heartbeat
from authsvc.store.copies.index import RedisIndex
from authsvc.store.copies.ownership import Ownership, installation_id
from authsvc.store.copies.reconciler import Reconciler
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sql import POOL_SIZE, Database, DatabaseEvents
from authsvc.wiring.caching import Redis, open_redis
from authsvc.wiring.timings import Timings

#: Largest factor by which jitter extends a TTL.
LONGEST_TTL = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """SQL, its copy in Redis, and the reconciler that compares them."""

    database: Database
    following: Database
    log: SqlRevocationLog
    redis: Redis
    index: RedisIndex
    heartbeat: Heartbeat
    profile: TokenProfile

    def close(self) -> None:
        """Stop the reconciler and close all connections."""
        self.heartbeat.close()
        self.redis.close()
        self.following.close()
        self.database.close()


def open_stores(
    settings: Settings,
    timings: Timings,
    metrics: Metrics,
    tracing: Tracing,
    answers: LastAnswers,
    clock: Clock,
) -> Stores:
    """Stores of this process; pools connect when they are first used or started."""
    profile = _profile(settings)
    noted = _noted_in(answers)
    observed = _observed_by(metrics, tracing, noted)
    database = open_database(settings, timings, events=observed, pool_size=POOL_SIZE - 1)
    # Slow commits of requests can use all connections of their pool: the log is read over a separate one.
    following = open_database(settings, timings, events=noted, pool_size=1)
    log = revocation_log(settings, database, clock, following=following)
    redis = open_redis(settings, timings, metrics, tracing)
    waker = _Waker()
    index = RedisIndex(
        client=redis.client,
        key_names=redis.names,
        profile=profile,
        proofs=redis.proofs,
        drop_copies=redis.user_caches.drop_commands,
        on_new_connection=waker.wake,
        on_written=metrics.revocation_propagation,
        clock=clock,
        monotonic=time.monotonic,
        user_copies=redis.user_caches if settings.cache.is_enabled else None,
    )
    heartbeat = Heartbeat(
        _reconciler(redis, index, log, following, metrics, answers), metrics.heal, timings.heartbeat
    )
    waker.wakes = heartbeat.wake
    return Stores(
        database=database,
        following=following,
        log=log,
        redis=redis,
        index=index,
        heartbeat=heartbeat,
        profile=profile,
    )


def revocation_log(
    settings: Settings, database: Database, clock: Clock, *, following: Database | None = None
) -> SqlRevocationLog:
    """The log in *database*; entries live longer than the tokens and cached users that they concern."""
    profile, cache = _profile(settings), settings.cache
    return SqlRevocationLog(
        database,
        copies_live=timedelta(seconds=profile.longest_s + profile.leeway_s + COPY_MARGIN_S),
        # A Redis that was away and kept its data must still receive these changes when it comes back.
        users_live=timedelta(seconds=cache.ttl_s * LONGEST_TTL + COPY_MARGIN_S),
        clock=clock,
        following=following,
    )


def open_database(
    settings: Settings,
    timings: Timings | None = None,
    *,
    events: DatabaseEvents | None = None,
    pool_size: int = POOL_SIZE,
) -> Database:
    """The database of *settings*, with its circuit breaker."""
    events = events or DatabaseEvents()
    breaker = CircuitBreaker(clock=time.monotonic, on_change=lambda _, state: events.on_breaker(state))
    url = settings.database.url.reveal()
    return Database(
        url,
        breaker=breaker,
        clock=time.monotonic,
        pool_size=pool_size,
        events=events,
        timings=(timings or Timings()).sql,
    )


def open_transfers(settings: Settings, database: Database, clock: Clock) -> SqlUserTransfers:
    """Import and export of users in *database*; for the command line."""
    return SqlUserTransfers(database, revocation_log(settings, database, clock), clock, pause=time.sleep)


def _noted_in(answers: LastAnswers) -> DatabaseEvents:
    """Hooks that record for all workers whether SQL answers."""
    return DatabaseEvents(
        on_answer=lambda: answers.answered(time.monotonic()),
        on_outage=lambda: answers.failed(time.monotonic()),
    )


def _observed_by(metrics: Metrics, tracing: Tracing, noted: DatabaseEvents) -> DatabaseEvents:
    """The hooks of the database, beside *noted*: connections and breaker are counted, statements traced."""
    metrics.sql_breaker_state(BREAKER_NUMBERS[State.CLOSED])
    return replace(
        noted,
        on_breaker=lambda state: metrics.sql_breaker_state(BREAKER_NUMBERS[state]),
        on_pool=metrics.sql_connections,
        on_connect=tracing.connection,
    )


def _profile(settings: Settings) -> TokenProfile:
    tokens = settings.tokens
    return TokenProfile(
        issuer=tokens.issuer,
        audience=tokens.audience,
        lifetime_s=tokens.access_ttl_s,
        machine_lifetime_s=settings.machines.ttl_s,
        leeway_s=tokens.leeway_s,
        has_client_id=tokens.has_client_id,
        has_levels=settings.second_factors.is_on,
        roles=RoleNames(tokens.roles),
    )


def _reconciler(
    redis: Redis,
    index: RedisIndex,
    log: SqlRevocationLog,
    following: Database,
    metrics: Metrics,
    answers: LastAnswers,
) -> Reconciler:
    return Reconciler(
        revocations=log,
        index=index,
        servers=redis.servers,
        ownership=Ownership(
            # Over the connection of the log: a pool whose connections are all in use must not stop a
            # comparison.
            installation=partial(installation_id, following),
            checks=redis.client,
            shards=len(redis.names.each),
        ),
        monotonic=time.monotonic,
        on_lag=metrics.revocation_lag,
        on_proven=metrics.redis_shards_proven,
        on_compared=lambda: answers.compared(time.monotonic()),
    )


class _Waker:
    """Lets the index wake the reconciler, which is made after it."""

    def __init__(self) -> None:
        self.wakes: Callable[[], None] | None = None

    def wake(self) -> None:
        if self.wakes is not None:
            self.wakes()
