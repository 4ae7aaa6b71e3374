"""The log: numbered in the order in which entries become visible, whoever commits when."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.clients import Client, ClientId, secret_digest
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Horizon, Sight
from authsvc.domain.sessions import Ending
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id, timed_id
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.clients import SqlClientStore
from authsvc.store.revocations import LOG_LOCK, SqlRevocationLog
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import COPIES_LIVE, Stores
from tests.processes import wait_until
from tests.timings import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authsvc.domain.revocations import Revocation

WRITERS = 8
TRANSACTIONS = 80


class Undone(Exception):
    """Rolls a transaction back."""


def append(stores: Stores, count: int = 1) -> list[int]:
    """Append *count* entries in one transaction; their numbers."""
    drafts = [stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "test") for _ in range(count)]
    with stores.database.transaction() as connection:
        return [entry.seq for entry in stores.log.append(connection, drafts)]


def read(stores: Stores, *, after: int, upto: int) -> list[Revocation]:
    """All pages in one."""
    return [entry for page in stores.log.pages([(after + 1, upto)]) for entry in page]


@contextmanager
def uncommitted(stores: Stores) -> Iterator[int]:
    """An entry that has its number and is committed at the end."""
    draft = stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "late")
    with stores.database.transaction() as connection:
        yield stores.log.append(connection, [draft])[0].seq


def test_an_empty_log_has_no_head(stores):
    """And nothing to read."""
    assert stores.log.head() == 0
    assert read(stores, after=0, upto=100) == []


def test_entries_are_read_back_as_they_were_appended(stores):
    """Every field, in the order given, numbered one after the other."""
    alice = stores.register()
    drafts = [
        stores.log.draft(alice, "cut off", epoch=7),
        stores.log.draft_end(alice.id, SessionId(new_id()), "logout", token_id=TokenId(new_id())),
        stores.log.draft(alice, "changed"),
    ]
    head = stores.log.head()

    with stores.database.transaction() as connection:
        entries = stores.log.append(connection, drafts)

    assert entries == tuple(replace(draft, seq=head + 1 + place) for place, draft in enumerate(drafts))
    assert read(stores, after=head, upto=stores.log.head()) == list(entries)
    assert {entry.expires_at - entry.at for entry in entries} == {timedelta(seconds=3665)}


def test_nothing_appended_is_nothing_done(stores):
    """No lock, no row, no number."""
    with stores.database.transaction() as connection:
        assert stores.log.append(connection, []) == ()
    assert stores.log.head() == 0


def test_what_is_rolled_back_was_never_there(stores):
    """Its number may stay unused; the next entry has a higher one."""
    with pytest.raises(Undone), uncommitted(stores) as lost:
        raise Undone

    (next_,) = append(stores)

    assert next_ >= lost
    assert [entry.seq for entry in read(stores, after=0, upto=stores.log.head())] == [next_]


def test_a_long_log_is_read_in_pages(stores):
    """Each of them bounded, none empty, together everything from ``after`` to ``upto`` and no more."""
    numbers = append(stores, 1203)

    pages = list(stores.log.pages([(numbers[1], numbers[-2])]))

    assert [len(page) for page in pages] == [500, 500, 201]
    assert [entry.seq for page in pages for entry in page] == numbers[1:-1]


def test_what_can_no_longer_matter_is_not_replayed(stores):
    """After the longest token's life, leeway and margin; the head stays where it is."""
    old = append(stores, 3)
    stores.clock.tick(3664)
    young = append(stores, 2)

    stores.clock.tick(0.999)
    assert [entry.seq for entry in read(stores, after=0, upto=99)] == old + young
    stores.clock.tick(0.001)
    assert [entry.seq for entry in read(stores, after=0, upto=99)] == young
    stores.clock.tick(10_000)
    assert read(stores, after=0, upto=99) == []
    assert stores.log.head() == young[-1]


def write_at_random(stores: Stores, seed: int, committed: list[int]) -> None:
    """Append with pauses between number and commit; some transactions are rolled back."""
    rng = random.Random(seed)
    for _ in range(TRANSACTIONS):
        with suppress(Undone):
            committed += append_slowly(stores, rng)


def append_slowly(stores: Stores, rng: random.Random) -> list[int]:
    """A few entries, committed after a while; raises Undone where they are rolled back."""
    user, sessions = UserId(new_id()), [SessionId(new_id()) for _ in range(rng.randint(1, 6))]
    drafts = [stores.log.draft_end(user, session, "test") for session in sessions]
    with stores.database.transaction() as connection:
        entries = stores.log.append(connection, drafts)
        # Transactions commit out of order because each stays open for a random time.
        time.sleep(rng.random() * 0.006)
        if rng.random() < 0.1:
            raise Undone
    return [entry.seq for entry in entries]


def follow(stores: Stores, is_over: threading.Event) -> tuple[list[int], int]:
    """Read on as far as nothing is still to come, until the writers are done; what was seen, the steps."""
    seen: list[int] = []
    horizon, cursor, steps = Horizon(), 0, 0
    while True:
        is_last = is_over.is_set()
        horizon.look(stores.log.look(settled=cursor), time.monotonic())
        if (settled := horizon.settled) is None or (settled.seq == cursor and not is_last):
            continue
        seen += [entry.seq for entry in read(stores, after=cursor, upto=settled.seq)]
        assert settled.seq >= cursor
        cursor, steps = settled.seq, steps + 1
        if is_last:
            return seen, steps


def test_a_reader_that_follows_what_is_settled_misses_nothing(postgres_stores):
    """Transactions commit out of order; no entry ever appears behind what was passed."""
    stores, is_over = postgres_stores, threading.Event()
    committed: list[int] = []
    with ThreadPoolExecutor(WRITERS + 2) as threads:
        readers = [threads.submit(follow, stores, is_over) for _ in range(2)]
        writers = [threads.submit(write_at_random, stores, seed, committed) for seed in range(WRITERS)]
        for writer in writers:
            writer.result()
        is_over.set()
        results = [reader.result() for reader in readers]

    assert len(committed) > 1500
    for seen, steps in results:
        assert seen == sorted(committed)
        assert steps > 20


def test_a_look_names_who_may_still_commit_a_lower_number(postgres_stores):
    """And waits for nobody: the higher one is visible, the lower one's writer is known."""
    stores = postgres_stores
    append(stores, 2)

    with uncommitted(stores) as late:
        (higher,) = append(stores)
        sight = stores.log.look()
        assert (sight.head.seq, len(sight.writers)) == (higher, 1)
        assert late < higher
        with uncommitted(stores):
            more = stores.log.look()
            assert sight.writers < more.writers
            assert len(more.writers) == 2

    assert stores.log.look().writers == frozenset()


def test_a_waiting_writer_and_another_lock_are_nobody(postgres_stores):
    """A number is given only to who holds the lock; exclusively it is held by who gives none."""
    stores, holds, goes_on = postgres_stores, threading.Event(), threading.Event()

    def keep_out(lock: int) -> None:
        with stores.database.transaction() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({lock + 1})")
            holds.set()
            goes_on.wait(LONG_S)

    with ThreadPoolExecutor(2) as threads:
        keeping = threads.submit(keep_out, LOG_LOCK)
        assert holds.wait(LONG_S)
        waiting = threads.submit(append, stores)
        wait_until(lambda: waits_for_lock(stores), what="a writer that waits")
        writers = stores.log.look().writers
        goes_on.set()
        keeping.result()
        waiting.result()

    assert writers == frozenset()


def waits_for_lock(stores: Stores) -> bool:
    """True if somebody waits for the lock of the log."""
    with stores.database.read() as connection:
        waiting = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ).scalar_one()
    return bool(waiting)


def test_where_nothing_was_added_nobody_is_asked_for(postgres_stores):
    """One question; as soon as there is a higher number, lower ones may be on their way."""
    stores = postgres_stores
    append(stores, 2)
    asked: list[str] = []
    event.listen(stores.database.engine, "before_cursor_execute", lambda *sent: asked.append(sent[2]))

    with uncommitted(stores):
        asked.clear()
        assert stores.log.look(settled=2) == Sight(stores.log.look().head, found=(stores.log.look().head,))
        asked.clear()
        stores.log.look(settled=2)
        assert len(asked) == 1
        append(stores)
        assert len(stores.log.look(settled=2).writers) == 1


def test_writers_do_not_wait_for_each_other(postgres_stores):
    """Two transactions hold their numbers at once, and commit in the other order."""
    stores = postgres_stores

    with uncommitted(stores) as first:
        (second,) = append(stores)

    assert second == first + 1
    assert stores.log.head() == second


class TestCuttingEverybodyOff:
    """After a restore the epochs of SQL must not stay behind those that Redis keeps."""

    def test_every_epoch_rises_whatever_the_number_of_users(self, stores):
        """Steps of two users at a time miss nobody and raise nobody twice."""
        log = SqlRevocationLog(stores.database, copies_live=COPIES_LIVE, clock=stores.clock, page=2)
        users = [stores.register(f"user{number}") for number in range(5)]

        log.cut_everybody_off(by=3)

        after = [stores.users.get(user.id) for user in users]
        assert [user.epoch for user in after] == [user.epoch + 3 for user in users]
        logged = read(stores, after=0, upto=stores.log.head())
        assert {(entry.user_id, entry.epoch) for entry in logged if entry.reason == "restored"} == {
            (user.id, user.epoch) for user in after
        }
        assert all(new.version > old.version for new, old in zip(after, users, strict=True))

    def test_the_tokens_of_clients_are_cut_off_like_those_of_users(self, stores):
        """A secret that was dropped is back with the old data, and so would be its tokens."""
        registry, ids = SqlClientStore(stores.database, stores.log), [new_id() for _ in range(3)]
        for one in ids:
            client = Client(id=ClientId(one), name="x", may=(), created_at=stores.clock())
            registry.add(client, secret_digest("x"))

        stores.log.cut_everybody_off(by=3)

        cut = {(one, 3) for one in ids}
        assert {(str(client.id), client.epoch) for client in registry.every()} == cut
        logged = read(stores, after=0, upto=stores.log.head())
        assert {(str(one.user_id), one.epoch) for one in logged if one.reason == "restored"} == cut


class TestSkipping:
    """The log goes on behind what others have seen of it, after the database was restored."""

    def test_numbers_go_on_behind_the_one_skipped_to(self, stores):
        """It is the head at once, and no number up to it is ever given again."""
        append(stores, 2)

        stores.log.skip_to(100)

        assert stores.log.head() == 100
        assert append(stores, 2) == [101, 102]
        assert [entry.seq for entry in read(stores, after=0, upto=102)] == [1, 2, 101, 102]

    @pytest.mark.parametrize("seq", [1, 4, 5])
    def test_a_log_that_got_there_by_itself_is_left_alone(self, stores, seq):
        """Else numbers that were given already would be given again."""
        append(stores, 5)

        stores.log.skip_to(seq)

        assert stores.log.head() == 5
        assert append(stores) == [6]

    def test_a_number_that_was_rolled_back_is_skipped_to(self, stores):
        """The gap is filled, and the numbers behind it stay what they are."""
        append(stores, 2)
        with stores.database.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM revocations WHERE seq = 1")

        stores.log.skip_to(1)

        assert append(stores) == [3]

    def test_of_many_that_skip_at_once_one_does_it(self, stores):
        """All find the log where they wanted it."""
        append(stores, 2)

        outcomes = in_threads(*[lambda: stores.log.skip_to(50)] * 8)

        assert outcomes == [None] * 8
        assert append(stores) == [51]

    def test_writers_and_skippers_at_once_never_share_a_number(self, stores):
        """Nobody fails on a number that was given twice."""
        outcomes = in_threads(
            *[lambda: [append(stores, 3) for _ in range(10)]] * 4,
            *(lambda seq=seq: stores.log.skip_to(seq) for seq in (5, 20, 60, 90)),
        )

        numbers = [seq for outcome in outcomes[:4] for batch in outcome for seq in batch]
        assert outcomes[4:] == [None] * 4
        assert len(set(numbers)) == 120
        assert sorted(numbers) == [entry.seq for entry in read(stores, after=0, upto=999)]

    def test_no_number_below_is_in_flight_afterwards(self, brief_locks, postgres_stores):
        """A writer with a lower number is waited for: who replays up to the new head must find it."""
        stores = postgres_stores
        append(stores, 2)

        with uncommitted(stores) as late:
            with pytest.raises(StoreUnavailable):
                stores.log.skip_to(100)
            assert late == 3

        assert stores.log.head() == 3
        stores.log.skip_to(100)
        assert append(stores) == [101]


def test_who_stands_still_with_the_lock_holds_no_writer_up_for_long(brief_locks, postgres_stores):
    """A process stopped while it moves the numbers on: the server ends its transaction."""
    holds_lock, goes_on = threading.Event(), threading.Event()

    def stand_still(_connection, _cursor, statement, *_rest) -> None:
        if "pg_advisory_xact_lock(" in statement and not holds_lock.is_set():
            holds_lock.set()
            goes_on.wait(2 * LONG_S)

    event.listen(postgres_stores.database.engine, "after_cursor_execute", stand_still)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(postgres_stores.log.skip_to, 50)
        assert holds_lock.wait(LONG_S)
        try:
            appended = append(postgres_stores)
        finally:
            goes_on.set()

        with pytest.raises(StoreUnavailable):
            stopped.result()
    assert postgres_stores.log.head() == appended[0]


class TestNumbersThatGoBack:
    """A sequence behind its own log: no number is given that readers have passed."""

    SET_BACK = (
        "ALTER SEQUENCE revocations_seq_seq RESTART",
        "SELECT setval('revocations_seq_seq', 3)",
        "SELECT setval('revocations_seq_seq', 4)",
    )

    @pytest.mark.parametrize("statement", SET_BACK)
    @pytest.mark.parametrize("gap", [0, 5])
    def test_a_number_below_the_head_is_never_given(self, postgres_stores, statement, gap):
        """Neither one that is taken nor one that is free, since it was rolled back or pruned."""
        stores = postgres_stores
        numbers = append(stores, 9)
        with stores.database.transaction() as connection:
            connection.exec_driver_sql(f"DELETE FROM revocations WHERE seq IN (1, {gap})")
            connection.exec_driver_sql(statement)

        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                append(stores)

        assert stores.log.head() == numbers[-1]
        assert {entry.seq for entry in read(stores, after=0, upto=99)} == set(numbers) - {1, gap}

    @pytest.mark.parametrize("statement", SET_BACK)
    def test_a_session_does_not_end_without_a_number_above_the_head(self, postgres_stores, statement):
        """Nor is its event stored."""
        stores = postgres_stores
        session = stores.log_in(stores.register())
        numbers = append(stores, 9)
        with stores.database.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM revocations WHERE seq = 5")
            connection.exec_driver_sql(statement)
        told = Entry(id=timed_id(session.created_at), at=session.created_at, action="session.ended")

        ending = Ending(session_id=session.id, reason="logout", event=told)

        with pytest.raises(StoreUnavailable):
            stores.sessions.end(ending)
        assert stores.sessions.end_free([ending]) == [None]

        assert stores.alive(stores.users.get(session.user_id)) == {session.id}
        assert SqlAuditTrail(stores.database).page(AuditFilter()) == []
        assert stores.log.head() == numbers[-1]

    @pytest.mark.parametrize("statement", SET_BACK)
    def test_it_is_seen_and_set_right(self, postgres_stores, statement):
        """From then on numbers are above the head."""
        stores = postgres_stores
        numbers = append(stores, 9)
        assert not stores.log.look().is_behind
        with stores.database.transaction() as connection:
            connection.exec_driver_sql(statement)

        assert stores.log.look().is_behind
        stores.log.catch_up()

        assert not stores.log.look().is_behind
        assert append(stores) == [numbers[-1] + 1]

    def test_a_sequence_that_is_ahead_stays_there(self, postgres_stores):
        """Numbers that were rolled back are not given again."""
        append(postgres_stores, 2)
        with pytest.raises(Undone), uncommitted(postgres_stores):
            raise Undone
        assert not postgres_stores.log.look().is_behind

        postgres_stores.log.catch_up()

        assert append(postgres_stores) == [4]

    def test_many_set_it_right_at_once(self, postgres_stores):
        """No number is given twice."""
        append(postgres_stores, 9)
        with postgres_stores.database.transaction() as connection:
            connection.exec_driver_sql(self.SET_BACK[0])

        in_threads(*[postgres_stores.log.catch_up] * 4)
        outcomes = in_threads(*[lambda: append(postgres_stores, 2)] * 4, *[postgres_stores.log.catch_up] * 4)

        numbers = [seq for outcome in outcomes[:4] for seq in outcome]
        assert sorted(numbers) == list(range(10, 18))
