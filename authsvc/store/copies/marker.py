"""The freshness marker: the number up to which Redis has all entries of the log."""

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
    """Life of the marker and of a claim (milliseconds, for Redis)."""

    #: The marker is renewed every second.
    life_ms: int = 10_000
    #: A claim expires after this time if its process died.
    claim_ms: int = 3_000
    #: A failover of a cluster takes longer, unless an operator forces one.
    unwatched_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Seal:
    """A key that is written after a page of entries: a server that has it has the page."""

    key: str
    life_ms: int

    @property
    def command(self) -> Command:
        """The command that sets it; send it after the page, over the same connection."""
        return ("SET", self.key, 1, "PX", self.life_ms)


@dataclass(frozen=True, slots=True)
class Reading:
    """
    The marker as read, and the generation of the connection *over* which it came.

    *position* identifies the entry of its number, if known; *is_sealed* tells whether the requested seal
    exists. *installation* is the id stored beside it.
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

    The marker's position is stored beside it: the trace of its entry. In a log that was restored, renumbered
    or replaced, that number has another entry.

    While Redis is being refilled, the key has a claim instead of a number. A claim proves nothing and keeps
    other processes from the same work. It is lost with the data, so that a refill that a flush interrupted
    cannot set a marker afterwards.  The claim changes with every page, and every step checks the page's seal:
    a server that took over meanwhile and lacks a page lacks one of the two.
    """

    def __init__(self, key: str, installation: str, timings: MarkerTimings | None = None) -> None:
        self._timings = timings or MarkerTimings()
        self.key = key
        #: The key of the id of the installation that the shard belongs to.
        self.installation = installation
        # A cluster keeps them in the marker's slot.
        self._beside = key if "{" in key else f"{key}:{as_tag(key)}"
        self._position_key = f"{self._beside}:position"
        self._advance = Script.load("authsvc.store.copies", "advance")
        self._renew = Script.load("authsvc.store.copies", "renew")

    def read_command(self, seal: Seal | None = None) -> Command:
        """The command that reads the marker and the installation, and whether *seal* still exists."""
        return (
            "MGET",
            self.key,
            self._position_key,
            seal.key if seal else self._position_key,
            self.installation,
        )

    def reading(self, reply: Sequence[bytes | None], over: int, seal: Seal | None = None) -> Reading:
        """The content of the *reply* to it, which came over connection *over*."""
        value, position, sealed, installation = reply
        is_sealed = seal is not None and sealed is not None
        return Reading(value, Position.parse(position), is_sealed, over, installation)

    def claim_command(self, claim: bytes) -> Command:
        """
        The command that claims the refill of an empty Redis; its reply is None if another process has claimed
        it.
        """
        return ("SET", self.key, claim, "NX", "PX", self._timings.claim_ms)

    def seal(self) -> Seal:
        """A new seal, for one page."""
        return Seal(f"{self._beside}:{secrets.token_hex(8)}", self._timings.claim_ms)

    def step_command(self, read: bytes, to: Position, seal: Seal) -> tuple[bytes, Command]:
        """
        The marker after a page up to *to* was written with *seal*, and the command that sets it.

        Its reply is 0 if marker, claim or page was lost since *read*.
        """
        target = str(to.seq).encode() if read.isdigit() else new_claim()
        life_ms = self._timings.life_ms if read.isdigit() else self._timings.claim_ms
        return target, self._advancing(read, target, life_ms, to, seal)

    def advance_command(self, read: bytes, to: Position, seal: Seal | None = None) -> Command:
        """
        The command that moves the marker from *read* to *to*. Its reply is 0 if the marker or *seal* was lost
        since.  It is valid only over the connection of *read*: another one may lead to a server without the
        earlier writes.
        """
        return self._advancing(read, str(to.seq).encode(), self._timings.life_ms, to, seal)

    def _advancing(
        self, read: bytes, target: bytes, life_ms: int, to: Position, seal: Seal | None
    ) -> Command:
        keys = [self.key, self._position_key, *([seal.key] if seal else [])]
        return self._advance.command(keys, [read, target, life_ms, self._timings.claim_ms, to.text()])

    def renew_command(self, seq: int) -> Command:
        """
        The command that extends the marker's life if it is exactly *seq*: the only step allowed without SQL.
        """
        return self._renew.command([self.key, self._position_key], [str(seq), self._timings.life_ms])

    def discard_command(self) -> Command:
        """The command that removes the marker: Redis is not proven until the log was replayed."""
        return ("DEL", self.key, self._position_key)


def is_claim(value: bytes) -> bool:
    """True if *value* is the claim of a running refill."""
    return value.startswith(_CLAIM)


def new_claim() -> bytes:
    """A new random claim."""
    return _CLAIM + secrets.token_hex(8).encode()
