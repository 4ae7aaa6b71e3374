"""
A cache over Redis for any service; depends only on the standard library and redis-py.

    breaker = CircuitBreaker(clock=time.monotonic)
    pool = bounded_pool(RedisAddress.from_url("redis://127.0.0.1:6379/0"), size=16)
    client = CacheClient(pool, breaker=breaker, clock=time.monotonic)
    books = KeySpace("library").space("book", ttl_s=3600)
"""

from __future__ import annotations

from authsvc.cache.aside import Aside, Written
from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.entry import MISSING, Entry, Flaw, Json, Missing
from authsvc.cache.errors import CacheError, CacheMisuse, CacheUnavailable, Reason
from authsvc.cache.events import CacheEvents
from authsvc.cache.filling.records import Records
from authsvc.cache.filling.refresh import Refresher
from authsvc.cache.filling.shapes import Display, Shape, Tagging, Tags, TrustCheck
from authsvc.cache.filling.single_flight import SingleFlight
from authsvc.cache.filling.sweep import pattern_drop
from authsvc.cache.keys import ANY, KeySpace, Space
from authsvc.cache.local import Invalidations, Near
from authsvc.cache.lock import Held, Locks
from authsvc.cache.monitor import Health, Keyspace, Memory, Meter, Monitor, Snapshot, Stats, joined
from authsvc.cache.operations.collections import Counters, Hashes, Lists, Sets
from authsvc.cache.operations.keyed import Keys
from authsvc.cache.operations.values import Values
from authsvc.cache.redis.client import CacheClient, Command, Script, Stamped, each_server
from authsvc.cache.redis.cluster import ClusterServers
from authsvc.cache.redis.connections import Connections, Deadlines, RedisAddress, Reply, bounded_pool, stamped
from authsvc.cache.redis.sentinel import SentinelAddress, sentinel_pool
from authsvc.cache.redis.topology import ClusterAddress, Topology
from authsvc.cache.warmer import Ending, Warmed, Warmer, Warming

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
    "ClusterAddress",
    "ClusterServers",
    "Command",
    "Connections",
    "Counters",
    "Deadlines",
    "Display",
    "Ending",
    "Entry",
    "Flaw",
    "Hashes",
    "Health",
    "Held",
    "Invalidations",
    "Json",
    "KeySpace",
    "Keys",
    "Keyspace",
    "Lists",
    "Locks",
    "Memory",
    "Meter",
    "Missing",
    "Monitor",
    "Near",
    "Permit",
    "Reason",
    "Records",
    "RedisAddress",
    "Refresher",
    "Reply",
    "Script",
    "SentinelAddress",
    "Sets",
    "Shape",
    "SingleFlight",
    "Snapshot",
    "Space",
    "Stamped",
    "State",
    "Stats",
    "Tagging",
    "Tags",
    "Topology",
    "TrustCheck",
    "Values",
    "Warmed",
    "Warmer",
    "Warming",
    "Written",
    "bounded_pool",
    "each_server",
    "joined",
    "pattern_drop",
    "sentinel_pool",
    "stamped",
]
