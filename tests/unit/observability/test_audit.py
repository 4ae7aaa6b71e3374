"""Who stores security events: with the act where SQL answers, else later; and what is lost is counted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import is_id, lowest_timed_id, new_id, timed_id
from authsvc.observability.trail import Tally, TrailTimings, TrailWriter
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
#: Half of what 20 requests would wait together, if each did.
WAIT_S = TrailTimings().wait_s
AT_ONCE_S = 10 * WAIT_S
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


class Trail:
    """SQL as the test has it: it answers, refuses, or keeps everybody waiting until the gate opens."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.tries = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep the ids."""
        self.tries += 1
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.rows += [entry.id for entry in entries]

    def page(self, _wanted: AuditFilter) -> list[Entry]:
        """Nobody reads here."""
        raise NotImplementedError

    def prune(self, *, before: datetime, most: int) -> int:
        """Nobody prunes here."""
        raise NotImplementedError


class World:
    """A writer over such a trail, and what it gave up on."""

    def __init__(self, capacity: int = 1000) -> None:
        self.trail = Trail()
        self.lost: list[int] = []
        self.writer = TrailWriter(self.trail, on_unwritten=self.lost.append, capacity=capacity)

    def store(self) -> tuple[str, float]:
        """Store an entry as a request does; its id, and the seconds that took."""
        entry, began_s = Entry(id=new_id(), at=NOW, action="login.failed"), time.monotonic()
        self.writer.put_and_wait(entry)
        return entry.id, time.monotonic() - began_s


def test_an_entry_is_stored_when_its_request_goes_on():
    """However many are stored at once, each of them is."""
    world = World()

    def store(_: int) -> bool:
        entry_id, _s = world.store()
        return entry_id in world.trail.rows

    with closing(world.writer), ThreadPoolExecutor(16) as pool:
        assert all(pool.map(store, range(200)))

    assert (len(world.trail.rows), world.lost) == (200, [])
    assert world.trail.tries <= 200


def test_nobody_waits_for_a_trail_that_fails_and_what_waits_is_stored_later():
    """One attempt tells; from then on requests go on at once, and nothing is lost when SQL is back."""
    world = World()
    world.trail.error = StoreUnavailable("sql")

    with closing(world.writer):
        waiting = [world.store() for _ in range(20)]
        assert world.trail.rows == []
        world.trail.error = None
        wait_until(lambda: len(world.trail.rows) == 20)

    assert world.trail.rows == [entry_id for entry_id, _ in waiting]
    assert sum(seconds for _, seconds in waiting) < AT_ONCE_S
    assert world.lost == []


def test_a_trail_that_hangs_costs_a_request_no_more_than_its_patience():
    """And it is stored all the same when the trail goes on."""
    world = World()
    world.trail.gate.clear()

    with closing(world.writer):
        entry_id, seconds = world.store()
        world.trail.gate.set()

    assert WAIT_S <= seconds < 20 * WAIT_S
    assert world.trail.rows == [entry_id]


def test_what_memory_does_not_hold_is_counted_at_once():
    """The oldest keep their place; the others are lost, one by one, and nobody waits for them."""
    world = World(capacity=5)
    world.trail.error = StoreUnavailable("sql")

    with closing(world.writer):
        first = [world.store()[0] for _ in range(8)][:5]
        world.trail.error = None
        wait_until(lambda: len(world.trail.rows) == 5)

    assert world.trail.rows == first
    assert world.lost == [1, 1, 1]


def test_what_waits_at_the_end_is_tried_once_more_and_then_counted():
    """The process ends in time, and says how many events only the log has; later ones are counted, too."""
    world = World()
    world.trail.error = StoreUnavailable("sql")
    for _ in range(3):
        world.store()
    began_s = time.monotonic()

    world.writer.close()
    late, _ = world.store()

    assert time.monotonic() - began_s < 60
    assert (world.lost, world.trail.rows) == ([3, 1], [])
    assert late not in world.trail.rows


def test_a_row_that_cannot_be_written_takes_nothing_else_with_it(caplog):
    """The writer outlives it: what comes later is stored."""
    world = World()
    world.trail.error = ValueError("nobody thought of it")

    with closing(world.writer):
        world.store()
        world.trail.error = None
        entry_id, _ = world.store()

    assert (world.trail.rows, world.lost) == ([entry_id], [1])
    assert "audit.crashed" in caplog.messages


@pytest.mark.parametrize("threads", [1, 8])
def test_a_flood_of_the_same_is_written_a_few_times_and_counted_exactly(threads):
    """1,000 refusals are four writes, which add up to 1,000."""
    tally = Tally(window_s=900, most=10)

    with ThreadPoolExecutor(threads) as pool:
        rises = list(pool.map(lambda _: tally.see("same", NOW), range(1000)))

    assert sorted(rise for rise in rises if rise) == [1, 9, 90, 900]


def test_a_flood_of_different_things_is_bounded_until_the_window_ends():
    """What was told apart goes on being counted; the rest is not written; a new window begins anew."""
    tally = Tally(window_s=900, most=3)

    seen = [tally.see(name, NOW) for name in "abcde"]

    assert seen == [1, 1, 1, None, None]
    assert tally.see("a", NOW) == 0
    assert tally.see("e", NOW + timedelta(seconds=899)) is None
    assert tally.see("e", NOW + timedelta(seconds=900)) == 1
    assert tally.window(NOW + timedelta(seconds=900)) == tally.window(NOW) + 1


@given(st.lists(TIMES, min_size=2, max_size=6))
def test_timed_ids_sort_as_their_times_do(times):
    """To the microsecond; and the lowest of a time lies below its own and above all earlier ones."""
    made = {at: timed_id(at) for at in times}
    ordered = sorted(made)

    assert sorted(made.values()) == [made[at] for at in ordered]
    assert all(is_id(one) and one[14] == "7" for one in made.values())
    for earlier, later in pairwise(ordered):
        assert made[earlier] < lowest_timed_id(later) <= made[later]
