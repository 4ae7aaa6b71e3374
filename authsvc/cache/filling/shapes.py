"""How the application describes its records: shape, trust, tags, and use of expired ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from authsvc.cache.entry import Entry
from authsvc.cache.keys import Space
from authsvc.cache.redis.client import CacheClient, Command

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustCheck:
    """
    A marker that is read in the same round trip as each value, and the function that checks it.

    ``trusted(marker, generation)`` gets the marker's value (None: missing) and the generation of the
    connection that both were read over.  An untrusted value counts as a miss, and is not overwritten.
    """

    marker_key: str
    trusted: Callable[[bytes | None, int], bool]

    def about(self, ident: str) -> TrustCheck:  # noqa: ARG002 one marker vouches for all records
        """Return the check for the record *ident*."""
        return self


class TrustChecks(Protocol):
    """Several markers, each covering some of the records; a :class:`TrustCheck` covers all."""

    def about(self, ident: str, /) -> TrustCheck:
        """Return the check for the record *ident*; marker and record are in one slot of a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape(Generic[T]):
    """
    Conversion of a T to an entry and back.

    ``id_field`` of the entry holds the T's id as a string, else storing raises ValueError; raise *schema*
    whenever the fields change.
    ``load`` raises KeyError, TypeError or ValueError for invalid fields.
    """

    schema: int
    dump: Callable[[T], Entry]
    load: Callable[[Entry], T]
    id_field: str = "id"


class Background(Protocol):
    """Runs work in the background; see :class:`~authsvc.cache.filling.refresh.Refresher`."""

    def submit(self, key: str, work: Callable[[], None]) -> bool:
        """Run *work* soon, unless there is a job for *key*; False if it is not accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """
    Allows expired records to be displayed; never use it for data that decides about rights.

    For *stale_s* seconds after its expiry a record is shown at once while *refresher* reloads it; for
    *on_error_s* seconds it is shown if the loader raises one of *errors*. Both end with an invalidation.
    """

    refresher: Background | None = None
    stale_s: float = 0
    on_error_s: float = 0
    errors: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if bool(self.stale_s) != (self.refresher is not None):
            raise ValueError("stale_s and a refresher go together")
        if bool(self.on_error_s) != bool(self.errors):
            raise ValueError("on_error_s and errors go together")

    @property
    def beyond_ms(self) -> int:
        """How long a record stays in Redis after its expiry, in milliseconds."""
        return round(max(self.stale_s, self.on_error_s) * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """
    Tags that many records depend on; dropping a tag makes all its records misses at once.

    The version of a tag is a random word under its key in *space*, read with each record and stored in
    it.  If the key of a tag is lost (expiry, flush), none of its records is used; tags in *space* should live
    longer than the records.
    """

    client: CacheClient
    space: Space

    def drop(self, *names: str) -> None:
        """
        Invalidate all records with one of the tags *names*, after the commit; raises CacheUnavailable if that
        failed.
        """
        self.client.pipeline(self.drop_commands(names))

    def drop_commands(self, names: Iterable[str]) -> list[Command]:
        """Return the commands of :meth:`drop`, one for each name; they may be sent with others."""
        return [("SET", self.space.key(name), _version(), "PX", self._life_ms) for name in names]

    def claim_commands(self, names: Sequence[str]) -> list[Command]:
        """
        Return the commands that give each of *names* a version if it has none, and restart its lifetime.
        """
        keys = [self.space.key(name) for name in names]
        fresh: list[Command] = [("SET", key, _version(), "NX", "PX", self._life_ms) for key in keys]
        return fresh + [("PEXPIRE", key, self._life_ms) for key in keys]

    @property
    def _life_ms(self) -> int:
        return self.space.ttl_s * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagging:
    """
    The *tags* of a record, which *by* derives from its id: tags must be known before the record is read.
    """

    tags: Tags
    by: Callable[[str], Sequence[str]]


def _version() -> str:
    # Random, not a counter: a lost counter would start again and repeat old numbers.
    return secrets.token_hex(8)
