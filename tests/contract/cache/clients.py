"""Clients of a real Redis for the tests of the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from authsvc.cache import CacheClient, CircuitBreaker, RedisAddress, bounded_pool


def cache_client(
    url: str, *, size: int = 4, breaker: CircuitBreaker | None = None, **pool_options
) -> CacheClient:
    """Return a client of *url* as the service would build it."""
    pool = bounded_pool(RedisAddress.from_url(url), size=size, **pool_options)
    return CacheClient(pool, breaker=breaker or CircuitBreaker(clock=time.monotonic), clock=time.monotonic)


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Run all *works* at once, and return what each returned or raised."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(index: int) -> None:
        start.wait(60)
        try:
            results[index] = works[index]()
        except Exception as error:  # noqa: BLE001 the caller asserts on it
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "still at work"
    return results
