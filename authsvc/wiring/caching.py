"""What is cached of users, and who looks after it."""

from __future__ import annotations

import random
from typing import TypeVar

from authsvc.cache.aside import Aside, Proof, Shape, Tagging, Tags
from authsvc.cache.filling.flight import SingleFlight
from authsvc.cache.filling.records import SERVED
from authsvc.cache.keys import KeySpace, Space
from authsvc.cache.redis.client import CacheClient, CacheEvents
from authsvc.observability.metrics import Metrics
from authsvc.settings import Settings
from authsvc.store.copies.users import ALL_USERS, PAGE_SHAPE, USER_SHAPE, UserCaches

T = TypeVar("T")

#: Longer than SQL may take to load what is then cached.
LEASE_MS = 5_000
#: A tag outlives the pages that hang on it.
TAG_TTL_S = 86_400


def user_caches(
    settings: Settings, client: CacheClient, keys: KeySpace, proof: Proof, events: CacheEvents
) -> UserCaches:
    """The three kinds of copies, each believed only under *proof*; who misses waits for who loads."""
    retry_s = settings.cache.lock_retry_delay_ms / 1000

    def aside(space: Space, shape: Shape[T], tagging: Tagging | None = None) -> Aside[T]:
        return Aside(
            client=client,
            space=space,
            shape=shape,
            lease_ms=LEASE_MS,
            rng=random.random,
            events=events,
            proof=proof,
            tagging=tagging,
            flights=SingleFlight(retry_s=retry_s, patience_s=retry_s * settings.cache.lock_max_retries),
        )

    tags = Tags(client=client, space=keys.space("users:tag", ttl_s=TAG_TTL_S))
    return UserCaches(
        users=aside(keys.space("user", ttl_s=settings.cache.ttl_s), USER_SHAPE),
        emails=keys.space("user:email", ttl_s=settings.cache.ttl_s),
        pages=aside(
            keys.space("users:list", ttl_s=settings.cache.list_ttl_s),
            PAGE_SHAPE,
            Tagging(tags=tags, by=lambda _: (ALL_USERS,)),
        ),
        page_tags=tags,
    )


def counting(metrics: Metrics) -> CacheEvents:
    """The cache's hooks, counted."""

    def operation(_name: str, seconds: float, outcome: str) -> None:
        metrics.cache_operation(seconds)
        if outcome != "ok":
            metrics.cache_error(outcome)

    def lookup(_space: str, outcome: str) -> None:
        (metrics.user_cache_hits if outcome in SERVED else metrics.user_cache_misses)(1)

    return CacheEvents(on_operation=operation, on_lookup=lookup)
