"""The freshness marker: the last log entry that Redis is known to hold everything up to."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from authsvc.cache.redis.client import CacheClient, Command, Script
from authsvc.domain.revocations import Position

_CLAIM = b"replaying:"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerTimings:
    """How long the marker and a claim live (milliseconds, as Redis takes them)."""

    #: The marker is renewed every second.
    life_ms: int = 10_000
    #: A replayer that died holds its claim for so long.
    claim_ms: int = 3_000


@dataclass(frozen=True, slots=True)
class Seal:
    """A key that is written behind a page of entries: the server that holds it holds the page."""

    key: str
    life_ms: int

    @property
    def command(self) -> Command:
        """What sets it; to be sent behind the page, over the same connection."""
        return ("SET", self.key, 1, "PX", self.life_ms)


@dataclass(frozen=True, slots=True)
class Reading:
    """
    The marker as it stands, and the generation of the connection *over* which it came.

    *position* names the entry that it was brought to last, if that is known; *is_sealed* is whether the seal
    that was asked for is there.
    """

    value: bytes | None
    position: Position
    is_sealed: bool
    over: int


class FreshnessMarker:
    """
    Reads and moves the marker over one connection, whose generation it tells.

    Beside the marker stands its position: the entry that it means, by its trace.  A log that was restored,
    renumbered or is another one has another entry of that number.

    While Redis is being refilled the key holds a claim instead of a number: it proves nothing, keeps
    other processes from doing the same work, and is lost with the data, so that a refill which a flush
    cut through can never put a marker on top of it.  The claim changes with every page, and every step
    asks for the page's seal: a server that took over half-way and lacks a page lacks one of the two.
    Raises CacheUnavailable.
    """

    def __init__(self, client: CacheClient, key: str, timings: MarkerTimings | None = None) -> None:
        self._timings = timings or MarkerTimings()
        self._client = client
        self._key = key
        # The hash tag is the marker itself: a cluster keeps all of its keys in one slot.
        self._beside = f"{key}:{{{key}}}"
        self._position_key = f"{self._beside}:position"
        self._advance = Script.load("authsvc.store.copies", "advance")
        self._renew = Script.load("authsvc.store.copies", "renew")

    def read(self, seal: Seal | None = None) -> Reading:
        """The marker, and whether *seal* is still there."""
        keys = (self._key, self._position_key, seal.key if seal else self._position_key)
        (value, position, sealed), generation = self._client.mget(keys)
        is_sealed = seal is not None and sealed is not None
        return Reading(value, Position.parse(position), is_sealed, generation)

    def claim(self) -> bytes | None:
        """Claim the refill of an empty Redis; None if somebody else does it."""
        claim = _new_claim()
        taken = self._client.call("SET", self._key, claim, "NX", "PX", self._timings.claim_ms)
        return claim if taken else None

    def seal(self) -> Seal:
        """A new seal, for one page."""
        return Seal(f"{self._beside}:{secrets.token_hex(8)}", self._timings.claim_ms)

    def step(self, read: bytes, to: Position, seal: Seal) -> bytes | None:
        """
        Note that a page up to *to* was written behind *seal*: the marker from then on.

        None if marker, claim or page was lost since *read*.
        """
        target = str(to.seq).encode() if read.isdigit() else _new_claim()
        life_ms = self._timings.life_ms if read.isdigit() else self._timings.claim_ms
        command = self._advancing(read, target, life_ms, to, seal)
        return target if self._client.call(*command) else None

    def advance(self, read: bytes, to: Position, *, over: int, seal: Seal | None = None) -> bool:
        """
        Bring the marker from *read* to *to*.

        False if it, or what was written behind *seal*, was lost since, or if the connection is no longer the
        one of generation *over*: what was written before may then be gone, and all must be replayed.
        """
        command = self._advancing(read, str(to.seq).encode(), self._timings.life_ms, to, seal)
        (is_done,), generation = self._client.pipeline([command])
        return bool(is_done) and generation == over

    def _advancing(
        self, read: bytes, target: bytes, life_ms: int, to: Position, seal: Seal | None
    ) -> Command:
        keys = [self._key, self._position_key, *([seal.key] if seal else [])]
        return self._advance.command(keys, [read, target, life_ms, self._timings.claim_ms, to.text()])

    def renew(self, seq: int) -> bool:
        """Keep the marker going if it stands at exactly *seq*: all that may be done without SQL."""
        command = self._renew.command([self._key, self._position_key], [str(seq), self._timings.life_ms])
        return bool(self._client.call(*command))

    def discard(self) -> None:
        """Remove the marker: nothing in Redis is to be believed until it was replayed."""
        self._client.call("DEL", self._key, self._position_key)


def is_claim(value: bytes) -> bool:
    """True if *value* is what a refill that is under way leaves in the marker's place."""
    return value.startswith(_CLAIM)


def _new_claim() -> bytes:
    return _CLAIM + secrets.token_hex(8).encode()
