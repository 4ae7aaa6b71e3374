"""
Cache-aside with leases: a loaded record is stored only if it was not invalidated meanwhile.

After a miss, a reader takes a lease next to the key, loads the record, and stores it in one atomic step,
which checks that it still has the lease and that no newer row is stored.  An invalidation, sent after the
commit, deletes the lease and then
the key.  A reader that loaded before the commit has lost its lease and cannot store; a reader with a later
lease loads after the commit.  A reader that finds the lease taken waits (with ``single_flight``), or loads
the record and does not store it.

Outcomes for ``CacheEvents.on_lookup``: ``hit``, ``stale``, ``negative`` (these answer the reader),
``miss``, ``expired``, ``outdated`` (a tag was dropped), ``untrusted``, ``unavailable``, a
:class:`~authsvc.cache.entry.Flaw`; for ``on_fill``: ``filled``, ``released`` (there was nothing to
store), ``refused`` (the lease was lost, or a newer row is there), ``leased`` (by another), ``shared`` (of
another's load), ``rescued`` (an expired record shown because the loader failed), ``written``,
``dropped``, ``failed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, TypeVar

from authsvc.cache.entry import MISSING, Missing
from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.cache.events import CacheEvents
from authsvc.cache.filling.loading import Loading
from authsvc.cache.filling.records import JITTER, SERVED, Lease, Lookup, Records
from authsvc.cache.filling.shapes import Display, Shape, Tagging, Tags, TrustCheck, TrustChecks
from authsvc.cache.filling.single_flight import SingleFlight
from authsvc.cache.keys import Space
from authsvc.cache.redis.client import CacheClient, Command

__all__ = [
    "JITTER",
    "Aside",
    "Display",
    "Records",
    "Shape",
    "Tagging",
    "Tags",
    "TrustCheck",
    "TrustChecks",
    "Written",
]

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """The result of a change, and whether the cached record was replaced or dropped."""

    value: T
    is_coherent: bool


@dataclass(frozen=True, slots=True)
class Aside(Generic[T]):
    """
    Caches *records* that a loader reads from the database.

    With *single_flight*, concurrent misses of one record share one load.
    """

    records: Records[T]
    _: KW_ONLY
    events: CacheEvents = field(default_factory=CacheEvents)
    single_flight: SingleFlight | None = None

    @property
    def client(self) -> CacheClient:
        """The client of Redis."""
        return self.records.client

    @property
    def space(self) -> Space:
        """The names of the keys."""
        return self.records.space

    @property
    def _loading(self) -> Loading[T]:
        return Loading(records=self.records, events=self.events, single_flight=self.single_flight)

    def get(self, ident: str) -> T | Missing:
        """Return the cached record *ident*, or MISSING; one round trip, raises CacheUnavailable."""
        look = self._look_at(ident)
        return look.value if look.outcome in SERVED else MISSING

    def read(self, ident: str, raw: bytes | None) -> T | Missing:
        """
        Return the record in *raw*, which was read together with a trusted marker; no round trip.

        Only a hit is counted: after MISSING the caller calls :meth:`get_or_load`, which counts the lookup.
        Only for spaces without display and tags.
        """
        look = self.records.look_in(ident, raw)
        if look.outcome == "hit":
            self.events.on_lookup(self.records.space.name, look.outcome)
        return look.value

    def get_or_load(self, ident: str, loader: Callable[[str], T | Missing]) -> T | Missing:
        """
        Return *ident* from the cache, else from *loader*; MISSING if the loader does not have it either.

        The loader must not read in a transaction that began before it was called.  One round
        trip for a hit, three (four with *single_flight*) and a load for a miss; without Redis only the load.
        Raises the loader's exceptions.
        """
        try:
            look = self._look_at(ident)
        except CacheUnavailable:
            look = Lookup(MISSING, "unavailable")
            self._tell_looks((look.outcome,))
        if look.outcome == "stale":
            self._loading.refresh(ident, loader)
        return look.value if look.outcome in SERVED else self._loading.one(ident, loader, look)

    def get_or_load_many(
        self, idents: Iterable[str], loader: Callable[[Sequence[str]], Mapping[str, T]]
    ) -> dict[str, T]:
        """
        Return those of *idents* that exist, in their order; one *loader* call for those not cached.

        The loader gets the missing ids, without duplicates, and returns the existing records by id.  One
        round trip
        when all are cached, three and the load otherwise.  Never waits for another load.
        """
        looks = self._look_or_nothing(list(dict.fromkeys(idents)))
        for ident in [ident for ident, look in looks.items() if look.outcome == "stale"]:
            self._loading.refresh(ident, lambda stale: loader((stale,)).get(stale, MISSING))
        lacking = {ident: look for ident, look in looks.items() if look.outcome not in SERVED}
        loaded = self._loading.many(lacking, loader) if lacking else {}
        found = {
            ident: look.value if ident not in lacking else loaded.get(ident, MISSING)
            for ident, look in looks.items()
        }
        return {ident: value for ident, value in found.items() if not isinstance(value, Missing)}

    def write_through(self, ident: str, change: Callable[[], T]) -> Written[T]:
        """
        Run *change*, which commits and returns the record, and put the record in the cache.

        If it was written or invalidated meanwhile, it is dropped instead.  Raises the exceptions of *change*,
        after dropping: the commit may have happened even so.
        """
        leases = self._lease_to_write(ident)
        try:
            value = change()
        except BaseException:
            self._replace_or_drop(ident, MISSING, leases)
            raise
        return Written(value, self._replace_or_drop(ident, value, leases) != "failed")

    def write_ahead(
        self, ident: str, change: Callable[[], V], record_of: Callable[[V], T | Missing]
    ) -> tuple[V, bool]:
        """
        The same for a change that is followed by :meth:`outdate_command`; returns its result and whether it
        is cached.

        *record_of* extracts the record from the result of *change*; MISSING: there is none to cache. If Redis
        fails, nothing more is tried, because an invalidation follows.
        """
        leases = self._lease_to_write(ident)
        if not leases:
            return change(), False
        try:
            made = change()
        except BaseException:
            self._replace_or_drop(ident, MISSING, leases)
            raise
        return made, self._replace_or_drop(ident, record_of(made), leases) == "written"

    def drop(self, idents: Iterable[str]) -> None:
        """Invalidate *idents*, after the commit that changed them; raises CacheUnavailable if that failed."""
        self.records.client.pipeline(self.drop_commands(idents))

    def drop_commands(self, idents: Iterable[str]) -> list[Command]:
        """
        Return the commands that invalidate *idents*, to be sent in this order, other commands may come
        between.
        """
        return self.records.drop_commands(idents)

    def outdate_command(self, ident: str, row_version: int) -> Command:
        """
        Return the command that invalidates *ident* after the commit of *row_version*, but keeps a record that
        is at least as new.

        Unlike a drop it may be repeated later: it keeps a newer record.
        """
        return self.records.outdate_command(ident, row_version)

    def _look_at(self, ident: str) -> Lookup[T]:
        look = self.records.look_at(ident)
        self.events.on_lookup(self.records.space.name, look.outcome)
        return look

    def _look_or_nothing(self, idents: Sequence[str]) -> dict[str, Lookup[T]]:
        try:
            return self._look(idents)
        except CacheUnavailable:
            self._tell_looks("unavailable" for _ in idents)
            return {ident: Lookup(MISSING, "unavailable") for ident in idents}

    def _look(self, idents: Sequence[str]) -> dict[str, Lookup[T]]:
        looks = self.records.look(idents) if idents else {}
        self._tell_looks(look.outcome for look in looks.values())
        return looks

    def _tell_looks(self, outcomes: Iterable[str]) -> None:
        for outcome in outcomes:
            self.events.on_lookup(self.records.space.name, outcome)

    def _lease_to_write(self, ident: str) -> Mapping[str, Lease]:
        try:
            return self.records.lease({ident: "written"}, take_over=True)
        except CacheError:
            return {}

    def _replace_or_drop(self, ident: str, value: T | Missing, leases: Mapping[str, Lease]) -> str:
        try:
            if not isinstance(value, Missing) and leases and self._may_store(ident):
                outcome = "written" if self.records.replace(ident, value, leases[ident]) else "dropped"
            else:
                self.drop((ident,))
                outcome = "dropped"
        except CacheError:
            outcome = "failed"
        except (TypeError, ValueError):
            # A record that cannot be stored is a bug in its shape; the old record must still be dropped.
            with suppress(CacheError):
                self.drop((ident,))
            raise
        self.events.on_fill(self.records.space.name, outcome)
        return outcome

    def _may_store(self, ident: str) -> bool:
        """True unless a trust check exists and refuses: then nothing may be written either."""
        return self.records.trust is None or self.records.look_at(ident).outcome != "untrusted"
