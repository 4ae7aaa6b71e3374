"""Invalidation by pattern: for operators and rare changes; what changes often has keys or tags."""

from __future__ import annotations

from typing import Final, cast

from authsvc.cache.keys import Space, Wildcard
from authsvc.cache.redis.client import CacheClient, each_server

#: How many keys one step looks at, and at most unlinks: so long do others wait for the server.
STEP_KEYS: Final = 500


def pattern_drop(client: CacheClient, space: Space, *pieces: str | Wildcard) -> int:
    """
    Invalidate the records of *space* whose ids read like *pieces*; return how many there were.

    ``pattern_drop(client, space, "tech7:", ANY)`` drops what begins with ``tech7:``, and without pieces
    everything goes.  An id so long that its key holds its hash is found by ANY alone.  Leases go first, in a
    scan of their own: who took one before the change that this follows cannot store any more.  Many short
    steps; raises CacheUnavailable, and may then be called again.
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
            # One command for each key: on a cluster they lie in different slots.
            unlinked = server.pipeline([("UNLINK", key) for key in found]).values
            dropped += sum(cast("list[int]", unlinked))
        if cursor == b"0":
            return dropped
