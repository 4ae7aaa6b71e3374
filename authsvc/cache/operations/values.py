"""JSON values: get and set, one or many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from authsvc.cache.entry import MISSING, Entry, Flaw, Json, Missing, decode, encode, pack
from authsvc.cache.events import CacheEvents
from authsvc.cache.keys import Space
from authsvc.cache.operations.keyed import Keys, milliseconds
from authsvc.cache.redis.client import CacheClient, Command

_ID = "id"
_VALUE = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """
    Any JSON value, including null, false and empty ones; stored with its id and *schema*, which are checked.

    A value that cannot be decoded, or has another id or schema, is MISSING and counted in *events*. Texts
    longer than *pack_over_bytes* are compressed.  All raise CacheUnavailable.
    """

    client: CacheClient
    space: Space
    schema: int = 1
    events: CacheEvents = field(default_factory=CacheEvents)
    pack_over_bytes: int | None = None

    @property
    def keys(self) -> Keys:
        """Delete, exists, ttl_s, expire."""
        return Keys(client=self.client, space=self.space)

    def get(self, ident: str) -> Json | Missing:
        """Return the value, or MISSING."""
        return self.get_many((ident,)).get(ident, MISSING)

    def get_many(self, idents: Iterable[str]) -> dict[str, Json]:
        """Return the existing values; one MGET."""
        wanted = list(dict.fromkeys(idents))
        if not wanted:
            return {}
        raws = self.client.mget([self.space.key(ident) for ident in wanted]).values
        looks = {ident: self._judged(ident, raw) for ident, raw in zip(wanted, raws, strict=True)}
        return {ident: value for ident, value in looks.items() if not isinstance(value, Missing)}

    def set(self, ident: str, value: Json, *, ttl_s: float | None = None) -> None:
        """Store *value* for *ttl_s* seconds (None: the expiry of the space)."""
        self.set_many({ident: value}, ttl_s=ttl_s)

    def set_many(self, values: Mapping[str, Json], *, ttl_s: float | None = None) -> None:
        """Store *values*; one round trip, not atomic."""
        life_ms = milliseconds(self.space.ttl_s if ttl_s is None else ttl_s)
        self.client.pipeline([self._command(ident, value, life_ms) for ident, value in values.items()])

    def add(self, ident: str, value: Json, *, ttl_s: float | None = None) -> bool:
        """Store *value* if the key does not exist; else returns False."""
        life_ms = milliseconds(self.space.ttl_s if ttl_s is None else ttl_s)
        return self.client.call(*self._command(ident, value, life_ms), "NX") is not None

    def _command(self, ident: str, value: Json, life_ms: int) -> Command:
        text = encode(Entry({_ID: ident, _VALUE: value}, 0), schema=self.schema)
        packed = pack(text, row_version=0, over_bytes=self.pack_over_bytes)
        return ("SET", self.space.key(ident), packed, "PX", life_ms)

    def _judged(self, ident: str, raw: bytes | None) -> Json | Missing:
        if raw is None:
            self.events.on_lookup(self.space.name, "miss")
            return MISSING
        entry = decode(raw, schema=self.schema, id_field=_ID, id_value=ident)
        if isinstance(entry, Entry) and _VALUE not in entry.fields:
            entry = Flaw.UNDECODABLE
        self.events.on_lookup(self.space.name, entry if isinstance(entry, Flaw) else "hit")
        return MISSING if isinstance(entry, Flaw) else entry.fields[_VALUE]
