"""What a session store promises, on PostgreSQL and on SQLite."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.errors import NotFound
from authsvc.domain.sessions import Ending, Rotation, Session
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id, timed_id
from authsvc.domain.values.levels import Acr, Level
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.tables import sessions
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import Stores

RACERS = 16


#: As a login, a second factor and a passkey leave a session; and as an earlier version began it.
LEVELS = [
    None,
    Level(Acr.AAL1, ("pwd",), 1_790_000_000),
    Level(Acr.AAL2, ("pwd", "otp", "mfa"), 1_790_000_001),
    Level(Acr.PHR, ("pwd", "pop", "user", "mfa"), 1_790_000_002),
]


def rotated(stores: Stores, session, **changes) -> Session | None:
    """*session*, rotated now, as it was read."""
    now = stores.clock()
    rotation = Rotation(
        session=replace(session, **changes), now=now, idle_expires_at=now + timedelta(hours=1)
    )
    return stores.sessions.rotate(rotation)


def rotate(stores: Stores, session, **changes) -> bool:
    """Rotate *session* now, as it was read; True if that consumed its token."""
    return rotated(stores, session, **changes) is not None


def test_a_session_is_read_back_with_its_user(stores):
    """Both as they are now, in one query."""
    alice = stores.register()
    session = stores.log_in(alice, device_id="phone", ip="2001:db8::1", user_agent=None)

    standing = stores.sessions.standing(session.id)

    assert standing is not None
    assert standing.session == session
    assert standing.user == stores.users.get(alice.id)


def test_an_unknown_session_has_no_standing(stores):
    """Neither a random one nor one whose user was removed."""
    alice = stores.register()
    session = stores.log_in(alice)
    stores.users.remove(alice.id)

    assert stores.sessions.standing(SessionId(new_id())) is None
    assert stores.sessions.standing(session.id) is None


def test_a_rotation_consumes_the_counter(stores):
    """Counter, time of use and idle end move; the absolute end and the rest stay."""
    alice = stores.register()
    session = stores.log_in(alice)
    now = stores.clock.tick(60)

    assert rotate(stores, session)

    standing = stores.sessions.standing(session.id)
    assert standing is not None
    assert standing.session == replace(
        session, counter=1, rotated_at=now, last_used_at=now, idle_expires_at=now + timedelta(hours=1)
    )


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_of_a_session_is_kept(stores, level):
    """Method by method, to the second; and a session without one has none."""
    session = stores.log_in(stores.register(), level=level)

    standing = stores.sessions.standing(session.id)

    assert standing is not None
    assert standing.session.level == level


@pytest.mark.parametrize("level", LEVELS)
def test_a_rotation_tells_the_session_as_it_is_then(stores, level):
    """With the level that the row has, whatever it was when the session was read."""
    session = stores.log_in(stores.register(), level=level)
    read_before_a_step_up = replace(session, level=None)

    after = rotated(stores, read_before_a_step_up)

    standing = stores.sessions.standing(session.id)
    assert standing is not None
    assert after == standing.session
    assert standing.session.level == level


@pytest.mark.parametrize(
    "noted",
    [{"acr": "aal3"}, {"acr": "AAL1"}, {"acr": None}, {"amr": None}, {"amr": ""}, {"auth_time": None}],
)
def test_a_level_that_cannot_be_read_is_none(stores, noted):
    """Be it one of a later version, or in parts: less than it is worth, and no error."""
    session = stores.log_in(stores.register(), level=LEVELS[1])
    with stores.database.transaction() as connection:
        connection.execute(update(sessions).values(noted))

    standing = stores.sessions.standing(session.id)

    assert standing is not None
    assert standing.session.level is None


@pytest.mark.parametrize("counter", [-1, 1, 2])
def test_another_counter_consumes_nothing(stores, counter):
    """Only the token in use can be traded."""
    session = stores.log_in(stores.register())

    assert not rotate(stores, session, counter=counter)
    assert rotate(stores, session)
    assert not rotate(stores, session)


@pytest.mark.parametrize(
    ("ends", "at_s", "rotates"),
    [
        ({"idle_expires_at": 60}, 59.9, True),
        ({"idle_expires_at": 60}, 60, False),
        ({"expires_at": 60}, 59.9, True),
        ({"expires_at": 60}, 60, False),
    ],
)
def test_an_expired_session_does_not_rotate(stores, ends, at_s, rotates):
    """The row decides, at the time that the caller gives."""
    start = stores.clock()
    times = {name: start + timedelta(seconds=seconds) for name, seconds in ends.items()}
    session = stores.log_in(stores.register(), **times)
    stores.clock.tick(at_s)

    assert rotate(stores, session) is rotates


def test_an_ended_session_does_not_rotate(stores):
    """However current its counter."""
    session = stores.log_in(stores.register())
    stores.sessions.end(Ending(session_id=session.id, reason="logout"))

    assert not rotate(stores, session)


def test_of_many_rotations_of_one_token_one_wins(stores):
    """Exactly one successor, for as many rounds as there are."""
    session = stores.log_in(stores.register())

    for round_ in range(5):
        current = replace(session, counter=round_)
        assert sorted(in_threads(*[lambda s=current: rotate(stores, s)] * RACERS)) == [False] * 15 + [True]

    standing = stores.sessions.standing(session.id)
    assert standing is not None
    assert standing.session.counter == 5


def test_a_rotation_that_meets_the_end_never_outlives_it(stores):
    """Whichever comes first: afterwards the session is over and its counter moved at most once."""
    for _ in range(10):
        session = stores.log_in(stores.register(f"u{new_id()}"))

        outcomes = in_threads(
            *[lambda s=session: rotate(stores, s)] * 4,
            *[lambda s=session: stores.sessions.end(Ending(session_id=s.id, reason="logout"))] * 2,
        )

        won = sum(outcome is True for outcome in outcomes[:4])
        standing = stores.sessions.standing(session.id)
        assert standing is not None
        assert standing.session.revoked_at is not None
        assert standing.session.counter == won <= 1
        assert not rotate(stores, standing.session)


def test_ending_is_one_entry_with_session_and_token(stores):
    """Time and reason are in the row, the tombstone is in the log."""
    alice = stores.register()
    session, token_id = stores.log_in(alice), TokenId(new_id())
    now = stores.clock.tick(5)
    head = stores.log.head()

    committed = stores.sessions.end(Ending(session_id=session.id, reason="logout", token_id=token_id))

    assert committed.value == replace(session, revoked_at=now, reason="logout")
    (entry,) = committed.entries
    assert (entry.seq, entry.user_id, entry.session_id, entry.token_id, entry.epoch) == (
        head + 1, alice.id, session.id, token_id, None,
    )  # fmt: skip
    assert entry.expires_at == now + timedelta(seconds=3600 + 5 + 60)


def test_ending_twice_repeats_the_entry_and_keeps_the_first_reason(stores):
    """Redis is written again, with the token that was shown this time; the log does not grow."""
    session = stores.log_in(stores.register())
    first = stores.sessions.end(Ending(session_id=session.id, reason="logout"))
    head = stores.log.head()
    shown = TokenId(new_id())
    stores.clock.tick(30)

    again = stores.sessions.end(Ending(session_id=session.id, reason="refresh_reused", token_id=shown))

    assert again.value == first.value
    assert stores.log.head() == head
    assert [(entry.seq, entry.session_id, entry.token_id) for entry in again.entries] == [
        (0, session.id, shown)
    ]


def test_ending_what_was_never_there_is_nothing(stores):
    """No row, no entry, no error."""
    committed = stores.sessions.end(Ending(session_id=SessionId(new_id()), reason="logout"))

    assert committed.value is None
    assert committed.entries == ()
    assert stores.log.head() == 0


def test_of_many_ends_of_one_session_one_is_new(stores):
    """One entry in the log; all the others repeat it."""
    session = stores.log_in(stores.register())
    head = stores.log.head()

    ending = Ending(session_id=session.id, reason="logout")
    outcomes = in_threads(*[lambda: stores.sessions.end(ending)] * RACERS)

    assert sorted(entry.seq for outcome in outcomes for entry in outcome.entries) == [0] * 15 + [head + 1]
    assert {outcome.value.id for outcome in outcomes} == {session.id}


def test_ending_all_cuts_the_user_off(stores):
    """Every session, and by the epoch every access token; nobody else's."""
    alice, bob = stores.register(), stores.register("bob")
    mine, theirs = {stores.log_in(alice).id for _ in range(3)}, stores.log_in(bob)
    head = stores.log.head()

    committed = stores.sessions.end_all(alice.id, reason="ended", keep=None)

    assert {entry.session_id for entry in committed.entries} == {*mine, None}
    assert [entry.epoch for entry in committed.entries if entry.epoch is not None] == [1]
    assert [entry.seq for entry in committed.entries] == list(range(head + 1, head + 5))
    after = stores.users.get(alice.id)
    assert (after.epoch, after.version) == (1, 5)
    assert stores.alive(alice) == set()
    assert stores.alive(bob) == {theirs.id}


def test_ending_all_others_keeps_the_one_and_its_tokens(stores):
    """The epoch stays, or the kept session's token would be cut off, too."""
    alice = stores.register()
    kept, gone = stores.log_in(alice), stores.log_in(alice)

    committed = stores.sessions.end_all(alice.id, reason="ended", keep=kept.id)

    assert [(entry.session_id, entry.epoch) for entry in committed.entries] == [(gone.id, None)]
    assert stores.users.get(alice.id).epoch == 0
    assert stores.alive(alice) == {kept.id}


def test_ending_all_of_nobody_is_an_error(stores):
    """There is no user to cut off."""
    with pytest.raises(NotFound):
        stores.sessions.end_all(UserId(new_id()), reason="ended", keep=None)


def test_the_epoch_rises_with_every_end_of_all(stores):
    """Also where two run at once: each one is a cut-off of its own."""
    alice = stores.register()

    in_threads(*[lambda: stores.sessions.end_all(alice.id, reason="ended", keep=None)] * RACERS)

    assert stores.users.get(alice.id).epoch == RACERS
    assert sorted(epoch for _, _, epoch in stores.entries() if epoch is not None) == list(
        range(1, RACERS + 1)
    )


def test_living_sessions_are_listed_by_last_use(stores):
    """Without those that are ended, idle for too long or at their end, and without anybody else's."""
    alice = stores.register()
    start = stores.clock()
    stores.log_in(stores.register("bob"))
    first = stores.log_in(alice)
    second = stores.log_in(alice, last_used_at=start + timedelta(seconds=1))
    stores.log_in(alice, idle_expires_at=start + timedelta(seconds=5))
    stores.log_in(alice, expires_at=start + timedelta(seconds=5))
    ended = stores.log_in(alice)
    stores.sessions.end(Ending(session_id=ended.id, reason="logout"))
    stores.clock.tick(5)

    assert [s.id for s in stores.sessions.of_user(alice.id, now=stores.clock())] == [second.id, first.id]
    rotate(stores, first)
    assert [s.id for s in stores.sessions.of_user(alice.id, now=stores.clock())] == [first.id, second.id]


def event(session, **changes) -> Entry:
    """The row of the end of *session*."""
    return Entry(id=timed_id(session.created_at), at=session.created_at, action="session.ended", **changes)


def test_an_end_stores_its_event_with_it(stores):
    """With the user of the session; what is over is not written down again."""
    alice = stores.register()
    session = stores.log_in(alice)
    told = event(session, session_id=session.id, once=session.id)

    first = stores.sessions.end(Ending(session_id=session.id, reason="logout", event=told))
    again = stores.sessions.end(Ending(session_id=session.id, reason="logout", event=told))

    assert (first.is_noted, again.is_noted) == (True, False)
    assert SqlAuditTrail(stores.database).page(AuditFilter()) == [replace(told, user_id=alice.id)]


def test_a_session_ends_also_where_the_trail_refuses_the_event(stores):
    """The event is left to the caller."""
    session = stores.log_in(stores.register())
    told = event(session, once="one")
    SqlAuditTrail(stores.database).write([told])

    ending = Ending(session_id=session.id, reason="logout", event=replace(told, once="another"))
    committed = stores.sessions.end(ending)

    assert not committed.is_noted
    assert [entry.session_id for entry in committed.entries] == [session.id]
    assert session.id not in stores.alive(stores.users.get(session.user_id))
