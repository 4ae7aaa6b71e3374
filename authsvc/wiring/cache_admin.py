"""Who looks after the user cache: statistics, warming, clearing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from authsvc.cache.lock import Locks
from authsvc.cache.monitor import Monitor
from authsvc.cache.warmer import Warmed, Warming
from authsvc.domain.users import UserStore
from authsvc.observability.metrics import Metrics
from authsvc.settings import Settings
from authsvc.store.copies.admin import CacheAdmin, user_warmers
from authsvc.store.copies.users import CachedUserStore
from authsvc.wiring.stores import Stores

log = logging.getLogger(__name__)


def cache_admin(settings: Settings, stores: Stores, users: UserStore, metrics: Metrics) -> CacheAdmin:
    """Statistics, warming and clearing."""
    cache = settings.cache
    locks = Locks(
        stores.redis,
        stores.keys,
        ttl_s=cache.lock_ttl_s,
        retry_delay_s=cache.lock_retry_delay_ms / 1000,
        max_retries=cache.lock_max_retries,
        on_active=metrics.active_locks,
    )
    warming = Warming(locks=locks, on_progress=_tell)
    if cache.is_enabled:
        warmers = user_warmers(users, stores.user_caches, stores.database, batch_size=cache.batch_size)
        for warmer in warmers:
            warming.register(warmer)
    return CacheAdmin(
        caches=stores.user_caches,
        users=users.behind if isinstance(users, CachedUserStore) else users,
        monitor=Monitor(stores.redis, stores.meter, time.monotonic),
        warming=warming,
        totals=metrics.cache_totals,
    )


def starter(settings: Settings, stores: Stores, admin: CacheAdmin) -> Callable[[], None]:
    """What begins in the process that serves: the comparison, and the warmers behind it."""

    def start() -> None:
        if settings.cache.is_enabled and settings.cache.is_warmup_enabled:
            stores.heartbeat.when_begun(admin.warming.start)
        stores.heartbeat.start()

    return start


def _tell(progress: Warmed) -> None:
    fields = {"warmer": progress.name, "seen": progress.seen, "warmed": progress.warmed}
    log.debug("cache.warming", extra=fields)
