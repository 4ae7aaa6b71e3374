"""Rows in a cache, for the tests of what stands behind it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from authsvc.cache import Aside, CacheClient, CircuitBreaker, Entry, KeySpace, Shape

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
    return Aside(client=client, space=SPACE, shape=SHAPE, lease_ms=5000, rng=random.Random(1).random)


def load(idents):
    """Load any rows."""
    return {ident: Row(ident, 1) for ident in idents}
