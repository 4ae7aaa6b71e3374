"""Loading of missing records: by one reader, shared by several, many at once, or in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from authsvc.cache.entry import MISSING, Missing
from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.cache.events import CacheEvents, ignore
from authsvc.cache.filling.records import SERVED, UNSURE, Lease, Lookup, Records
from authsvc.cache.filling.single_flight import SharedLoad, SingleFlight

T = TypeVar("T")
Loader: TypeAlias = "Callable[[str], T | Missing]"
BatchLoader: TypeAlias = "Callable[[Sequence[str]], Mapping[str, T]]"

#: A waiter joins at most this many loads; if all were invalidated meanwhile, it loads the record itself.
_ROUNDS: Final = 3


class _Leases(NamedTuple):
    """The result of requesting leases; if Redis failed, none is held and there is none to wait for."""

    taken: Mapping[str, Lease]
    #: True if other readers hold all of them, so that waiting makes sense.
    are_held_by_others: bool


class _Leader(NamedTuple, Generic[T]):
    """The load that this thread leads, and the single flight in which to finish it."""

    single_flight: SingleFlight
    load: SharedLoad[T | Missing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading(Generic[T]):
    """Loads *records* and stores them under leases; reports every outcome to *events*."""

    records: Records[T]
    events: CacheEvents
    single_flight: SingleFlight | None = None

    def one(self, ident: str, loader: Loader[T], look: Lookup[T]) -> T | Missing:
        """Load *ident*, which *look* did not find."""
        if look.outcome in UNSURE:
            return loader(ident)
        if self.single_flight is None:
            return self._load(ident, loader, look, self._lease({ident: look.outcome}).taken)[0]
        return self._share(self.single_flight, ident, loader, look)

    def many(self, looks: Mapping[str, Lookup[T]], loader: BatchLoader[T]) -> Mapping[str, T]:
        """Load the missing records of *looks* in one call and store those whose leases were free."""
        sure = {ident: look.outcome for ident, look in looks.items() if look.outcome not in UNSURE}
        leases = self._lease(sure).taken if sure else {}
        with self._giving_up(leases):
            try:
                loaded = loader(list(looks))
            except self._covered as error:
                return self._rescued(looks, error)
            self._settle(leases, loaded)
        return {ident: loaded[ident] for ident in looks if ident in loaded}

    def refresh(self, ident: str, loader: Loader[T]) -> None:
        """Reload *ident* in the background, unless this is under way already or too much other work waits."""
        display = self.records.display
        if display is not None and display.refresher is not None:
            display.refresher.submit(self.records.space.key(ident), partial(self._renew, ident, loader))

    def _renew(self, ident: str, loader: Loader[T]) -> None:
        # If the loader fails, keep the lease: until it expires no process retries. Otherwise every reader of
        # a stale record would query a database that is down.
        leases = self._lease({ident: "stale"}).taken
        if leases:
            self._settle(leases, _by_id(ident, loader(ident)))

    def _load(
        self,
        ident: str,
        loader: Loader[T],
        look: Lookup[T],
        leases: Mapping[str, Lease],
        before_settling: Callable[[], None] = ignore,
    ) -> tuple[T | Missing, bool]:
        """Return the loaded record, and whether it was not invalidated since the lease was taken."""
        with self._giving_up(leases):
            try:
                value = loader(ident)
            except self._covered as error:
                return self._rescued({ident: look}, error)[ident], False
            before_settling()
            return value, self._settle(leases, _by_id(ident, value))

    def _share(
        self, single_flight: SingleFlight, ident: str, loader: Loader[T], look: Lookup[T]
    ) -> T | Missing:
        """Lead the load of *ident*, or wait for the thread that leads it."""
        for _ in range(_ROUNDS):
            joined, number = single_flight.join(self.records.space.key(ident))
            load = cast("SharedLoad[T | Missing]", joined)
            if number == 0:
                return self._lead(_Leader(single_flight, load), ident, loader, look)
            if not load.finished.wait(single_flight.patience_s) or load.has_failed:
                break
            result = load.result_for(number)
            if result is not None:
                self.events.on_fill(self.records.space.name, "shared")
                return result[0]
            look = self._look_again(ident)
            if look.outcome in SERVED:
                return look.value
            if look.outcome in UNSURE:
                break
        return loader(ident)

    def _lead(self, leader: _Leader[T], ident: str, loader: Loader[T], look: Lookup[T]) -> T | Missing:
        leader.load.has_failed = True  # reset when it succeeds
        try:
            value = self._load_for_all(leader, ident, loader, look)
            leader.load.has_failed = False
        finally:
            leader.single_flight.finish(self.records.space.key(ident))
        return value

    def _load_for_all(
        self, leader: _Leader[T], ident: str, loader: Loader[T], look: Lookup[T]
    ) -> T | Missing:
        """
        As the leader: load under the lease, or wait for its holder; share the result once it is proven
        current.
        """
        single_flight, load = leader
        until_s = single_flight.clock() + single_flight.patience_s
        leases = self._lease({ident: look.outcome})
        while leases.are_held_by_others and single_flight.clock() < until_s:
            single_flight.pause(single_flight.retry_s)
            look = self._look_for_all(load, ident)
            if look.outcome in SERVED:
                return look.value
            if look.outcome in UNSURE:
                break
            leases = self._lease({ident: look.outcome}, is_first=False)
        if leases.taken:
            # Another reader may have stored it and released the lease since the last lookup.
            again = self._look_for_all(load, ident)
            if again.outcome in SERVED:
                self.give_up(leases.taken)
                return again.value
        value, is_current = self._load(ident, loader, look, leases.taken, load.begin_proof)
        if is_current:
            load.set_result(value)
        return value

    def _look_for_all(self, load: SharedLoad[T | Missing], ident: str) -> Lookup[T]:
        """Look again, and share a usable result."""
        load.begin_proof()
        look = self._look_again(ident)
        if look.outcome in SERVED:
            load.set_result(look.value)
        return look

    def _look_again(self, ident: str) -> Lookup[T]:
        """Look without counting: the reader's lookup was counted before."""
        try:
            return self.records.look_at(ident)
        except CacheUnavailable:
            return Lookup(MISSING, "unavailable")

    def _lease(self, outcomes: Mapping[str, str], *, is_first: bool = True) -> _Leases:
        """Request leases; takes those that are free."""
        try:
            taken = self.records.lease(outcomes)
        except CacheError:
            self._tell("failed", len(outcomes))
            return _Leases({}, are_held_by_others=False)
        if is_first:
            self._tell("leased", len(outcomes) - len(taken))
        return _Leases(taken, are_held_by_others=not taken)

    def _settle(self, leases: Mapping[str, Lease], loaded: Mapping[str, T]) -> bool:
        if not leases:
            return False
        try:
            settled = self.records.settle(leases, loaded)
        except CacheError:
            self._tell("failed", len(leases))
            return False
        for ident, is_current in settled.items():
            stored = ident in loaded or self.records.negative_ttl_s
            self._tell(("filled" if stored else "released") if is_current else "refused", 1)
        return all(settled.values())

    @contextmanager
    def _giving_up(self, leases: Mapping[str, Lease]) -> Iterator[None]:
        """Release *leases* if the loader raises, but not if the process ends (SystemExit)."""
        try:
            yield
        except Exception:
            self.give_up(leases)
            raise

    def give_up(self, leases: Mapping[str, Lease]) -> None:
        """Release the leases after a failed load, so that others can try at once."""
        for ident, own in leases.items():
            try:
                self.records.give_up(ident, own)
            except CacheError:
                self._tell("failed", 1)

    @property
    def _covered(self) -> tuple[type[Exception], ...]:
        return self.records.display.errors if self.records.display else ()

    def _rescued(self, looks: Mapping[str, Lookup[T]], error: Exception) -> dict[str, T]:
        """Return the expired values to show instead of *error*; raises it if one of them has none."""
        values = {i: look.value for i, look in looks.items() if not isinstance(look.value, Missing)}
        if len(values) < len(looks):
            raise error
        for _ in values:
            self.events.on_fill(self.records.space.name, "rescued")
        return values

    def _tell(self, outcome: str, times: int) -> None:
        for _ in range(times):
            self.events.on_fill(self.records.space.name, outcome)


def _by_id(ident: str, value: T | Missing) -> dict[str, T]:
    return {} if isinstance(value, Missing) else {ident: value}
