"""
Cache-aside with a leased fill: what was loaded is stored only if nothing was invalidated meanwhile.

A reader that misses takes a lease beside the key, loads, and stores in one atomic step that finds the
lease still its own and no newer row in place.  An invalidation, sent after the commit, deletes the
lease and then the key: whoever loaded before the commit cannot store, whoever takes a lease after it
loads after it.  A reader that finds the lease taken loads for itself and does not store.

Outcomes for ``CacheEvents.on_lookup``: ``hit``, ``miss``, ``untrusted``, ``unavailable`` or a
:class:`~authsvc.cache.entry.Flaw`; for ``on_fill``: ``filled``, ``refused`` (the lease was lost, or a
newer row is there), ``leased`` (by another), ``failed``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from authsvc.cache.client import CacheClient, CacheEvents, Command, Script
from authsvc.cache.entry import MISSING, Entry, Flaw, Missing, decode, encode
from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.cache.keys import Space

T = TypeVar("T")
#: Lives differ by up to a tenth either way, so that what was stored together does not end together.
JITTER: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """
    A marker read in the same round trip as each value, and who judges it.

    ``trusted(marker, generation)`` gets the marker's value (None: missing) and the generation of the
    connection that brought both.  An untrusted value is a miss, and is not replaced either.
    """

    marker_key: str
    trusted: Callable[[bytes | None, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape(Generic[T]):
    """
    How a T becomes an entry and back.

    ``id_field`` of the entry holds the T's id as a string; raise *schema* whenever the fields change.
    ``load`` raises KeyError, TypeError or ValueError for fields that make no T.
    """

    schema: int
    dump: Callable[[T], Entry]
    load: Callable[[Entry], T]
    id_field: str = "id"


@dataclass(frozen=True, slots=True)
class _Look(Generic[T]):
    value: T | Missing
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside(Generic[T]):
    """
    The records of one *space*, cached beside the loader that knows the truth.

    A lease lasts *lease_ms* milliseconds: longer than a load takes, or its result is not stored.
    *rng* returns numbers in [0, 1).
    """

    client: CacheClient
    space: Space
    shape: Shape[T]
    lease_ms: int
    rng: Callable[[], float]
    events: CacheEvents = field(default_factory=CacheEvents)
    proof: Proof | None = None
    fill: Script = field(default_factory=lambda: Script.load("authsvc.cache", "fill"), repr=False)

    def get(self, ident: str) -> T | Missing:
        """Return what is cached of *ident*, or MISSING; one round trip, raises CacheUnavailable."""
        return self._look(ident).value

    def get_or_load(self, ident: str, loader: Callable[[str], T | Missing]) -> T | Missing:
        """
        Return *ident* from the cache, else from *loader*; MISSING if the loader has none either.

        The loader must begin its read when it is called, not in a transaction opened before.  One round
        trip for a hit, three and a load for a miss; without Redis the load alone.  Raises what the
        loader raises.
        """
        look = self._look_or_nothing(ident)
        if not isinstance(look.value, Missing):
            return look.value
        lease = None if look.outcome in {"untrusted", "unavailable"} else self._lease(ident, look.outcome)
        value = loader(ident)
        if lease is not None and not isinstance(value, Missing):
            self._store(ident, value, lease)
        return value

    def drop(self, idents: Iterable[str]) -> None:
        """Invalidate *idents*, after the commit that changed them; raises CacheUnavailable if not done."""
        self.client.pipeline(self.drop_commands(idents))

    def drop_commands(self, idents: Iterable[str]) -> list[Command]:
        """Return the commands that invalidate *idents*, to be sent in this order, among others or alone."""
        keys = [self.space.key(ident) for ident in idents]
        # The lease goes first: between the two a fill under a live lease could bring the old row back.
        return [("DEL", name) for key in keys for name in (self.space.lease(key), key)]

    def _look_or_nothing(self, ident: str) -> _Look[T]:
        try:
            return self._look(ident)
        except CacheUnavailable:
            self.events.on_lookup(self.space.name, "unavailable")
            return _Look(MISSING, "unavailable")

    def _look(self, ident: str) -> _Look[T]:
        key = self.space.key(ident)
        if self.proof is None:
            look = self._judge(self.client.mget((key,)).values[0], ident)
        else:
            (raw, marker), generation = self.client.mget((key, self.proof.marker_key))
            proven = self.proof.trusted(marker, generation)
            look = self._judge(raw, ident) if proven else _Look(MISSING, "untrusted")
        self.events.on_lookup(self.space.name, look.outcome)
        return look

    def _judge(self, raw: bytes | None, ident: str) -> _Look[T]:
        if raw is None:
            return _Look(MISSING, "miss")
        entry = decode(raw, schema=self.shape.schema, id_field=self.shape.id_field, id_value=ident)
        if isinstance(entry, Flaw):
            return _Look(MISSING, entry)
        try:
            return _Look(self.shape.load(entry), "hit")
        except (KeyError, TypeError, ValueError):
            return _Look(MISSING, Flaw.UNDECODABLE)

    def _lease(self, ident: str, outcome: str) -> str | None:
        """Take the lease on *ident* and return its token; None if that failed."""
        key, token = self.space.key(ident), secrets.token_hex(16)
        take: Command = ("SET", self.space.lease(key), token, "NX", "PX", self.lease_ms)
        # A value that is not believed must not outrank the one that will be, whatever version it claims.
        commands = [take] if outcome == "miss" else [("DEL", key), take]
        try:
            taken = self.client.pipeline(commands).values[-1]
        except CacheError:
            self.events.on_fill(self.space.name, "failed")
            return None
        if taken is None:
            self.events.on_fill(self.space.name, "leased")
        return None if taken is None else token

    def _store(self, ident: str, value: T, lease: str) -> None:
        key, entry = self.space.key(ident), self.shape.dump(value)
        text = encode(entry, schema=self.shape.schema)
        args = (lease, text, entry.row_version, self._life_ms())
        try:
            stored = self.client.call(*self.fill.command((key, self.space.lease(key)), args))
        except CacheError:
            self.events.on_fill(self.space.name, "failed")
            return
        self.events.on_fill(self.space.name, "filled" if stored else "refused")

    def _life_ms(self) -> int:
        spread = 1 - JITTER + 2 * JITTER * self.rng()
        return max(1, round(self.space.ttl_s * 1000 * spread))
