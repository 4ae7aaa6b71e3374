"""Use cases that share their calls: each behaves as if it were alone."""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.errors import NotFound, StoreUnavailable
from authsvc.domain.groups import Postponed, alone, by_itself, call, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from authsvc.domain.groups import Steps

who: ContextVar[str] = ContextVar("who", default="nobody")


class Store:
    """Doubles numbers, and keeps what it was asked for; 13 is an error, 99 an outage of all."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.asked_by: list[str] = []

    def double(self, numbers: Sequence[int]) -> list[int | Exception]:
        """Two for one."""
        self.calls.append(list(numbers))
        self.asked_by.append(who.get())
        if 99 in numbers:
            raise StoreUnavailable("down")
        return [NotFound() if number == 13 else 2 * number for number in numbers]


def doubling(store: Store, *numbers: int) -> Steps[list[int | str]]:
    """Double each of *numbers* in turn; what failed is named."""
    found: list[int | str] = []
    for number in numbers:
        try:
            found.append((yield from call(store.double, number)))
        except StoreUnavailable:
            found.append("down")
    return found


def apply(function, *args):
    """No context of its own."""
    return function(*args)


def test_calls_that_wait_at_the_same_time_are_made_as_one():
    """Those that have ended do not hold up the others."""
    store = Store()

    outcomes = together([(apply, doubling(store, *numbers)) for numbers in ((1, 2, 3), (4,), (), (5, 6))])

    assert outcomes == [[2, 4, 6], [8], [], [10, 12]]
    assert store.calls == [[1, 4, 5], [2, 6], [3]]


def test_calls_to_different_stores_are_not_mixed():
    """Each store is asked for its own."""
    one, other = Store(), Store()

    together([(apply, doubling(one, 1)), (apply, doubling(other, 2)), (apply, doubling(one, 3))])

    assert (one.calls, other.calls) == ([[1, 3]], [[2]])


def test_an_error_of_one_is_that_of_no_other():
    """Raised where it waits; what it does not catch is its outcome."""
    store = Store()

    good, bad, other = together([(apply, doubling(store, number, 7)) for number in (1, 13, 2)])

    assert (good, other) == ([2, 14], [4, 14])
    assert isinstance(bad, NotFound)


def test_an_outage_is_that_of_all_who_asked():
    """Each may go on after it."""
    store = Store()

    assert together([(apply, doubling(store, 99, 1)), (apply, doubling(store, 2, 3))]) == [
        ["down", 2],
        ["down", 6],
    ]


def test_each_runs_in_its_own_context():
    """Also the call of one who is alone with it."""
    store = Store()

    def named(name: str, *numbers: int) -> Steps[str]:
        who.set(name)
        yield from doubling(store, *numbers)
        return who.get()

    group = [(copy_context().run, named(name, *[1] * count)) for name, count in (("ada", 1), ("eve", 2))]

    assert together(group) == ["ada", "eve"]
    assert who.get() == "nobody"
    assert store.asked_by == ["nobody", "eve"]


def test_who_has_to_wait_leaves_the_group():
    """The others go on without them; alone, they wait."""
    store = Store()
    waited: list[str] = []

    def waiting(name: str) -> Steps[list[int | str]]:
        found = yield from doubling(store, 1)
        yield from by_itself()
        waited.append(name)
        return found

    left, other = together([(apply, waiting("ada")), (apply, doubling(store, 2, 3))])

    assert isinstance(left, Postponed)
    assert (other, waited) == ([4, 6], [])
    assert isinstance(together([(apply, waiting("eve"))])[0], Postponed)
    assert (alone(waiting("bob")), waited) == ([2], ["bob"])


def test_one_alone_raises_what_it_ends_with():
    """And returns what it returns."""
    store = Store()

    assert alone(doubling(store, 1, 99)) == [2, "down"]
    with pytest.raises(NotFound):
        alone(doubling(store, 13))


@given(st.lists(st.lists(st.sampled_from([1, 2, 3, 13])), max_size=6))
def test_a_group_ends_as_its_members_would_alone(works):
    """Whatever the others do."""

    def outcome(result: object) -> object:
        return type(result) if isinstance(result, Exception) else result

    def by_itself(numbers: list[int]) -> object:
        try:
            return alone(doubling(Store(), *numbers))
        except NotFound as error:
            return error

    store = Store()
    grouped = together([(apply, doubling(store, *numbers)) for numbers in works])

    assert [outcome(one) for one in grouped] == [outcome(by_itself(numbers)) for numbers in works]
