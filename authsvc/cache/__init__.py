"""
A cache over Redis, usable by any service: standard library and redis-py alone.

    breaker = CircuitBreaker(clock=time.monotonic)
    pool = bounded_pool(RedisAddress.from_url("redis://127.0.0.1:6379/0"), size=16)
    client = CacheClient(pool, breaker=breaker, clock=time.monotonic)
    books = KeySpace("library").space("book", ttl_s=3600)
"""

from __future__ import annotations

from authsvc.cache.aside import Aside, Written
from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.client import CacheClient, CacheEvents, Command, Script, Stamped, each_server
from authsvc.cache.connections import Connections, Deadlines, RedisAddress, Reply, bounded_pool, stamped
from authsvc.cache.entry import MISSING, Entry, Flaw, Missing
from authsvc.cache.errors import CacheError, CacheMisuse, CacheUnavailable, Reason
from authsvc.cache.filling.flight import SingleFlight
from authsvc.cache.filling.refresh import Refresher
from authsvc.cache.filling.shapes import Display, Proof, Shape, Tagging, Tags
from authsvc.cache.filling.sweep import pattern_drop
from authsvc.cache.keys import ANY, KeySpace, Space

__all__ = [
    "ANY",
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
    "Display",
    "Entry",
    "Flaw",
    "KeySpace",
    "Missing",
    "Permit",
    "Proof",
    "Reason",
    "RedisAddress",
    "Refresher",
    "Reply",
    "Script",
    "Shape",
    "SingleFlight",
    "Space",
    "Stamped",
    "State",
    "Tagging",
    "Tags",
    "Written",
    "bounded_pool",
    "each_server",
    "pattern_drop",
    "stamped",
]
