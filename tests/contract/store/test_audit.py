"""What the audit trail promises, on PostgreSQL and on SQLite."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from authsvc.domain.audit import AuditBook, AuditFilter, Entry
from authsvc.domain.values.identifiers import new_id, timed_id
from authsvc.store.audit import SqlAuditTrail
from tests.contract.cache.clients import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.store.stores import Stores

EVERYTHING = AuditFilter(limit=200)
WRITERS, BATCHES = 4, 25
PAGE = 7


@pytest.fixture
def trail(stores) -> SqlAuditTrail:
    """Make a trail over each kind of database."""
    return SqlAuditTrail(stores.database)


@pytest.fixture
def entry(stores: Stores) -> Callable[..., Entry]:
    """Make entries, each a second later than the one before."""

    def make(**fields: Any) -> Entry:
        at = stores.clock.tick(1)
        return Entry(**{"id": timed_id(at), "at": at, "action": "login.failed", **fields})

    return make


def ids(entries: list[Entry]) -> list[str]:
    """Their ids, in order."""
    return [one.id for one in entries]


def test_an_entry_is_read_back_as_it_was_written(trail, entry, stores):
    """Every field, the time to the microsecond; and one that has nothing but a time and a name."""
    stores.clock.tick(0.123456)
    full = entry(
        action="user.standing_set",
        user_id=new_id(),
        actor_id=new_id(),
        session_id=new_id(),
        client_ip="2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        user_agent="agent \u2028 é " + "x" * 490,
        device_id="d" * 200,
        account="0123456789abcdef",
        detail="roles=user+admin",
        request_id="r" * 64,
        count=3_000_000_000,
        once="f" * 64,
    )
    bare = entry()

    trail.write([full, bare])

    assert trail.page(EVERYTHING) == [bare, full]


def test_each_filter_selects_what_it_names_and_nothing_else(trail, entry):
    """Alone and together; since counts the moment itself, until does not."""
    alice, admin = new_id(), new_id()
    of_alice = entry(user_id=alice)
    by_admin = entry(action="user.deleted", user_id=alice, actor_id=admin)
    from_there = entry(client_ip="192.0.2.1")
    ended = entry(action="session.ended", actor_id=admin)
    trail.write([ended, from_there, of_alice, by_admin])

    def found(**wanted: Any) -> list[str]:
        return ids(trail.page(AuditFilter(limit=200, **wanted)))

    assert found() == ids([ended, from_there, by_admin, of_alice])
    assert found(user_id=alice) == ids([by_admin, of_alice])
    assert found(actor_id=admin) == ids([ended, by_admin])
    assert found(user_id=alice, actor_id=admin) == [by_admin.id]
    assert found(client_ip="192.0.2.1") == [from_there.id]
    assert found(actions=frozenset({"session.ended", "user.deleted"})) == ids([ended, by_admin])
    assert found(since=by_admin.at, until=ended.at) == ids([from_there, by_admin])
    assert found(since=by_admin.at + timedelta(microseconds=1)) == ids([ended, from_there])
    assert found(user_id=new_id()) == []


def test_a_repeated_write_adds_nothing(trail, entry):
    """A commit whose answer was lost is written again: each event still has one row."""
    entries = [entry(), entry(once="shared"), entry()]

    trail.write(entries)
    trail.write([*entries, entry()])

    assert len(trail.page(EVERYTHING)) == 4


def test_what_shares_a_row_is_counted_in_it_however_many_write_at_once(trail, entry):
    """The first one's facts stay; rows that two processes name in opposite orders are no deadlock."""
    first = [entry(once="a"), entry(once="b")]
    trail.write(first)

    def again(names: str) -> Callable[[], None]:
        return lambda: trail.write([replace(one, id=new_id()) for one in [entry(once=n) for n in names]])

    outcomes = in_threads(*[again("ab"), again("ba")] * 4)

    assert outcomes == [None] * 8
    assert trail.page(EVERYTHING) == [replace(one, count=9) for one in reversed(first)]


def test_the_cursor_skips_and_doubles_nothing_while_others_write(trail, entry):
    """What was there when the reader began comes exactly once, whatever is added meanwhile."""
    before = [entry() for _ in range(60)]
    trail.write(before)
    book, seen = AuditBook(trail), list[str]()
    begun = threading.Event()

    def write() -> None:
        for _ in range(BATCHES):
            trail.write([entry(), entry()])
            begun.set()

    def read() -> None:
        assert begun.wait(60)
        page, cursor = book.page(AuditFilter(limit=PAGE))
        seen.extend(ids(page))
        while cursor is not None:
            page, cursor = book.page(AuditFilter(limit=PAGE, after=cursor))
            assert len(page) <= PAGE
            seen.extend(ids(page))

    outcomes = in_threads(read, *[write] * WRITERS)

    assert outcomes == [None] * (1 + WRITERS)
    assert len(set(seen)) == len(seen)
    assert [one for one in seen if one in set(ids(before))] == ids(before)[::-1]
    assert len(trail.page(AuditFilter(limit=1000))) == 60 + WRITERS * BATCHES * 2


def test_pruning_takes_the_oldest_in_bounded_steps_and_spares_the_rest(trail, entry):
    """A step deletes no more than it was told; the moment itself stays."""
    entries = [entry() for _ in range(12)]
    trail.write(entries)
    before = entries[7].at

    steps = [trail.prune(before=before, most=3) for _ in range(4)]

    assert steps == [3, 3, 1, 0]
    assert ids(trail.page(EVERYTHING)) == ids(entries[7:])[::-1]
