"""The feed's rules over a log in memory: one look for all, honest times, cursors that belong to one log."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.errors import Invalid, StoreUnavailable
from authsvc.domain.feed import Cursor, FeedAnswer, FeedQuery, FeedTimings, LogWatcher, RevocationFeed
from authsvc.domain.revocations import Position, Revocation, Sight
from authsvc.domain.values.identifiers import SessionId, UserId
from tests.unit.domain.samples import ALICE_ID, NOW, SESSION_ID


def entry(seq: int, *, session_id: SessionId | None = SESSION_ID, user_id: UserId = ALICE_ID) -> Revocation:
    """An entry of the log; without a session it is about a login."""
    return Revocation(seq=seq, at=NOW, reason="t", expires_at=NOW, user_id=user_id, session_id=session_id)


@dataclass
class MemoryLog:
    """A log that counts how often it is looked at, and can be busy or away."""

    entries: list[Revocation] = field(default_factory=list)
    looks: int = 0
    questions: int = 0
    is_away: bool = False
    is_busy: bool = False

    def look(self, *, settled: int | None = None) -> Sight:
        self.looks += 1
        if self.is_away:
            raise StoreUnavailable("sql")
        newest = max((entry.seq for entry in self.entries), default=0)
        if newest == settled:
            return Sight(Position(newest))
        self.questions += 1
        return Sight(Position(newest), frozenset({"a writer"} if self.is_busy else ()))

    def entry(self, seq: int) -> Revocation | None:
        return next((entry for entry in self.entries if entry.seq == seq), None)

    def fatal(self, *, after: int, upto: int, limit: int) -> list[Revocation]:
        found = [entry for entry in self.entries if after < entry.seq <= upto and entry.session_id]
        return found[:limit]


class Hand:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def log() -> MemoryLog:
    """A log of two entries."""
    return MemoryLog([entry(1), entry(2)])


@pytest.fixture
def clock() -> Hand:
    """A clock that stands still."""
    return Hand()


@pytest.fixture
def feed(log, clock) -> RevocationFeed:
    """A feed in which nobody finds a place, so that nobody waits."""
    return RevocationFeed(log, LogWatcher(log, clock, FeedTimings(look_every_s=0.15)), clock, places=1)


def read(feed: RevocationFeed, after: Cursor | None = None, *, limit: int = 10) -> FeedAnswer:
    """What there is, at once."""
    text = after.text() if after else None
    return feed.read(FeedQuery(after=text, wait_s=0, limit=limit), is_over=lambda: False)


@given(st.integers(0, 10**15), st.text("0123456789abcdef", min_size=16, max_size=16) | st.just(""))
def test_a_cursor_survives_its_way_to_a_client(seq, trace):
    """Its text is the same again, and needs no quoting in a URL."""
    cursor = Cursor(seq, trace)

    assert Cursor.parse(cursor.text()) == cursor
    assert cursor.text().replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
def test_what_is_no_cursor_is_refused_in_words(text):
    """Whatever a client makes up: a refusal, never a crash."""
    feed = RevocationFeed(MemoryLog(), LogWatcher(MemoryLog(), Hand()), Hand(), places=1)
    try:
        read_text = Cursor.parse(text).text()
    except ValueError:
        with pytest.raises(Invalid):
            feed.read(FeedQuery(after=text, wait_s=0, limit=1), is_over=lambda: False)
    else:
        assert read_text == text


def test_an_answer_says_when_sql_was_looked_at(feed, log, clock):
    """Before the request arrived, if the look was another's: nothing is known of the time since then."""
    first = read(feed)
    clock.now_s += 0.1
    log.entries.append(entry(3))

    shared = read(feed, first.cursor)
    clock.now_s += 0.1
    own = read(feed, shared.cursor)

    assert (first.waited_s, own.waited_s) == (0, 0)
    assert shared.waited_s == pytest.approx(-0.1)
    assert [[item.seq for item in answer.entries] for answer in (first, shared, own)] == [[1, 2], [], [3]]


def test_who_writes_is_asked_only_for_a_new_number(feed, log, clock):
    """Once, then only after the cheap look has seen something."""
    for _ in range(5):
        read(feed)
        clock.now_s += 1
    log.entries.append(entry(3, session_id=None))
    read(feed)

    assert log.questions == 2


def test_a_busy_log_leaves_the_view_as_it_was(feed, log, clock):
    """Its number stays unknown and so does what came with it; the time of the answer stays behind, too."""
    cursor = read(feed).cursor
    log.entries.append(entry(3))
    log.is_busy = True
    clock.now_s += 1

    busy = read(feed, cursor)
    clock.now_s += 1
    log.is_busy = False
    done = read(feed, cursor)

    assert (list(busy.entries), busy.cursor) == ([], cursor)
    assert busy.waited_s == pytest.approx(-1)
    assert ([item.seq for item in done.entries], done.waited_s) == ([3], 0)


def test_a_log_that_was_never_seen_has_no_answer(log, clock):
    """Neither busy nor away: there is nothing to say yet."""
    log.is_busy = True
    feed = RevocationFeed(log, LogWatcher(log, clock), clock, places=1)

    with pytest.raises(StoreUnavailable):
        read(feed)


def test_a_failed_look_is_not_repeated_by_everybody(feed, log, clock):
    """One in the time of a look: an outage is not made worse by those who wait."""
    cursor = read(feed).cursor
    clock.now_s += 1
    log.looks, log.is_away = 0, True

    with pytest.raises(StoreUnavailable):
        read(feed, cursor)
    others = [read(feed, cursor) for _ in range(5)]

    assert log.looks == 1
    assert {answer.waited_s for answer in others} == {-1}


def test_many_who_wait_share_their_looks(log):
    """However many they are, SQL is looked at as often as for one."""
    waits = 6
    clock = Hand()
    watcher = LogWatcher(log, clock, FeedTimings(look_every_s=0.01))
    feed = RevocationFeed(log, watcher, clock, places=waits)
    over = threading.Event()
    query = FeedQuery(after=read(feed).cursor.text(), wait_s=5, limit=10)
    log.looks = 0
    with ThreadPoolExecutor(waits) as threads:
        waiting = [threads.submit(feed.read, query, is_over=over.is_set) for _ in range(waits)]
        for _ in range(20):
            over.wait(0.02)
            clock.now_s += 0.01
        over.set()

    assert all(answer.result().entries == () for answer in waiting)
    # One for each time that the clock has moved on, and one at most for a reading of it in between.
    assert log.looks <= 21
