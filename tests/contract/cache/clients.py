"""Clients of a real Redis, a cache of rows over them, and an event loop of one connection."""

from __future__ import annotations

import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from authsvc.cache import (
    Aside,
    CacheClient,
    CircuitBreaker,
    Entry,
    KeySpace,
    Records,
    RedisAddress,
    Shape,
    bounded_pool,
)
from authsvc.cache.redis.connections import Pool
from authsvc.cache.redis.polled import PolledReads
from tests.timings import UNHURRIED

#: Longer than a busy machine suspends a process.
PATIENT = UNHURRIED.redis


def cache_client(
    url: str, *, size: int = 4, breaker: CircuitBreaker | None = None, **pool_options
) -> CacheClient:
    """Return a client of *url* as the service would build it, which waits for as long as it takes."""
    pool = bounded_pool(RedisAddress.from_url(url), size=size, **{"deadlines": PATIENT, **pool_options})
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


KEYS = KeySpace("lib")
SPACE = KEYS.space("row", ttl_s=60)


@dataclass(frozen=True)
class Row:
    """One row and its version."""

    id: str
    version: int


SHAPE = Shape(
    schema=1,
    dump=lambda row: Entry({"id": row.id}, row.version),
    load=lambda entry: Row(str(entry.fields["id"]), entry.row_version),
)
IDENTS = [str(number) for number in range(30)]


def client_of(pool) -> CacheClient:
    """Return a client over *pool* or link, as a service would build it."""
    return CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)


def rows_of(client) -> Aside[Row]:
    """Return a cache of rows."""
    return Aside(
        Records(
            client=client,
            space=SPACE,
            shape=SHAPE,
            lease_ms=5000,
            rng=random.Random(1).random,
        )
    )


def load(idents):
    """Load any rows."""
    return {ident: Row(ident, 1) for ident in idents}


def mget(*keys: str) -> bytes:
    """The command, as it is sent."""
    words = [b"MGET", *(key.encode() for key in keys)]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def reads_over(pool: Pool) -> PolledReads:
    """Reads over a connection that was made and is trusted."""
    reads = PolledReads(pool, clock=time.monotonic, deadlines=PATIENT)
    reads.renew()
    assert reads.adopt(lambda _generation: True)
    return reads


def answer_to(reads: PolledReads, *keys: str) -> Sequence[bytes | None]:
    """Ask for *keys*, and wait as a loop does."""
    reads.send(mget(*keys), len(keys))
    return answered(reads)


def answered(reads: PolledReads) -> Sequence[bytes | None]:
    """Rounds of the loop until all values are there."""
    ends_s = time.monotonic() + PATIENT.total_s
    while time.monotonic() < ends_s:
        values = wait_once(reads)
        if values is not None:
            return values
    raise AssertionError("no answer")


def wait_once(reads: PolledReads) -> Sequence[bytes | None] | None:
    """One round of the loop."""
    sock = reads.socket
    assert sock is not None
    readable, writable, _ = select.select([sock], [sock] if reads.has_unsent else [], [], 60)
    assert readable or writable
    return reads.receive()
