"""The feed over a real log: nothing is passed over, whoever commits when."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace

from authsvc.domain.feed import FeedQuery, FeedTimings, LogWatcher, RevocationFeed
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id
from authsvc.store.feed import SqlFeedLog
from tests.contract.store.stores import Stores

#: Every request reads SQL anew.
UNSHARED = FeedTimings(look_every_s=0)
FAST = FeedTimings(look_every_s=0.001)

WRITERS = 6
TRANSACTIONS = 40


class Undone(Exception):
    """Rolls a transaction back."""


def feed_over(stores: Stores, timings: FeedTimings = FAST) -> RevocationFeed:
    """A feed over the log of *stores*."""
    log = SqlFeedLog(stores.database, stores.log, stores.clock)
    return RevocationFeed(log, LogWatcher(log, time.monotonic, timings), time.monotonic, places=1)


def write_at_random(stores: Stores, seed: int, committed: list[int]) -> None:
    """Ends of sessions between logins, with pauses before the commit; some are rolled back."""
    rng = random.Random(seed)
    user = stores.register(f"user{seed}")
    for _ in range(TRANSACTIONS):
        drafts = [stores.log.draft_end(user.id, SessionId(new_id()), "t"), stores.log.draft(user, "login")]
        with suppress(Undone), stores.database.transaction() as connection:
            entries = stores.log.append(connection, drafts)
            # Transactions commit out of order because each stays open for a random time.
            time.sleep(rng.random() * 0.005)
            if rng.random() < 0.1:
                raise Undone
            committed.append(entries[0].seq)


def follow(feed: RevocationFeed, is_over: threading.Event) -> list[int]:
    """What a reader hears from page to page until the writers are done, and once more."""
    seen: list[int] = []
    cursor = None
    while True:
        is_last = is_over.is_set()
        answer = feed.read(FeedQuery(after=cursor, wait_s=0.05, limit=7), is_over=lambda: False)
        assert not (answer.is_reset and cursor)
        seen += [entry.seq for entry in answer.entries]
        cursor = answer.cursor.text()
        if is_last and answer.waited_s >= 0 and not answer.has_more and not answer.entries:
            return seen


def test_a_reader_hears_each_end_once_and_in_order(postgres_stores):
    """While numbers are committed out of order, and rolled back; of logins it hears nothing."""
    committed: list[int] = []
    is_over = threading.Event()
    feed = feed_over(postgres_stores)
    # The first look of a process says nothing yet while others write.
    feed.read(FeedQuery(after=None, wait_s=0, limit=1), is_over=lambda: False)
    with ThreadPoolExecutor(WRITERS + 1) as threads:
        reader = threads.submit(follow, feed, is_over)
        writers = [
            threads.submit(write_at_random, postgres_stores, seed, committed) for seed in range(WRITERS)
        ]
        wait(writers)
        is_over.set()

        assert reader.result() == sorted(committed)
        assert not any(writer.exception() for writer in writers)


def test_a_reader_never_gets_ahead_of_a_late_commit(postgres_stores):
    """Of two numbers the higher is committed first: it is not told before the lower one can be."""
    feed = feed_over(postgres_stores, UNSHARED)
    cursor = feed.read(FeedQuery(after=None, wait_s=0, limit=9), is_over=lambda: False).cursor
    drafts = [postgres_stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "t") for _ in range(2)]

    def told() -> list[int]:
        query = FeedQuery(after=cursor.text(), wait_s=0, limit=9)
        return [entry.seq for entry in feed.read(query, is_over=lambda: False).entries]

    with postgres_stores.database.transaction() as connection:
        (low,) = postgres_stores.log.append(connection, drafts[:1])
        with postgres_stores.database.transaction() as other:
            (high,) = postgres_stores.log.append(other, drafts[1:])
        early = told()

    assert low.seq < high.seq
    assert early == []
    assert told() == [low.seq, high.seq]


def test_a_late_commit_is_waited_for(postgres_stores):
    """A lower number that is not yet committed: its writer is named until then, whoever else commits."""
    log = SqlFeedLog(postgres_stores.database, postgres_stores.log, postgres_stores.clock)
    draft = postgres_stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "late")

    with postgres_stores.database.transaction() as connection:
        (late,) = postgres_stores.log.append(connection, [draft])
        before, again = log.look(), log.look()
        assert before.head.seq == 0
        assert len(before.writers) == 1
        assert again == before

    after = log.look()
    assert (after.head.seq, after.writers) == (late.seq, frozenset())


def test_whatever_ends_tokens_is_fatal(stores):
    """A session, a token, a cut-off; no change of the users themselves.  In order, no more than asked for."""
    user = stores.register()
    start = stores.log.head()
    plain = stores.log.draft(user, "t")
    drafts = [
        plain,
        stores.log.draft_end(user.id, SessionId(new_id()), "t"),
        replace(plain, token_id=TokenId(new_id())),
        plain,
        stores.log.draft(user, "t", epoch=5),
    ]
    with stores.database.transaction() as connection:
        entries = stores.log.append(connection, drafts)
    log = SqlFeedLog(stores.database, stores.log, stores.clock)
    upto = entries[-1].seq

    assert log.fatal(after=start, upto=upto, limit=9) == [entries[1], entries[2], entries[4]]
    assert log.fatal(after=start, upto=upto, limit=2) == [entries[1], entries[2]]
    assert log.fatal(after=entries[1].seq, upto=upto - 1, limit=9) == [entries[2]]
    assert log.entry(entries[0].seq) == entries[0]
    assert log.entry(upto + 1) is None
    stores.clock.tick(3665)
    assert log.fatal(after=start, upto=upto, limit=9) == []
