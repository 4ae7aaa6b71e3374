"""Shared by all types: key, expiry, JSON, and the counts of lookups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, cast

from authsvc.cache.entry import MISSING, Json, Missing, from_json
from authsvc.cache.events import CacheEvents
from authsvc.cache.keys import Space
from authsvc.cache.redis.client import CacheClient, Script
from authsvc.cache.redis.connections import Argument, Reply

#: Arguments of one command; a script can unpack no more than some thousands.
MOST_ARGUMENTS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one space, of any type. All methods raise CacheUnavailable."""

    client: CacheClient
    space: Space

    def delete(self, *idents: str) -> int:
        """Delete *idents*; returns how many existed."""
        replies = self.client.pipeline([("UNLINK", self.space.key(ident)) for ident in idents]).values
        return sum(cast("list[int]", replies))

    def exists(self, ident: str) -> bool:
        """Return whether the key exists."""
        return bool(self.client.call("EXISTS", self.space.key(ident)))

    def ttl_s(self, ident: str) -> float | Missing:
        """Return the seconds left to live; MISSING for a missing key, infinite for a key without expiry."""
        left_ms = cast("int", self.client.call("PTTL", self.space.key(ident)))
        if left_ms == -2:  # noqa: PLR2004 what Redis says
            return MISSING
        return left_ms / 1000 if left_ms >= 0 else float("inf")

    def expire(self, ident: str, ttl_s: float) -> bool:
        """Set the remaining life of *ident* to *ttl_s* seconds; False if the key does not exist."""
        return bool(self.client.call("PEXPIRE", self.space.key(ident), milliseconds(ttl_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Runs commands that may create a key, which then gets its expiry in the same step."""

    client: CacheClient
    space: Space
    script: Script = field(
        default_factory=lambda: Script.load("authsvc.cache.operations", "grow"), repr=False
    )

    def run(self, ident: str, command: str, *args: Argument) -> Reply:
        """Send *command* on *ident*; raises ValueError for more than :data:`MOST_ARGUMENTS`."""
        if len(args) > MOST_ARGUMENTS:
            raise ValueError(f"at most {MOST_ARGUMENTS} at a time")
        life = milliseconds(self.space.ttl_s)
        return self.client.call(*self.script.command((self.space.key(ident),), (life, command, *args)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Decodes stored values, and reports each lookup to *events*."""

    space: Space
    events: CacheEvents

    def value(self, raw: bytes | None) -> Json | Missing:
        """Return the value in *raw*; MISSING if there is none, or if it cannot be decoded."""
        value: Json | Missing = MISSING if raw is None else from_json(raw)
        self.tell(value, was_there=raw is not None)
        return value

    def values(self, raws: Iterable[bytes]) -> list[Json]:
        """Return the values that can be decoded."""
        values = [self.value(raw) for raw in raws]
        return [value for value in values if not isinstance(value, Missing)]

    def tell(self, value: object, *, was_there: bool) -> None:
        """Count one look."""
        bad = "undecodable" if was_there else "miss"
        self.events.on_lookup(self.space.name, bad if isinstance(value, Missing) else "hit")


def milliseconds(seconds: float) -> int:
    """Return *seconds* in milliseconds for Redis; raises ValueError for what would delete the key at once."""
    if seconds <= 0:
        raise ValueError("an expiry must be longer than 0 s")
    return max(1, round(seconds * 1000))
