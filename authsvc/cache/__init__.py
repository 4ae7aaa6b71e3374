"""
A cache over Redis, usable by any service: standard library and redis-py alone.

    breaker = CircuitBreaker(clock=time.monotonic)
    pool = bounded_pool(RedisAddress.from_url("redis://127.0.0.1:6379/0"), size=16)
    client = CacheClient(pool, breaker=breaker, clock=time.monotonic)
    books = KeySpace("library").space("book", ttl_s=3600)
"""

from __future__ import annotations

from authsvc.cache.aside import Aside, Proof, Shape
from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.client import CacheClient, CacheEvents, Command, Script, Stamped
from authsvc.cache.connections import Connections, Deadlines, RedisAddress, Reply, bounded_pool, stamped
from authsvc.cache.entry import MISSING, Entry, Flaw, Missing
from authsvc.cache.errors import CacheError, CacheMisuse, CacheUnavailable, Reason
from authsvc.cache.keys import KeySpace, Space

__all__ = [
    "MISSING",
    "Aside",
    "CacheClient",
    "CacheError",
    "CacheEvents",
    "CacheMisuse",
    "CacheUnavailable",
    "CircuitBreaker",
    "Command",
    "Connections",
    "Deadlines",
    "Entry",
    "Flaw",
    "KeySpace",
    "Missing",
    "Permit",
    "Proof",
    "Reason",
    "RedisAddress",
    "Reply",
    "Script",
    "Shape",
    "Space",
    "Stamped",
    "State",
    "bounded_pool",
    "stamped",
]
