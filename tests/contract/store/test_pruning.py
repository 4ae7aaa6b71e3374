"""Pruning: what can no longer matter goes, in bounded steps; nothing else does, whoever is at work."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from authsvc.domain.accounts.factors import Factor, FactorId, TotpSecret
from authsvc.domain.sessions import Ending, Rotation
from authsvc.domain.values.encryption import Encrypted
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.store.accounts.factors import add_factor, factors_of
from authsvc.store.pruning import MARGIN, SqlPruning
from authsvc.store.tables import revocations, sessions, spent
from tests.contract.cache.clients import in_threads

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Table

    from tests.contract.store.stores import Stores

WRITERS, LOGINS, DEAD = 4, 8, 20


def count(stores: Stores, table: Table) -> int:
    """How many rows there are."""
    with stores.database.read() as connection:
        found: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
        return found


def append(stores: Stores, number: int) -> None:
    """Add *number* entries to the log, in one transaction."""
    drafts = [stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "test") for _ in range(number)]
    with stores.database.transaction() as connection:
        stores.log.append(connection, drafts)


def cutoff(stores: Stores) -> datetime:
    """What the command prunes by."""
    return stores.clock() - MARGIN


def test_sessions_go_a_margin_after_their_end_and_not_before(stores):
    """To the moment; whether somebody ended them by hand makes no difference, nor who has others."""
    alice = stores.register()
    old, ended = stores.log_in(alice), stores.log_in(alice)
    stores.sessions.end(Ending(session_id=ended.id, reason="logout"))
    stores.clock.tick(1)
    younger = stores.log_in(alice)
    pruning = SqlPruning(stores.database)

    stores.clock.now = old.idle_expires_at + MARGIN
    assert sum(pruning.sessions(before=cutoff(stores))) == 0
    stores.clock.tick(1)
    assert sum(pruning.sessions(before=cutoff(stores))) == 2

    assert stores.sessions.standing(old.id) is None
    assert stores.sessions.standing(ended.id) is None
    assert stores.sessions.standing(younger.id) is not None
    assert stores.users.get(alice.id)


def test_what_is_left_of_second_factors_goes_a_margin_after_its_end(stores):
    """Marks of what was used once, and enrolments that nobody confirmed; what is in force stays."""
    alice = stores.register()
    now = stores.clock()

    def factor(confirmed_at: datetime | None) -> Factor:
        secret = TotpSecret(secret=Encrypted("key", b"text"))
        ident = FactorId(new_id())
        return Factor(
            id=ident, user_id=alice.id, name=None, created_at=now, confirmed_at=confirmed_at, totp=secret
        )

    with stores.database.transaction() as connection:
        connection.execute(insert(spent).values(id=new_id(), expires_at=now))
        for confirmed_at in (None, now):
            add_factor(connection, factor(confirmed_at))
    pruning = SqlPruning(stores.database)

    stores.clock.tick(MARGIN.total_seconds())
    early = [sum(pruning.spent(before=cutoff(stores))), sum(pruning.enrolments(before=cutoff(stores)))]
    stores.clock.tick(1)
    late = [sum(pruning.spent(before=cutoff(stores))), sum(pruning.enrolments(before=cutoff(stores)))]

    assert (early, late) == ([0, 0], [1, 1])
    with stores.database.read() as connection:
        (left,) = factors_of(connection, alice.id).factors
    assert left.confirmed_at == now


def test_no_session_that_lives_is_touched(stores):
    """One that was refreshed yesterday is kept, however old it is; it can still be refreshed."""
    alice = stores.register()
    living = stores.log_in(alice)
    stores.log_in(alice, idle_expires_at=stores.clock() + timedelta(hours=1))
    now = stores.clock.tick(6.9 * 86_400)
    stores.sessions.rotate(Rotation(session=living, now=now, idle_expires_at=now + timedelta(days=7)))
    stores.clock.tick(6.9 * 86_400)

    assert sum(SqlPruning(stores.database).sessions(before=cutoff(stores))) == 1

    assert stores.alive(alice) == {living.id}


def test_entries_go_a_margin_after_their_last_token_and_not_before(stores):
    """What a replay would still carry over stays, and so does all of it for a day more."""
    append(stores, 3)
    stores.clock.tick(10)
    append(stores, 2)
    pruning = SqlPruning(stores.database)

    stores.clock.tick(3665 - 10 + MARGIN.total_seconds())
    assert sum(pruning.revocations(before=cutoff(stores))) == 0
    stores.clock.tick(1)
    assert sum(pruning.revocations(before=cutoff(stores))) == 3

    assert count(stores, revocations) == 2


def test_the_newest_entry_stays_for_ever_and_the_numbers_go_on(stores):
    """However old the whole log is: without its head SQL would look restored."""
    append(stores, 5)
    head = stores.log.head()
    stores.clock.tick(10 * 365 * 86_400)
    pruning = SqlPruning(stores.database)

    assert sum(pruning.revocations(before=cutoff(stores))) == 4
    assert sum(pruning.revocations(before=cutoff(stores))) == 0

    assert stores.log.head() == head
    append(stores, 1)
    assert stores.log.head() == head + 1


def test_redis_stays_proven_over_a_pruning_and_is_refilled_after_it(quick_world):
    """To a comparison nothing has happened; an emptied Redis gets what still matters, however little."""
    world, stores = quick_world, quick_world.stores
    world.fill_log(5)
    stores.clock.tick(3665 + MARGIN.total_seconds() + 1)
    young = world.fill_log(2)
    node, _ = world.start()
    assert node.reconciler.tick()

    assert sum(SqlPruning(stores.database).revocations(before=cutoff(stores))) == 5

    assert node.reconciler.tick()
    assert node.is_proven()
    world.redis.flushall()
    assert node.reconciler.tick()
    assert world.tombstones() == young
    stores.clock.tick(365 * 86_400)
    assert sum(SqlPruning(stores.database).revocations(before=cutoff(stores))) == 1
    world.redis.flushall()
    assert node.reconciler.tick()
    assert node.is_proven()


def test_steps_are_bounded_and_end(stores):
    """No transaction looks at more rows than a step has; together they see every row."""
    append(stores, 25)
    alice = stores.register()
    for _ in range(7):
        stores.log_in(alice)
    stores.clock.tick(100 * 86_400)
    pruning = SqlPruning(stores.database, step=3)

    of_log = list(pruning.revocations(before=cutoff(stores)))
    of_sessions = list(pruning.sessions(before=cutoff(stores)))

    assert max(of_log + of_sessions) == 3
    assert (sum(of_sessions), count(stores, sessions)) == (7, 0)
    assert count(stores, revocations) == 1


def test_a_locked_row_is_left_to_the_next_run(postgres_stores):
    """Whoever has a session in hand is not waited for: two that wait for each other would both fail."""
    stores = postgres_stores
    alice = stores.register()
    busy, idle = stores.log_in(alice), stores.log_in(alice)
    stores.clock.tick(100 * 86_400)
    pruning = SqlPruning(stores.database)

    with stores.database.transaction() as connection:
        connection.execute(select(sessions).where(sessions.c.id == busy.id).with_for_update())
        assert sum(pruning.sessions(before=cutoff(stores))) == 1

    assert stores.sessions.standing(idle.id) is None
    assert sum(pruning.sessions(before=cutoff(stores))) == 1


def test_pruning_while_others_log_in_and_out_loses_nothing(postgres_stores):
    """Exact counts: every dead row goes once, every living session and young entry stays."""
    stores = postgres_stores
    dead = stores.register("dead")
    for _ in range(DEAD):
        stores.log_in(dead, max_sessions=100)
    stores.clock.tick(100 * 86_400)
    dead_entries = stores.log.head()
    people = [stores.register(f"user{number}") for number in range(WRITERS)]
    deleted: list[int] = []

    def live(number: int) -> None:
        for _ in range(LOGINS):
            ended = stores.log_in(people[number], max_sessions=100)
            stores.log_in(people[number], max_sessions=100)
            stores.sessions.end(Ending(session_id=ended.id, reason="logout"))

    def prune() -> None:
        deleted.append(prune_all(stores))

    outcomes = in_threads(*[partial(live, number) for number in range(WRITERS)], prune, prune)
    # What one of them left to the other, which had it in hand, is gone by now.
    deleted.append(prune_all(stores))

    assert outcomes == [None] * (WRITERS + 2)
    assert [len(stores.alive(person)) for person in people] == [LOGINS] * WRITERS
    assert sum(deleted) == DEAD + dead_entries
    assert count(stores, sessions) == WRITERS * LOGINS * 2


def prune_all(stores: Stores) -> int:
    """What the command does, in small steps; how many rows went."""
    pruning = SqlPruning(stores.database, step=5)
    before = cutoff(stores)
    return sum(pruning.sessions(before=before)) + sum(pruning.revocations(before=before))
