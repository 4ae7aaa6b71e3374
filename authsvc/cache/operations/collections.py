"""Hashes, lists and sets of JSON values; a new key gets its expiry in the same step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from authsvc.cache.entry import MISSING, Json, Missing, to_json
from authsvc.cache.events import CacheEvents
from authsvc.cache.keys import Space
from authsvc.cache.operations.keyed import Grown, Keys, Reading
from authsvc.cache.redis.client import CacheClient
from authsvc.cache.redis.connections import Argument


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collection:
    """See the subclasses. All raise CacheUnavailable, or CacheMisuse if a key has another type."""

    client: CacheClient
    space: Space
    events: CacheEvents = field(default_factory=CacheEvents)

    @property
    def keys(self) -> Keys:
        """Delete, exists, ttl_s, expire."""
        return Keys(client=self.client, space=self.space)

    @property
    def _grown(self) -> Grown:
        return Grown(client=self.client, space=self.space)

    @property
    def _reading(self) -> Reading:
        return Reading(space=self.space, events=self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes(_Collection):
    """Fields with JSON values."""

    def get(self, ident: str, name: str) -> Json | Missing:
        """Return one field, or MISSING."""
        raw = self.client.call("HGET", self.space.key(ident), name)
        return self._reading.value(cast("bytes | None", raw))

    def get_all(self, ident: str) -> dict[str, Json]:
        """Return all fields that can be decoded; empty for a missing hash."""
        flat = self.client.call("HGETALL", self.space.key(ident))
        # RESP3 has a type for it, RESP2 a list of names and values.
        pairs = flat.items() if isinstance(flat, dict) else _pairs(cast("list[bytes]", flat))
        reading = self._reading
        values = {cast("bytes", name).decode(): reading.value(cast("bytes", raw)) for name, raw in pairs}
        return {name: value for name, value in values.items() if not isinstance(value, Missing)}

    def set(self, ident: str, fields: Mapping[str, Json]) -> None:
        """Set *fields*, at least one; other fields are kept."""
        words: list[Argument] = []
        for name, value in fields.items():
            words += (name, to_json(value))
        self._grown.run(ident, "HSET", *words)

    def remove(self, ident: str, *names: str) -> int:
        """Remove fields; returns the number removed."""
        return cast("int", self.client.call("HDEL", self.space.key(ident), *names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists(_Collection):
    """Ordered JSON values."""

    def append(self, ident: str, *values: Json) -> int:
        """Add *values* at the end and return the length."""
        return cast("int", self._grown.run(ident, "RPUSH", *map(to_json, values)))

    def pop(self, ident: str) -> Json | Missing:
        """Take the first, or MISSING; never sent again after an error, which could take two."""
        return self._reading.value(cast("bytes | None", self.client.call("LPOP", self.space.key(ident))))

    def range(self, ident: str, first: int = 0, last: int = -1) -> list[Json]:
        """Return the values from *first* to *last*, inclusive; negative indexes count from the end."""
        raws = self.client.call("LRANGE", self.space.key(ident), first, last)
        return self._reading.values(cast("list[bytes]", raws))

    def length(self, ident: str) -> int:
        """Return the number of values."""
        return cast("int", self.client.call("LLEN", self.space.key(ident)))

    def keep(self, ident: str, newest: int) -> None:
        """Keep only the last *newest* values."""
        self.client.call("LTRIM", self.space.key(ident), -newest, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets(_Collection):
    """Unordered distinct JSON values; two are equal if their canonical texts are."""

    def add(self, ident: str, *values: Json) -> int:
        """Add *values*; returns how many were new."""
        return cast("int", self._grown.run(ident, "SADD", *map(_canonical, values)))

    def remove(self, ident: str, *values: Json) -> int:
        """Remove *values*; returns how many were removed."""
        return cast("int", self.client.call("SREM", self.space.key(ident), *map(_canonical, values)))

    def members(self, ident: str) -> list[Json]:
        """Return all values that can be decoded, unordered."""
        # RESP3 sets arrive as lists; SMEMBERS of a missing key is empty.
        raws = self.client.call("SMEMBERS", self.space.key(ident))
        return self._reading.values(cast("list[bytes]", raws))

    def contains(self, ident: str, value: Json) -> bool:
        """Return whether *value* is one of them."""
        return bool(self.client.call("SISMEMBER", self.space.key(ident), _canonical(value)))

    def size(self, ident: str) -> int:
        """Return the number of values."""
        return cast("int", self.client.call("SCARD", self.space.key(ident)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters(_Collection):
    """Integers; the first change sets the expiry of the key in the same step."""

    def increment(self, ident: str, by: int = 1) -> int:
        """Add *by* and return the sum; never sent again after an error, which could count twice."""
        return cast("int", self._grown.run(ident, "INCRBY", by))

    def decrement(self, ident: str, by: int = 1) -> int:
        """Subtract *by* and return the difference."""
        return cast("int", self._grown.run(ident, "DECRBY", by))

    def read(self, ident: str) -> int | Missing:
        """Return the number, or MISSING."""
        value = self._reading.value(cast("bytes | None", self.client.call("GET", self.space.key(ident))))
        return value if isinstance(value, int) else MISSING


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _canonical(value: Json) -> bytes:
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    ).encode()
