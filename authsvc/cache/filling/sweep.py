"""Invalidation by pattern, for operators and rare changes; use keys or tags for frequent ones."""

from __future__ import annotations

from typing import Final, cast

from authsvc.cache.keys import Space, Wildcard
from authsvc.cache.redis.client import CacheClient, each_server

#: Keys per step. The server answers no other client during a step, so steps are short.
STEP_KEYS: Final = 500


def pattern_drop(client: CacheClient, space: Space, *pieces: str | Wildcard) -> int:
    """
    Invalidate the records of *space* whose ids match *pieces*; return their number.

    ``pattern_drop(client, space, "tech7:", ANY)`` drops ids that begin with ``tech7:``; without pieces all
    are dropped. An id that is so long that its key contains a hash matches only ANY.  Leases are deleted
    first, in their own scan: readers that took a lease before the change cannot store any more. Works in many
    short steps; raises CacheUnavailable, and may then be called again.
    """
    pattern = space.pattern(*pieces)
    leases = space.lease_pattern(*pieces)
    for server in each_server(client):
        _sweep(server, leases)
    return sum(_sweep(server, pattern) for server in each_server(client))


def _sweep(server: CacheClient, pattern: str) -> int:
    cursor: bytes = b"0"
    dropped = 0
    while True:
        reply = server.call("SCAN", cursor, "MATCH", pattern, "COUNT", STEP_KEYS)
        cursor, found = cast("tuple[bytes, list[bytes]]", reply)
        if found:
            # One command for each key: on a cluster they are in different slots.
            unlinked = server.pipeline([("UNLINK", key) for key in found]).values
            dropped += sum(cast("list[int]", unlinked))
        if cursor == b"0":
            return dropped
