"""Administration of the user cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from authsvc.cache.errors import CacheError
from authsvc.cache.monitor import Monitor, Snapshot
from authsvc.cache.warmer import Warmer, Warming
from authsvc.domain.errors import NotFound, StoreUnavailable
from authsvc.domain.users import UserFilter, UserStore
from authsvc.domain.values.identifiers import UserId
from authsvc.store.accounts.users import recent_user_ids
from authsvc.store.copies.users import UserCaches, page_words
from authsvc.store.sql import Database

#: Largest number of users to warm; those who logged in last are chosen.
WARM_LIMIT = 1_000
WARM_PER_S = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """Counts of all workers since the start; ratio 0 to 1."""

    hits: int
    misses: int
    hit_ratio: float
    operations: int
    average_latency_ms: float
    breaker: str
    active_locks: int


class Totals(Protocol):
    """The counts of all workers together; time in seconds."""

    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def hit_ratio(self) -> float: ...
    @property
    def operations(self) -> int: ...
    @property
    def operations_s(self) -> float: ...
    @property
    def active_locks(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAdmin:
    """Operations on the user cache on demand; raises StoreUnavailable without Redis."""

    caches: UserCaches
    #: The users in SQL, read without the cache: a read must not cache what is to be cleared.
    users: UserStore
    monitor: Monitor
    warming: Warming
    totals: Callable[[], Totals]

    def stats(self) -> CacheStats:
        """Counts of the whole service."""
        health = self.monitor.health()
        if not health.is_connected:
            raise StoreUnavailable(f"redis: {health.reason}")
        totals = self.totals()
        return CacheStats(
            hits=totals.hits,
            misses=totals.misses,
            hit_ratio=round(totals.hit_ratio, 4),
            operations=totals.operations,
            average_latency_ms=round(totals.operations_s * 1000 / max(1, totals.operations), 3),
            breaker=health.breaker.value,
            active_locks=totals.active_locks,
        )

    def snapshot(self) -> Snapshot:
        """The state of Redis; None for what it denies."""
        snapshot = self.monitor.snapshot()
        if not snapshot.health.is_connected:
            raise StoreUnavailable(f"redis: {snapshot.health.reason}")
        return snapshot

    def warm(self) -> dict[str, int]:
        """Run the warmers; returns the number of records that each has in the cache now."""
        self.snapshot()
        try:
            return {name: result.warmed for name, result in self.warming.run_all().items()}
        except CacheError as error:  # it answers, but accepts no lock: full, or read-only
            raise StoreUnavailable(f"redis: {error}") from error

    def clear(self, user_id: UserId | None) -> int:
        """Drop the cached data of one user, or of all; never keys of tokens, limits or locks."""
        try:
            if user_id is None:
                return self.caches.clear()
            return self._clear_one(user_id)
        except CacheError as error:
            raise StoreUnavailable(f"redis: {error}") from error

    def _clear_one(self, user_id: UserId) -> int:
        try:
            email = self.users.get(user_id).email
        except (NotFound, StoreUnavailable):
            email = None  # the cached id of their address stays until it expires; readers verify it
        return self.caches.drop(user_id, email)


def user_warmers(
    cached: UserStore, caches: UserCaches, database: Database, *, batch_size: int
) -> Iterator[Warmer]:
    """The users who logged in last, and the first page of the list."""
    first_page = UserFilter()

    def warm_users(idents: Sequence[str]) -> int:
        cached.get_many([UserId(ident) for ident in idents])
        return caches.held([caches.users.space.key(ident) for ident in idents])

    def warm_pages(idents: Sequence[str]) -> int:
        cached.page(first_page)
        return caches.held([caches.pages.space.key(ident) for ident in idents])

    yield Warmer(
        name="users",
        idents=lambda: recent_user_ids(database, most=WARM_LIMIT),
        warm=warm_users,
        errors=(StoreUnavailable, CacheError),
        limit=WARM_LIMIT,
        batch_size=batch_size,
        rate_per_s=WARM_PER_S,
    )
    yield Warmer(
        name="user_lists",
        idents=lambda: [page_words(first_page)],
        warm=warm_pages,
        errors=(StoreUnavailable, CacheError),
    )
