"""Many sessions in one call: each is treated as if it were alone, and none waits for another one's lock."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Committed
from authsvc.domain.sessions import Ending, Rotation, Session, Standing
from authsvc.domain.values.identifiers import SessionId, TokenId, new_id, timed_id
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.tables import sessions, users
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import Stores

RACERS = 16


def rotation(stores: Stores, session: Session, **changes) -> Rotation:
    """Rotate *session* now, as it was read."""
    now = stores.clock()
    return Rotation(session=replace(session, **changes), now=now, idle_expires_at=now + timedelta(hours=1))


def ending(session: Session, **changes) -> Ending:
    """The end of *session* with its event, as a logout asks for it."""
    event = Entry(
        id=timed_id(session.created_at),
        at=session.created_at,
        action="session.ended",
        session_id=session.id,
        once=session.id,
    )
    made = Ending(session_id=session.id, reason="logout", token_id=TokenId(new_id()), event=event)
    return replace(made, **changes)


def ended(result: Committed[Session | None] | None) -> Committed[Any]:
    """*result*, which there is."""
    assert result is not None
    return result


def event_of(one: Ending) -> Entry:
    """The event of *one*."""
    assert one.event is not None
    return one.event


@contextmanager
def locked(stores: Stores, session: Session):
    """Another transaction has the lock of *session*."""
    with stores.database.transaction() as connection:
        connection.execute(select(sessions).where(sessions.c.id == session.id).with_for_update())
        yield


def test_standings_are_in_the_order_asked_for(stores):
    """None for an unknown one; twice for one that is asked for twice."""
    alice, bob = stores.register(), stores.register("bob")
    first, second, third = stores.log_in(alice), stores.log_in(bob), stores.log_in(alice)
    unknown = SessionId(new_id())

    found = stores.sessions.standings([third.id, unknown, first.id, second.id, third.id])
    alice, bob = stores.users.get(alice.id), stores.users.get(bob.id)

    assert found == [
        Standing(session=third, user=alice),
        None,
        Standing(session=first, user=alice),
        Standing(session=second, user=bob),
        Standing(session=third, user=alice),
    ]


@pytest.mark.parametrize("damage", [{"status": "odd"}, {"preferences": []}])
def test_a_damaged_row_is_the_trouble_of_its_session_alone(stores, damage):
    """The others are read."""
    alice, bob = stores.register(), stores.register("bob")
    good, damaged = stores.log_in(alice), stores.log_in(bob)
    with stores.database.transaction() as connection:
        connection.execute(update(users).where(users.c.id == bob.id).values(damage))

    one, other = stores.sessions.standings([damaged.id, good.id])

    assert isinstance(one, StoreUnavailable)
    assert other == Standing(session=good, user=stores.users.get(alice.id))
    with pytest.raises(StoreUnavailable):
        stores.sessions.standing(damaged.id)


def test_a_row_that_the_driver_cannot_read_is_so_too(postgres_stores):
    """Its times lie beyond those that Python knows."""
    stores = postgres_stores
    good, damaged = (stores.log_in(stores.register(name)) for name in ("alice", "bob"))
    with stores.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE sessions SET created_at = 'infinity' WHERE id = %s", (damaged.id,))

    one, other = stores.sessions.standings([damaged.id, good.id])

    assert isinstance(one, StoreUnavailable)
    assert isinstance(other, Standing)


def test_many_tokens_are_replaced_at_once(stores):
    """As far as they are current, and their sessions live."""
    alice = stores.register()
    good, old, over, level = (stores.log_in(alice) for _ in range(4))
    stores.sessions.end(Ending(session_id=over.id, reason="logout"))
    now = stores.clock.tick(60)

    asked = [
        rotation(stores, good),
        rotation(stores, old, counter=1),
        rotation(stores, over),
        rotation(stores, replace(good, id=SessionId(new_id()))),
        rotation(stores, level),
    ]
    rotated = stores.sessions.rotate_free(asked)

    assert [one.id if one else None for one in rotated] == [good.id, None, None, None, level.id]
    for one in (rotated[0], rotated[4]):
        assert one is not None
        assert (one.counter, one.rotated_at, one.last_used_at) == (1, now, now)
        assert one.idle_expires_at == now + timedelta(hours=1)
        assert stores.sessions.standing(one.id).session == one


def test_one_token_twice_is_replaced_once(stores):
    """In one call, and in calls that race for it."""
    session = stores.log_in(stores.register())

    first, again = stores.sessions.rotate_free([rotation(stores, session)] * 2)
    assert (first.counter, again) == (1, None)

    def race() -> int:
        return sum(one is not None for one in stores.sessions.rotate_free([rotation(stores, first)]))

    assert sum(in_threads(*[race] * RACERS)) <= 1
    assert stores.sessions.standing(session.id).session.counter == 2


def test_a_locked_session_is_not_waited_for(postgres_stores):
    """The others are refreshed and ended."""
    stores = postgres_stores
    alice = stores.register()
    free, busy = stores.log_in(alice), stores.log_in(alice)

    with locked(stores, busy):
        one, other = stores.sessions.rotate_free([rotation(stores, busy), rotation(stores, free)])
        left, done = stores.sessions.end_free([ending(busy), ending(free)])

    assert (one, other.counter) == (None, 1)
    assert left is None
    assert ended(done).value.id == free.id
    assert stores.alive(alice) == {busy.id}


def test_many_sessions_end_at_once(stores):
    """Each with an event and one entry of the log, in the numbers of which nothing is missing."""
    alice, bob = stores.register(), stores.register("bob")
    some = [stores.log_in(user) for user in (alice, bob) for _ in range(3)]
    head = stores.log.head()
    now = stores.clock.tick(60)
    asked = [ending(session) for session in some]

    results = [ended(one) for one in stores.sessions.end_free(asked)]

    assert [one.value for one in results] == [
        replace(session, revoked_at=now, reason="logout") for session in some
    ]
    assert all(one.is_noted for one in results)
    entries = [entry for one in results for entry in one.entries]
    assert [(entry.session_id, entry.user_id, entry.token_id) for entry in entries] == [
        (session.id, session.user_id, one.token_id) for session, one in zip(some, asked, strict=True)
    ]
    assert sorted(entry.seq for entry in entries) == list(range(head + 1, head + 7))
    (logged,) = stores.log.pages([(head + 1, head + 6)])
    assert sorted(logged, key=lambda entry: entry.seq) == sorted(entries, key=lambda entry: entry.seq)
    rows = SqlAuditTrail(stores.database).page(AuditFilter())
    assert {(row.session_id, row.user_id, row.count) for row in rows} == {
        (session.id, session.user_id, 1) for session in some
    }


def test_what_is_over_unknown_or_there_twice_is_left_to_the_caller(postgres_stores):
    """One session twice in a group has one new entry and one row."""
    stores = postgres_stores
    session, other = (stores.log_in(stores.register(name)) for name in ("alice", "bob"))
    stores.sessions.end(Ending(session_id=other.id, reason="ended"))
    head = stores.log.head()
    unknown = ending(replace(session, id=SessionId(new_id())))

    first, *left = stores.sessions.end_free([ending(session), ending(session), ending(other), unknown])

    assert [entry.seq for entry in ended(first).entries] == [head + 1]
    assert left == [None, None, None]
    assert stores.log.head() == head + 1
    assert [row.count for row in SqlAuditTrail(stores.database).page(AuditFilter())] == [1]


def test_a_refused_event_leaves_all_to_the_caller(postgres_stores, caplog):
    """Nothing has ended then, and the log says so; by itself, a session ends without its event."""
    stores = postgres_stores
    session, other = (stores.log_in(stores.register(name)) for name in ("alice", "bob"))
    refused = ending(session)
    SqlAuditTrail(stores.database).write([replace(event_of(refused), once="another")])

    assert stores.sessions.end_free([refused, ending(other)]) == [None, None]

    assert stores.alive(stores.users.get(session.user_id)) == {session.id}
    assert stores.alive(stores.users.get(other.user_id)) == {other.id}
    assert [record.message for record in caplog.records] == ["sql.group_refused"]
    one, two = stores.sessions.end(refused), stores.sessions.end(ending(other))
    assert (one.is_noted, two.is_noted) == (False, True)


def test_an_event_that_shares_a_row_counts_there(stores):
    """The end of the session is in the log all the same, even if the row is another session's."""
    session = stores.log_in(stores.register())
    shared = ending(session)
    SqlAuditTrail(stores.database).write(
        [replace(event_of(shared), id=timed_id(session.created_at), session_id=new_id())]
    )

    (one,) = map(ended, stores.sessions.end_free([shared]))

    assert [entry.session_id for entry in one.entries] == [session.id]
    (row,) = SqlAuditTrail(stores.database).page(AuditFilter())
    assert row.count == 2


def test_racing_groups_end_each_session_once(stores):
    """In any order of the sessions within them; no number is taken twice."""
    alice = stores.register()
    some = [stores.log_in(alice) for _ in range(8)]
    head = stores.log.head()

    def race(turn: int) -> list[Committed[Session | None]]:
        order = [ending(one) for one in some[turn % 8 :] + some[: turn % 8]]
        results = stores.sessions.end_free(order)
        return [result or stores.sessions.end(one) for one, result in zip(order, results, strict=True)]

    groups = in_threads(*[lambda turn=turn: race(turn) for turn in range(RACERS)])

    entries = [entry for group in groups for one in group for entry in one.entries]
    assert sorted(entry.seq for entry in entries if entry.seq) == list(range(head + 1, head + 9))
    assert len(entries) == 8 * RACERS
    assert {row.count for row in SqlAuditTrail(stores.database).page(AuditFilter())} == {1}
    assert stores.alive(alice) == set()
