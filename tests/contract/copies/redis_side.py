"""What one service process has of Redis: the token checks' connections, and the reconciler's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import fakeredis
from redis.connection import BlockingConnectionPool

from authsvc.cache import (
    CacheClient,
    CacheEvents,
    CircuitBreaker,
    Command,
    KeySpace,
    RedisAddress,
    bounded_pool,
    stamped,
)
from authsvc.cache.redis.connections import Generations, Pool
from authsvc.domain.clients import ClientId
from authsvc.domain.revocations import Position, Proof
from authsvc.domain.tokens.access import AccessToken, MachineToken, TokenProfile, signed_digest
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id
from authsvc.domain.values.shards import Sharded
from authsvc.store.copies.index import IndexKeys, RedisIndex
from authsvc.store.copies.marker import FreshnessMarker, Reading, Seal, new_claim
from authsvc.store.copies.ownership import Ownership, installation_id
from authsvc.store.copies.reconciler import Reconciler
from authsvc.store.copies.servers import Servers, shards_of
from authsvc.store.revocations import SqlRevocationLog
from tests.timings import UNHURRIED

PROFILE = TokenProfile(issuer="http://issuer.test", audience="tests", lifetime_s=3600, leeway_s=5)
KEYS = IndexKeys(KeySpace())
NAMES = Sharded((KEYS,))
MAX_STALENESS_S = 300.0
CHECKS = 3


def client_over(
    pool: Pool, *, on_operation: Callable[[str, float, str], None] = lambda *_: None
) -> CacheClient:
    """A client whose breaker stays out of the way."""
    breaker = CircuitBreaker(clock=time.monotonic, failure_threshold=1_000_000)
    return CacheClient(
        pool, breaker=breaker, clock=time.monotonic, events=CacheEvents(on_operation=on_operation)
    )


def real_pool(url: str, *, size: int = CHECKS, generations: Generations | None = None) -> Pool:
    """Connections to the server at *url*."""
    return bounded_pool(
        RedisAddress.from_url(url), size=size, generations=generations, deadlines=UNHURRIED.redis
    )


def embedded_pool(server: fakeredis.FakeServer, *, size: int = CHECKS) -> Pool:
    """Connections to a server in this process."""
    connection_class = stamped(fakeredis.FakeRedisConnection)
    return cast(
        "Pool",
        BlockingConnectionPool(max_connections=size, connection_class=connection_class, server=server),
    )


def drop_copies(user_id: str, email: str, _row_version: int | None) -> list[tuple[int, Command]]:
    """Drop what the user cache would hold, however new it is."""
    return [(0, ("DEL", f"authsvc:v1:user:{user_id}")), (0, ("DEL", f"authsvc:v1:user:email:{email}"))]


@dataclass
class Hooks:
    """What the index tells others."""

    new_connections: int = 0
    written_s: list[float] = field(default_factory=list)

    def on_new_connection(self) -> None:
        """Count."""
        self.new_connections += 1


def index_over(
    client: CacheClient, clock: Clock, *, proof: Proof | None = None, hooks: Hooks | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> RedisIndex:  # fmt: skip
    """An index as the service builds it."""
    hooks = hooks or Hooks()
    return RedisIndex(
        client=client,
        key_names=NAMES,
        profile=PROFILE,
        proofs=Sharded((proof or Proof(MAX_STALENESS_S),)),
        drop_copies=drop_copies,
        on_new_connection=hooks.on_new_connection,
        on_written=hooks.written_s.append,
        clock=clock,
        monotonic=monotonic,
    )


def access_token(clock: Clock, *, life_s: int = 3600, **changes: object) -> AccessToken:
    """A token issued now, of a new user and session unless *changes* say which."""
    issued_at = int(clock().timestamp())
    fields: dict[str, object] = {
        "token_id": TokenId(new_id()),
        "session_id": SessionId(new_id()),
        "user_id": UserId(new_id()),
        "roles": ("user",),
        "epoch": 0,
        "issued_at": issued_at,
        "not_before": issued_at,
        "expires_at": issued_at + life_s,
        "issuer": PROFILE.issuer,
        "audience": PROFILE.audience,
        "digest": signed_digest(f"{new_id()}.signature"),
    }
    return AccessToken(**(fields | changes))  # type: ignore[arg-type]  # named by the tests


def machine_token(clock: Clock, **changes: object) -> MachineToken:
    """The same of a new client that showed a new secret."""
    issued_at = int(clock().timestamp())
    fields: dict[str, object] = {
        "token_id": TokenId(new_id()),
        "session_id": SessionId(new_id()),
        "client_id": ClientId(new_id()),
        "scopes": ("orders:read",),
        "epoch": 0,
        "issued_at": issued_at,
        "not_before": issued_at,
        "expires_at": issued_at + PROFILE.machine_lifetime_s,
        "issuer": PROFILE.issuer,
        "audience": PROFILE.audience,
        "digest": signed_digest(f"{new_id()}.signature"),
    }
    return MachineToken(**(fields | changes))  # type: ignore[arg-type]  # named by the tests


@dataclass
class SentMarker:
    """A marker whose commands are sent one at a time, as if no other shard were asked about with them."""

    client: CacheClient
    marker: FreshnessMarker

    def read(self, seal: Seal | None = None) -> Reading:
        """What stands there, and over which connection that was read."""
        (reply,), over = self.client.pipeline([self.marker.read_command(seal)])
        return self.marker.reading(cast("list[bytes | None]", reply), over, seal)

    def claim(self) -> bytes | None:
        """Claim the refill; None if somebody else has."""
        claim = new_claim()
        return claim if self.client.call(*self.marker.claim_command(claim)) else None

    def seal(self) -> Seal:
        """A new one."""
        return self.marker.seal()

    def step(self, read: bytes, to: Position, seal: Seal) -> bytes | None:
        """The marker after the step; None if something was lost."""
        target, command = self.marker.step_command(read, to, seal)
        return target if self.client.call(*command) else None

    def advance(self, read: bytes, to: Position, *, over: int, seal: Seal | None = None) -> bool:
        """True if it was moved over the connection that everything went over."""
        (is_done,), generation = self.client.pipeline([self.marker.advance_command(read, to, seal)])
        return bool(is_done) and generation == over

    def renew(self, seq: int) -> bool:
        """True if it was renewed."""
        return bool(self.client.call(*self.marker.renew_command(seq)))

    def discard(self) -> None:
        """Remove it."""
        self.client.call(*self.marker.discard_command())


class Stopwatch:
    """Monotonic seconds that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass
class Process:
    """One service process, as far as it meets Redis."""

    checks: CacheClient
    reconciling: CacheClient
    proof: Proof
    index: RedisIndex
    marker: SentMarker
    reconciler: Reconciler
    monotonic: Stopwatch
    hooks: Hooks
    lags: list[int]

    def is_proven(self) -> bool:
        """True if checks trust Redis now."""
        nothing = access_token(self.index.clock)
        return self.index.look_up(nothing.keys).is_proven

    def connection_id(self) -> int:
        """The server's number for the reconciler's connection."""
        number: int = self.reconciling.call("CLIENT", "ID")  # type: ignore[assignment]  # what it replies
        return number

    def close(self) -> None:
        """Let all connections go."""
        self.checks.close()
        self.reconciling.close()


def process(url: str, log: SqlRevocationLog, clock: Clock, *, reconciling_url: str | None = None) -> Process:
    """A process with its own connections to the Redis at *url*; nothing is compared yet."""
    generations, proof, hooks = Generations(), Proof(MAX_STALENESS_S), Hooks()
    monotonic = Stopwatch()
    lags: list[int] = []
    checks = client_over(real_pool(url, generations=generations))
    reconciling = client_over(real_pool(reconciling_url or url, size=1, generations=generations))
    reconciler = Reconciler(
        revocations=log,
        index=index_over(reconciling, clock, proof=proof, monotonic=monotonic),
        servers=Servers(shards_of(NAMES, Sharded((proof,)), UNHURRIED.marker), reconciling, checks),
        ownership=Ownership(
            installation=partial(installation_id, log._database),  # noqa: SLF001 the one that the log is in
            checks=checks,
        ),
        monotonic=monotonic,
        on_lag=lags.append,
        on_proven=lambda _: None,
    )
    index = index_over(checks, clock, proof=proof, hooks=hooks, monotonic=monotonic)
    marker = SentMarker(reconciling, FreshnessMarker(KEYS.marker, KEYS.installation, UNHURRIED.marker))
    return Process(checks, reconciling, proof, index, marker, reconciler, monotonic, hooks, lags)
