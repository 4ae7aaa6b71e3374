"""The freshness marker: the last log entry that Redis is known to hold everything up to."""

from __future__ import annotations

import secrets

from authsvc.cache.client import CacheClient, Script

#: The marker's life; renewed every second (CONTRACT: 10 s).
LIFE_MS = 10_000
#: A replayer that died holds its claim for so long.
CLAIM_MS = 3_000

_CLAIM = b"replaying:"


class FreshnessMarker:
    """
    Reads and moves the marker over one connection, whose generation it tells.

    While Redis is being refilled the key holds a claim instead of a number: it proves nothing, keeps
    other processes from doing the same work, and is lost with the data, so that a refill which a flush
    cut through can never put a marker on top of it.  Raises CacheUnavailable.
    """

    def __init__(self, client: CacheClient, key: str) -> None:
        self._client = client
        self._key = key
        self._advance = Script.load("authsvc.store", "advance")
        self._renew = Script.load("authsvc.store", "renew")

    def read(self) -> tuple[bytes | None, int]:
        """The marker and the generation of the connection that brought it."""
        (value,), generation = self._client.mget((self._key,))
        return value, generation

    def claim(self) -> bytes | None:
        """Claim the refill of an empty Redis; None if somebody else does it."""
        claim = _CLAIM + secrets.token_hex(8).encode()
        taken = self._client.call("SET", self._key, claim, "NX", "PX", CLAIM_MS)
        return claim if taken else None

    @staticmethod
    def is_claim(value: bytes) -> bool:
        """True if *value* is what a refill that is under way leaves in the marker's place."""
        return value.startswith(_CLAIM)

    def hold(self, claim: bytes) -> bool:
        """Renew *claim*; False if it was lost."""
        return bool(self._client.call(*self._renew.command([self._key], [claim, CLAIM_MS])))

    def advance(self, read: bytes, seq: int, *, over: int) -> bool:
        """
        Bring the marker from *read* to *seq*.

        False if it was lost since, or if the connection is no longer the one of generation *over*: what
        was written before may then be gone, and all must be replayed.
        """
        command = self._advance.command([self._key], [read, seq, LIFE_MS])
        (is_done,), generation = self._client.pipeline([command])
        return bool(is_done) and generation == over

    def renew(self, seq: int) -> bool:
        """Keep the marker going if it stands at exactly *seq*: all that may be done without SQL."""
        return bool(self._client.call(*self._renew.command([self._key], [str(seq), LIFE_MS])))

    def discard(self) -> None:
        """Remove the marker: nothing in Redis is to be believed until it was replayed."""
        self._client.call("DEL", self._key)
