"""What a level store promises, on PostgreSQL and on SQLite."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, update

from authsvc.domain.credentials import UsedUp
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.sessions import Ending, Rotation
from authsvc.domain.values.levels import Acr, Level, Method, level_of
from authsvc.store.accounts.levels import SqlLevelStore
from authsvc.store.accounts.mails import NO_NOTICES
from authsvc.store.tables import recovery_codes, users
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import Stores

DIGEST = b"digest" * 5
RACERS = 16


@pytest.fixture
def levels(stores) -> SqlLevelStore:
    """The store under test."""
    return SqlLevelStore(stores.database, stores.clock, NO_NOTICES)


def level_in_sql(stores: Stores, session) -> Level | None:
    """What the row says now."""
    standing = stores.sessions.standing(session.id)
    assert standing is not None
    return standing.session.level


def with_a_code(stores: Stores, user) -> UsedUp:
    """Give *user* a recovery code; what it uses up."""
    with stores.database.transaction() as connection:
        connection.execute(update(users).where(users.c.id == user.id).values(has_factor=True))
        connection.execute(
            insert(recovery_codes).values(user_id=user.id, digest=DIGEST, created_at=stores.clock())
        )
    return UsedUp(user_id=user.id, shown=Method.CODE, recovery_digest=DIGEST)


def codes_left(stores: Stores) -> int:
    """Recovery codes in SQL."""
    with stores.database.read() as connection:
        return len(connection.execute(select(recovery_codes.c.digest)).all())


def test_a_password_renews_the_time(stores, levels):
    """In the row and in what is returned, together with the user."""
    alice = stores.register()
    session = stores.log_in(alice, level=level_of(Method.PASSWORD, at=stores.clock()))
    now = stores.clock.tick(60)

    standing = levels.raise_level(session.id, stores.credentials_of(alice), Method.PASSWORD, None)

    expected = Level(Acr.AAL1, ("pwd",), int(now.timestamp()))
    assert standing is not None
    assert standing.session == replace(session, level=expected)
    assert standing.user.id == alice.id
    assert level_in_sql(stores, session) == expected


def test_a_session_without_a_level_began_with_a_password(stores, levels):
    """As an earlier version left it."""
    alice = stores.register()
    session = stores.log_in(alice)
    used_up = with_a_code(stores, alice)

    levels.raise_level(session.id, stores.credentials_of(alice), Method.CODE, used_up)

    assert level_in_sql(stores, session) == Level(
        Acr.AAL2, ("pwd", "otp", "mfa"), int(stores.clock().timestamp())
    )


def test_a_higher_level_stays(stores, levels):
    """A code in a session that began with a passkey."""
    alice = stores.register()
    session = stores.log_in(alice, level=level_of(Method.VERIFIED_PASSKEY, at=stores.clock()))
    used_up = with_a_code(stores, alice)

    levels.raise_level(session.id, stores.credentials_of(alice), Method.CODE, used_up)

    level = level_in_sql(stores, session)
    assert level is not None
    assert (level.acr, level.amr) == (Acr.PHR, ("otp", "pop", "user", "mfa"))


@pytest.mark.parametrize("by_code", [False, True])
@pytest.mark.parametrize("over", ["ended", "idle", "disabled", "removed", "of somebody else"])
def test_what_is_over_gets_no_level(stores, levels, over, by_code):
    """And nothing is used up for it."""
    alice = stores.register()
    session = stores.log_in(alice)
    proven = stores.credentials_of(alice)
    used_up = with_a_code(stores, alice) if by_code else None
    if over == "ended":
        stores.sessions.end(Ending(session_id=session.id, reason="logout"))
    elif over == "idle":
        stores.clock.tick(timedelta(days=7).total_seconds())
    elif over == "disabled":
        with stores.database.transaction() as connection:
            connection.execute(update(users).values(status="disabled"))
    elif over == "removed":
        stores.users.remove(alice.id)
    else:
        session = stores.log_in(stores.register("bob"))

    assert (
        levels.raise_level(session.id, proven, used_up.shown if used_up else Method.PASSWORD, used_up) is None
    )

    assert codes_left(stores) == (1 if by_code and over != "removed" else 0)


@pytest.mark.parametrize("change", [{"password_version": 2}, {"has_factor": True}])
def test_a_password_that_is_no_longer_enough_raises_nothing(stores, levels, change):
    """It was changed meanwhile, or a second factor was added."""
    alice = stores.register()
    session, proven = stores.log_in(alice), stores.credentials_of(alice)
    with stores.database.transaction() as connection:
        connection.execute(update(users).values(change))

    assert levels.raise_level(session.id, proven, Method.PASSWORD, None) is None
    assert level_in_sql(stores, session) is None


def test_what_is_used_up_opens_one_level(stores, levels):
    """Whoever comes second is told that the code is wrong, and gets nothing."""
    alice = stores.register()
    session = stores.log_in(alice)
    used_up, proven = with_a_code(stores, alice), stores.credentials_of(alice)
    levels.raise_level(session.id, proven, Method.CODE, used_up)
    before = level_in_sql(stores, session)
    stores.clock.tick(60)

    with pytest.raises(CodeInvalid):
        levels.raise_level(session.id, proven, Method.CODE, used_up)

    assert level_in_sql(stores, session) == before


def test_of_many_uses_of_one_code_one_wins(stores, levels):
    """Exactly one, in however many sessions."""
    alice = stores.register()
    sessions = [stores.log_in(alice, max_sessions=RACERS) for _ in range(RACERS)]
    used_up, proven = with_a_code(stores, alice), stores.credentials_of(alice)

    def use(session) -> bool:
        try:
            return levels.raise_level(session.id, proven, Method.CODE, used_up) is not None
        except CodeInvalid:
            return False

    won = in_threads(*[lambda session=session: use(session) for session in sessions])

    raised = [level_in_sql(stores, session) is not None for session in sessions]
    assert raised == won
    assert sum(won) == 1


def test_a_level_beside_rotations_is_kept(stores, levels):
    """A refresh writes other columns of the same row."""
    alice = stores.register()
    session, proven = stores.log_in(alice), stores.credentials_of(alice)
    now = stores.clock()
    rotation = Rotation(session=session, now=now, idle_expires_at=now + timedelta(hours=1))

    in_threads(
        lambda: levels.raise_level(session.id, proven, Method.PASSWORD, None),
        *[lambda: stores.sessions.rotate(rotation)] * 4,
        *[lambda: stores.sessions.rotate_free([rotation])] * 4,
    )

    standing = stores.sessions.standing(session.id)
    assert standing is not None
    assert standing.session.counter == 1
    assert standing.session.level == level_of(Method.PASSWORD, at=now)
