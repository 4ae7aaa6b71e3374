"""The freshness marker: the last log entry that Redis is known to hold everything up to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from authsvc.cache.keys import as_tag
from authsvc.cache.redis.client import Command, Script
from authsvc.domain.revocations import Position

_CLAIM = b"replaying:"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerTimings:
    """How long the marker and a claim live (milliseconds, as Redis takes them)."""

    #: The marker is renewed every second.
    life_ms: int = 10_000
    #: A replayer that died holds its claim for so long.
    claim_ms: int = 3_000
    #: A failover of a cluster takes longer, unless somebody makes a server the primary by force.
    unwatched_s: float = 5.0


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
    that was asked for is there.  *installation* is the id beside it.
    """

    value: bytes | None
    position: Position
    is_sealed: bool
    over: int
    installation: bytes | None = None

    def of(self, installation: bytes | None) -> Reading:
        """The same, with the id of the *installation* that was read later."""
        return replace(self, installation=installation)


class FreshnessMarker:
    """
    The commands that read and move the marker of one shard, and what their replies mean.

    Beside the marker stands its position: the entry that it means, by its trace.  A log that was restored,
    renumbered or is another one has another entry of that number.

    While Redis is being refilled the key holds a claim instead of a number: it proves nothing, keeps
    other processes from doing the same work, and is lost with the data, so that a refill which a flush
    cut through can never put a marker on top of it.  The claim changes with every page, and every step
    asks for the page's seal: a server that took over half-way and lacks a page lacks one of the two.
    """

    def __init__(self, key: str, installation: str, timings: MarkerTimings | None = None) -> None:
        self._timings = timings or MarkerTimings()
        self.key = key
        #: Where the id of the installation is that the shard belongs to.
        self.installation = installation
        # A cluster keeps them in the marker's slot.
        self._beside = key if "{" in key else f"{key}:{as_tag(key)}"
        self._position_key = f"{self._beside}:position"
        self._advance = Script.load("authsvc.store.copies", "advance")
        self._renew = Script.load("authsvc.store.copies", "renew")

    def read_command(self, seal: Seal | None = None) -> Command:
        """What asks for the marker, for the installation, and whether *seal* is still there."""
        return (
            "MGET",
            self.key,
            self._position_key,
            seal.key if seal else self._position_key,
            self.installation,
        )

    def reading(self, reply: Sequence[bytes | None], over: int, seal: Seal | None = None) -> Reading:
        """The *reply* to that, which came over connection *over*."""
        value, position, sealed, installation = reply
        is_sealed = seal is not None and sealed is not None
        return Reading(value, Position.parse(position), is_sealed, over, installation)

    def claim_command(self, claim: bytes) -> Command:
        """What claims the refill of an empty Redis; its reply is None if somebody else does it."""
        return ("SET", self.key, claim, "NX", "PX", self._timings.claim_ms)

    def seal(self) -> Seal:
        """A new seal, for one page."""
        return Seal(f"{self._beside}:{secrets.token_hex(8)}", self._timings.claim_ms)

    def step_command(self, read: bytes, to: Position, seal: Seal) -> tuple[bytes, Command]:
        """
        The marker once a page up to *to* was written behind *seal*, and the command that makes it so.

        Its reply is 0 if marker, claim or page was lost since *read*.
        """
        target = str(to.seq).encode() if read.isdigit() else new_claim()
        life_ms = self._timings.life_ms if read.isdigit() else self._timings.claim_ms
        return target, self._advancing(read, target, life_ms, to, seal)

    def advance_command(self, read: bytes, to: Position, seal: Seal | None = None) -> Command:
        """
        What brings the marker from *read* to *to*.

        Its reply is 0 if it, or what was written behind *seal*, was lost since.  It counts only over the
        connection that *read* came over: on another one, what was written before may be gone.
        """
        return self._advancing(read, str(to.seq).encode(), self._timings.life_ms, to, seal)

    def _advancing(
        self, read: bytes, target: bytes, life_ms: int, to: Position, seal: Seal | None
    ) -> Command:
        keys = [self.key, self._position_key, *([seal.key] if seal else [])]
        return self._advance.command(keys, [read, target, life_ms, self._timings.claim_ms, to.text()])

    def renew_command(self, seq: int) -> Command:
        """What keeps the marker going if it stands at exactly *seq*: all that may be done without SQL."""
        return self._renew.command([self.key, self._position_key], [str(seq), self._timings.life_ms])

    def discard_command(self) -> Command:
        """What removes the marker: nothing in Redis is to be believed until it was replayed."""
        return ("DEL", self.key, self._position_key)


def is_claim(value: bytes) -> bool:
    """True if *value* is what a refill that is under way leaves in the marker's place."""
    return value.startswith(_CLAIM)


def new_claim() -> bytes:
    """A claim that nobody else has."""
    return _CLAIM + secrets.token_hex(8).encode()
