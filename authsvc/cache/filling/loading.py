"""How a record is loaded that a reader did not find: alone, with others, for many, in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Generic, TypeAlias, TypeVar, cast

from authsvc.cache.entry import MISSING, Missing
from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.cache.events import CacheEvents
from authsvc.cache.filling.flight import Flight, SingleFlight
from authsvc.cache.filling.records import SERVED, UNSURE, Lease, Look, Records

T = TypeVar("T")
Loader: TypeAlias = "Callable[[str], T | Missing]"
BatchLoader: TypeAlias = "Callable[[Sequence[str]], Mapping[str, T]]"

#: A waiter whose flights were all overtaken by invalidations loads on its own in the end.
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading(Generic[T]):
    """Loads *records* and stores them under leases; every outcome is told to *events*."""

    records: Records[T]
    events: CacheEvents
    flights: SingleFlight | None = None

    def one(self, ident: str, loader: Loader[T], look: Look[T]) -> T | Missing:
        """Load *ident*, which *look* did not find."""
        if look.outcome in UNSURE:
            return loader(ident)
        if self.flights is None:
            return self._alone(ident, loader, look)
        return self._together(self.flights, ident, loader, look)

    def many(self, looks: Mapping[str, Look[T]], loader: BatchLoader[T]) -> Mapping[str, T]:
        """Load the records of *looks* in one call and store those whose leases were free."""
        sure = {ident: look.outcome for ident, look in looks.items() if look.outcome not in UNSURE}
        leases = self._lease(sure) if sure else {}
        with _GivingUp(self, leases):
            try:
                loaded = loader(list(looks))
            except self._covered as error:
                return self._rescued(looks, error)
            self._settle(leases, loaded)
        return {ident: loaded[ident] for ident in looks if ident in loaded}

    def refresh(self, ident: str, loader: Loader[T]) -> None:
        """Have *ident* loaded anew in the background, unless it is already or there is no place for it."""
        display = self.records.display
        if display is not None and display.refresher is not None:
            display.refresher.submit(self.records.space.key(ident), partial(self._renew, ident, loader))

    def _renew(self, ident: str, loader: Loader[T]) -> None:
        # Where the loader fails the lease is kept on purpose: until it ends nobody here or elsewhere
        # tries again, or every reader of a stale record would send another load after a dead database.
        leases = self._lease({ident: "stale"})
        if leases:
            self._settle(leases, _by_id(ident, loader(ident)))

    def _alone(self, ident: str, loader: Loader[T], look: Look[T]) -> T | Missing:
        leases = self._lease({ident: look.outcome})
        value, _ = self._load(ident, loader, look, leases)
        return value

    def _load(
        self,
        ident: str,
        loader: Loader[T],
        look: Look[T],
        leases: Mapping[str, Lease],
        before_settling: Callable[[], None] = lambda: None,
    ) -> tuple[T | Missing, bool]:
        """Return what was loaded, and whether nothing was invalidated since its lease was taken."""
        with _GivingUp(self, leases):
            try:
                value = loader(ident)
            except self._covered as error:
                return self._rescued({ident: look}, error)[ident], False
            before_settling()
            return value, self._settle(leases, _by_id(ident, value))

    def _together(self, flights: SingleFlight, ident: str, loader: Loader[T], look: Look[T]) -> T | Missing:
        key = self.records.space.key(ident)
        for _ in range(_ROUNDS):
            boarded, number = flights.board(key)
            flight = cast("Flight[T | Missing]", boarded)
            if number == 0:
                return self._lead(flights, flight, ident, loader, look)
            if not flight.landed.wait(flights.patience_s) or flight.has_failed:
                break
            cargo = flight.cargo_for(number)
            if cargo is not None:
                self.events.on_fill(self.records.space.name, "shared")
                return cargo[0]
            look = self._look_again(ident)
            if look.outcome in SERVED:
                return look.value
            if look.outcome in UNSURE:
                break
        return loader(ident)

    def _lead(
        self,
        flights: SingleFlight,
        flight: Flight[T | Missing],
        ident: str,
        loader: Loader[T],
        look: Look[T],
    ) -> T | Missing:
        flight.has_failed = True  # until it has not
        try:
            value = self._fly(flights, flight, ident, loader, look)
            flight.has_failed = False
        finally:
            flights.land(self.records.space.key(ident))
        return value

    def _fly(
        self,
        flights: SingleFlight,
        flight: Flight[T | Missing],
        ident: str,
        loader: Loader[T],
        look: Look[T],
    ) -> T | Missing:
        """Load under the lease, if it is still needed, or wait for whoever has it; carry what is proven."""
        until_s = flights.clock() + flights.patience_s
        leases = self._lease({ident: look.outcome})
        while leases == {} and flights.clock() < until_s:
            flights.pause(flights.retry_s)
            flight.seal()
            look = self._look_again(ident)
            if look.outcome in SERVED:
                flight.carry(look.value)
                return look.value
            if look.outcome in UNSURE:
                break
            leases = self._lease({ident: look.outcome}, is_first=False)
        if leases:
            # Somebody may have filled it and gone between the last look and this lease.
            flight.seal()
            again = self._look_again(ident)
            if again.outcome in SERVED:
                self.give_up(leases)
                flight.carry(again.value)
                return again.value
        value, is_current = self._load(ident, loader, look, leases or {}, flight.seal)
        if is_current:
            flight.carry(value)
        return value

    def _look_again(self, ident: str) -> Look[T]:
        """Look without counting: the reader's one question was counted when it was asked."""
        try:
            return self.records.look_at(ident)
        except CacheUnavailable:
            return Look(MISSING, "unavailable")

    def _lease(self, outcomes: Mapping[str, str], *, is_first: bool = True) -> dict[str, Lease] | _NoLeases:
        """Take the leases that are free; where Redis fails, none, and nobody should wait for one."""
        try:
            leases = self.records.lease(outcomes)
        except CacheError:
            self._tell("failed", len(outcomes))
            return _NoLeases()
        if is_first:
            self._tell("leased", len(outcomes) - len(leases))
        return leases

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

    def give_up(self, leases: Mapping[str, Lease]) -> None:
        """Let others try at once where this reader's loader failed."""
        for ident, own in leases.items():
            try:
                self.records.give_up(ident, own)
            except CacheError:
                self._tell("failed", 1)

    @property
    def _covered(self) -> tuple[type[Exception], ...]:
        return self.records.display.errors if self.records.display else ()

    def _rescued(self, looks: Mapping[str, Look[T]], error: Exception) -> dict[str, T]:
        """Return the expired values that may be shown instead of *error*; raises it if one has none."""
        values = {i: look.value for i, look in looks.items() if not isinstance(look.value, Missing)}
        if len(values) < len(looks):
            raise error
        for _ in values:
            self.events.on_fill(self.records.space.name, "rescued")
        return values

    def _tell(self, outcome: str, times: int) -> None:
        for _ in range(times):
            self.events.on_fill(self.records.space.name, outcome)


class _NoLeases(dict[str, Lease]):
    """No lease, and none to wait for: unequal to the empty dict of leases that others hold."""

    __hash__ = None  # as any dict

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NoLeases)


@dataclass(frozen=True, slots=True)
class _GivingUp(Generic[T]):
    """Gives the leases back when the loader raises; a death (SystemExit and its like) tells nobody."""

    loading: Loading[T]
    leases: Mapping[str, Lease]

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.loading.give_up(self.leases)


def _by_id(ident: str, value: T | Missing) -> dict[str, T]:
    return {} if isinstance(value, Missing) else {ident: value}
