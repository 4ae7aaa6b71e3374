"""The records of one space in Redis: lookup, lease, fill, write and drop."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar, cast

from authsvc.cache.entry import MISSING, NEGATIVE_VERSION, Entry, Flaw, Missing, decode, encode, pack
from authsvc.cache.filling.shapes import Display, Shape, Tagging, TrustCheck, TrustChecks
from authsvc.cache.keys import Space
from authsvc.cache.redis.client import CacheClient, Command, Script

T = TypeVar("T")
#: Jitter of lifetimes, up to 10 % either way, so that records stored together do not expire together.
JITTER: Final = 0.1
#: Outcomes of a lookup that give the reader a result.
SERVED: Final = frozenset({"hit", "stale", "negative"})
#: Outcomes after which nothing may be stored.
UNSURE: Final = frozenset({"untrusted", "unavailable"})
#: Outcomes after which the stored value is kept: there is none, or it may still be shown.
_KEPT: Final = frozenset({"miss", "stale", "expired"})


class Lookup(NamedTuple, Generic[T]):
    """The value found, and the outcome of the lookup."""

    value: T | Missing
    outcome: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store one record, with the versions of its tags before it was read."""

    token: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The result of one round trip: values by key, their remaining lives, and whether they are trusted."""

    values: Mapping[str, bytes | None]
    left_ms: Mapping[str, int]
    is_trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Records(Generic[T]):
    """
    The records of one *space*; every method that asks Redis raises CacheError.

    A lease lasts *lease_ms* milliseconds: longer than a load takes, or its result is not stored.
    *rng* returns numbers in [0, 1).  *life_s(ident, value)* overrides the space's TTL, in seconds;
    the absence of a record is cached for *negative_ttl_s* (0: not at all); JSON
    longer than *pack_over_bytes* is compressed (None: never).
    """

    client: CacheClient
    space: Space
    shape: Shape[T]
    lease_ms: int
    rng: Callable[[], float]
    trust: TrustChecks | None = None
    display: Display | None = None
    tagging: Tagging | None = None
    negative_ttl_s: float = 0
    life_s: Callable[[str, T], float] | None = None
    pack_over_bytes: int | None = None
    fill: Script = field(
        default_factory=lambda: Script.load("authsvc.cache.filling", "version", "fill"), repr=False
    )
    outdate: Script = field(
        default_factory=lambda: Script.load("authsvc.cache.filling", "version", "outdate"), repr=False
    )
    write: Script = field(default_factory=lambda: Script.load("authsvc.cache.filling", "write"), repr=False)
    release: Script = field(
        default_factory=lambda: Script.load("authsvc.cache.filling", "release"), repr=False
    )

    def look_at(self, ident: str) -> Lookup[T]:
        """
        Look up one record: one round trip. This is the path of every hit, so it does only what is needed.
        """
        if self.display is not None or self.tagging is not None:
            return self.look((ident,))[ident]
        key = self.space.key(ident)
        if self.trust is None:
            return self._judge(ident, key, self.client.mget((key,)).values[0])
        trust = self.trust.about(ident)
        (raw, marker), generation = self.client.mget((key, trust.marker_key))
        if not self._is_trusted(trust, marker, generation, (key,)):
            return Lookup(MISSING, "untrusted")
        return self._judge(ident, key, raw)

    def look_in(self, ident: str, raw: bytes | None) -> Lookup[T]:
        """Evaluate *raw*, which was read in the same way as by :meth:`look_at`, with a trusted marker."""
        return self._judge(ident, self.space.key(ident), raw)

    def look(self, idents: Sequence[str]) -> dict[str, Lookup[T]]:
        """Look up *idents*: one round trip for each marker that covers some of them."""
        together: dict[TrustCheck | None, list[str]] = {}
        for ident in idents:
            together.setdefault(self.trust.about(ident) if self.trust else None, []).append(ident)
        found: dict[str, Lookup[T]] = {}
        for trust, some in together.items():
            found |= self._look_under(trust, some)
        return {ident: found[ident] for ident in idents}

    def _look_under(self, trust: TrustCheck | None, idents: Sequence[str]) -> dict[str, Lookup[T]]:
        """Look up *idents*, which one marker covers: one round trip."""
        keys = [self.space.key(ident) for ident in idents]
        tag_keys = {name: self._tag_key(name) for name in self._tag_names(idents)}
        reading = self._read(trust, keys, tag_keys.values())
        if not reading.is_trusted:
            return {ident: Lookup(MISSING, "untrusted") for ident in idents}
        return {
            ident: self._judge(ident, key, reading.values[key], reading)
            for ident, key in zip(idents, keys, strict=True)
        }

    def lease(self, outcomes: Mapping[str, str], *, take_over: bool = False) -> dict[str, Lease]:
        """
        Take the leases on the records of *outcomes* and return those that were free; one round trip.

        An unusable stored value is deleted: its version might otherwise be higher than that of the new one.
        With *take_over*, leases of others are taken, too: for writers.
        """
        tokens = {ident: secrets.token_hex(16) for ident in outcomes}
        names = self._tag_names(outcomes)
        bad = [ident for ident, outcome in outcomes.items() if outcome not in _KEPT and not take_over]
        commands: list[Command] = [("DEL", self.space.key(ident)) for ident in bad]
        only_free = () if take_over else ("NX",)
        commands += [
            ("SET", self._lease_key(ident), token, *only_free, "PX", self.lease_ms)
            for ident, token in tokens.items()
        ]
        replies = self.client.pipeline(commands + self._claim(names)).values
        taken = replies[len(bad) : len(commands)]
        versions = self._versions(names, replies)
        return {
            ident: Lease(token, {name: versions[name] for name in self._tag_names((ident,))})
            for (ident, token), reply in zip(tokens.items(), taken, strict=True)
            if reply is not None
        }

    def settle(self, leases: Mapping[str, Lease], values: Mapping[str, T]) -> dict[str, bool]:
        """
        Store *values* under their *leases*, absent ones as negative entries; one round trip.

        True for a record whose lease was still held, so that it was not invalidated since the lease was
        taken.
        """
        commands = [self._settling(ident, values.get(ident, MISSING), own) for ident, own in leases.items()]
        replies = self.client.pipeline(commands).values
        return {ident: bool(reply) for ident, reply in zip(leases, replies, strict=True)}

    def give_up(self, ident: str, own: Lease) -> None:
        """Release leases, so that the next reader can try at once."""
        self.client.call(*self.release.command((self._lease_key(ident),), (own.token,)))

    def replace(self, ident: str, value: T, own: Lease) -> bool:
        """
        Store the record that was just committed; if that is not possible, drop the cached one and return
        False.
        """
        text, _, life_ms = self._stored(ident, value, own)
        keys = (self.space.key(ident), self._lease_key(ident))
        return bool(self.client.call(*self.write.command(keys, (own.token, text, life_ms))))

    def drop_commands(self, idents: Iterable[str]) -> list[Command]:
        """Return the commands that invalidate *idents*, to be sent in this order."""
        keys = [self.space.key(ident) for ident in idents]
        # Delete the lease first: otherwise a fill between the two commands could store the old row again.
        return [("DEL", name) for key in keys for name in (self.space.lease(key), key)]

    def outdate_command(self, ident: str, row_version: int) -> Command:
        """Return the command that invalidates *ident*, but keeps a record of *row_version* or later."""
        return self.outdate.command((self.space.key(ident), self._lease_key(ident)), (row_version,))

    def _read(self, trust: TrustCheck | None, keys: Sequence[str], tag_keys: Collection[str]) -> _Reading:
        markers = (trust.marker_key,) if trust else ()
        asked = (*keys, *tag_keys, *markers)
        values, lives, generation = self._fetch(asked, keys)
        is_trusted = trust is None or self._is_trusted(trust, values[-1], generation, keys)
        return _Reading(dict(zip(asked, values, strict=True)), lives, is_trusted)

    def _is_trusted(
        self, trust: TrustCheck, marker: bytes | None, generation: int, keys: Sequence[str]
    ) -> bool:
        """True if *marker*, read with *keys*, passes the check."""
        return trust.trusted(marker, generation) and self.client.link.vouches(trust.marker_key, keys)

    def _fetch(
        self, asked: Sequence[str], keys: Sequence[str]
    ) -> tuple[Sequence[bytes | None], Mapping[str, int], int]:
        if self.display is None:
            values, generation = self.client.mget(asked)
            return values, {}, generation
        lives: list[Command] = [("PTTL", key) for key in keys]
        replies, generation = self.client.pipeline([("MGET", *asked), *lives])
        values = cast("list[bytes | None]", replies[0])
        return values, dict(zip(keys, cast("list[int]", replies[1:]), strict=True)), generation

    def _judge(self, ident: str, key: str, raw: bytes | None, reading: _Reading | None = None) -> Lookup[T]:
        if raw is None:
            return Lookup(MISSING, "miss")
        entry = decode(raw, schema=self.shape.schema, id_field=self.shape.id_field, id_value=ident)
        if isinstance(entry, Flaw):
            return Lookup(MISSING, entry)
        if reading is not None and not self._has_its_tags(ident, entry, reading):
            return Lookup(MISSING, "outdated")
        if entry.is_negative:
            return Lookup(MISSING, "negative")
        try:
            return Lookup(self.shape.load(entry), "hit" if reading is None else self._age(key, reading))
        except (KeyError, TypeError, ValueError):
            return Lookup(MISSING, Flaw.UNDECODABLE)

    def _age(self, key: str, reading: _Reading) -> str:
        """``hit`` within its lifetime; afterwards ``stale`` or ``expired``."""
        if self.display is None:
            return "hit"
        over_ms = self.display.beyond_ms - reading.left_ms[key]
        if over_ms < 0:
            return "hit"
        return "stale" if over_ms < self.display.stale_s * 1000 else "expired"

    def _has_its_tags(self, ident: str, entry: Entry, reading: _Reading) -> bool:
        for name in self._tag_names((ident,)):
            current = reading.values[self._tag_key(name)]
            if current is None or entry.tags.get(name) != current.decode(errors="replace"):
                return False
        return True

    def _settling(self, ident: str, value: T | Missing, own: Lease) -> Command:
        if isinstance(value, Missing) and not self.negative_ttl_s:
            return self.release.command((self._lease_key(ident),), (own.token,))
        text, row_version, life_ms = self._stored(ident, value, own)
        keys = (self.space.key(ident), self._lease_key(ident))
        return self.fill.command(keys, (own.token, text, row_version, life_ms))

    def _stored(self, ident: str, value: T | Missing, own: Lease) -> tuple[bytes, int, int]:
        """Return text, row version, and lifetime in milliseconds."""
        if isinstance(value, Missing):
            entry = Entry({self.shape.id_field: ident}, NEGATIVE_VERSION, own.tags, is_negative=True)
            life_ms = self._jittered_ms(self.negative_ttl_s)
        else:
            dumped = self.shape.dump(value)
            if dumped.fields.get(self.shape.id_field) != ident:
                field = self.shape.id_field
                raise ValueError(
                    f"field {field!r} of a record must be the id that it is asked for by, as text"
                )
            entry = Entry(dumped.fields, dumped.row_version, own.tags)
            life_s = self.life_s(ident, value) if self.life_s else self.space.ttl_s
            life_ms = self._jittered_ms(life_s) + (self.display.beyond_ms if self.display else 0)
        text = encode(entry, schema=self.shape.schema)
        packed = pack(text, row_version=entry.row_version, over_bytes=self.pack_over_bytes)
        return packed, entry.row_version, life_ms

    def _jittered_ms(self, life_s: float) -> int:
        spread = 1 - JITTER + 2 * JITTER * self.rng()
        return max(1, round(life_s * 1000 * spread))

    def _lease_key(self, ident: str) -> str:
        return self.space.lease(self.space.key(ident))

    def _tag_names(self, idents: Iterable[str]) -> list[str]:
        if self.tagging is None:
            return []
        return list(dict.fromkeys(name for ident in idents for name in self.tagging.by(ident)))

    def _tag_key(self, name: str) -> str:
        return self.tagging.tags.space.key(name) if self.tagging else name

    def _claim(self, names: Sequence[str]) -> list[Command]:
        """
        Return the commands that give the tags versions if they have none, then the read of the versions.
        """
        if self.tagging is None or not names:
            return []
        return [*self.tagging.tags.claim_commands(names), ("MGET", *map(self._tag_key, names))]

    def _versions(self, names: Sequence[str], replies: Sequence[object]) -> dict[str, str]:
        if not names:
            return {}
        current = cast("list[bytes | None]", replies[-1])
        return {name: (raw or b"").decode() for name, raw in zip(names, current, strict=True)}
