"""What an Aside may be told besides: nothing there, display, tags, many at once, writing, packing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from authsvc.cache import (
    ANY,
    MISSING,
    Aside,
    CacheUnavailable,
    Display,
    Entry,
    KeySpace,
    Proof,
    Refresher,
    Shape,
    Tagging,
    Tags,
    pattern_drop,
)

KEYS = KeySpace("lib")
SPACE = KEYS.space("book", ttl_s=100)
KEY = "lib:v1:book:7"
LEASE = "lib:v1:lease:{lib:v1:book:7}"


@dataclass(frozen=True)
class Book:
    """A row: its id, its title, its version."""

    id: str
    title: str
    version: int = 1


SHAPE = Shape(
    schema=1,
    dump=lambda book: Entry({"id": book.id, "title": book.title}, book.version),
    load=lambda entry: Book(str(entry.fields["id"]), str(entry.fields["title"]), entry.row_version),
)
EMMA, ULYSSES = Book("7", "Emma"), Book("8", "Ulysses")


class Shelf:
    """The truth: counts what is asked of it, one by one or many at once."""

    def __init__(self, *books):
        self.books = {book.id: book for book in books}
        self.asked = []
        self.meanwhile = lambda: None
        self.error = None

    def __call__(self, ident):
        """Load a book, with something happening between the read and the return."""
        return self.many((ident,)).get(ident, MISSING)

    def many(self, idents):
        """Load those that there are."""
        self.asked.append(tuple(idents))
        if self.error:
            raise self.error
        found = {ident: self.books[ident] for ident in idents if ident in self.books}
        self.meanwhile()
        return found


class Later(deque[Callable[[], None]]):
    """A refresher whose work waits until the test wants it done."""

    def submit(self, _key, work):
        """Take *work*."""
        self.append(work)
        return True


@pytest.fixture
def shelf():
    """Return a shelf with two books."""
    return Shelf(EMMA, ULYSSES)


@pytest.fixture
def books(client, log):
    """Return the cache beside the shelf; no jitter."""
    return Aside(client=client, space=SPACE, shape=SHAPE, lease_ms=5000, rng=lambda: 0.5, events=log.events())


def outcomes(log):
    """Return what the cache told, without the client's own operations."""
    return [f"{subject.split()[0]} {outcome}" for subject, outcome in log if subject.endswith(" book")]


def count(log, name):
    """Return how many times the client did *name*."""
    return sum(subject == name for subject, _ in log)


# Nothing there


def test_what_is_not_there_is_remembered_for_its_own_time(books, client, log):
    """The loader is asked once; the entry lives as long as negative entries do."""
    shelf = Shelf()
    remembering = replace(books, negative_ttl_s=5)

    answers = [remembering.get_or_load("7", shelf) for _ in range(3)]

    assert answers == [MISSING] * 3
    assert shelf.asked == [("7",)]
    assert client.call("PTTL", KEY) == pytest.approx(5000, abs=500)
    assert remembering.get("7") is MISSING
    assert outcomes(log)[:4] == ["lookup miss", "fill filled", "lookup negative", "lookup negative"]


def test_a_created_row_replaces_its_negative_entry(books, shelf):
    """The invalidation that a creation sends is enough."""
    remembering = replace(books, negative_ttl_s=5)
    remembering.get_or_load("7", Shelf())

    remembering.drop(["7"])

    assert remembering.get_or_load("7", shelf) == EMMA


def test_a_creation_while_looking_wins_over_the_negative_entry(books, shelf):
    """What was not there before the commit is not remembered after it."""
    remembering = replace(books, negative_ttl_s=5)
    empty = Shelf()
    empty.meanwhile = lambda: remembering.drop(["7"])

    remembering.get_or_load("7", empty)

    assert remembering.get_or_load("7", shelf) == EMMA


def test_a_negative_entry_never_replaces_a_row(books, client):
    """Any row outranks it, also version 0."""
    row = b'{"id":"7","title":"Emma","_v":0,"_s":1}'
    empty = Shelf()
    empty.meanwhile = lambda: client.call("SET", KEY, row)

    replace(books, negative_ttl_s=5).get_or_load("7", empty)

    assert client.call("GET", KEY) == row


# Lives


def test_a_life_may_depend_on_the_record(books, client, shelf):
    """Here by the id; it could be by the status of a task."""
    lives = {"7": 10, "8": 1000}
    varied = replace(books, life_s=lambda ident, _book: lives[ident])

    varied.get_or_load_many(["7", "8"], shelf.many)

    left_ms = client.pipeline([("PTTL", SPACE.key(ident)) for ident in "78"]).values
    assert left_ms == [pytest.approx(10_000, abs=500), pytest.approx(1_000_000, abs=500)]


# Display


@pytest.fixture
def later():
    """Return a refresher that waits."""
    return Later()


@pytest.fixture
def shown(books, later):
    """Return the same cache, marked for display: 30 s stale, an hour when the shelf fails."""
    display = Display(refresher=later, stale_s=30, on_error_s=3600, errors=(ConnectionError,))
    return replace(books, display=display)


def age(client, seconds, *, beyond_s=3600):
    """Let the cached book be *seconds* past its life."""
    client.call("PEXPIRE", KEY, round((beyond_s - seconds) * 1000))


def test_a_record_stays_beyond_its_life(shown, client, shelf):
    """For as long as it may be of use."""
    shown.get_or_load("7", shelf)

    assert client.call("PTTL", KEY) == pytest.approx(3_700_000, abs=500)


def test_a_stale_record_is_shown_at_once_and_refreshed_behind(shown, client, shelf, later, log):
    """The reader waits for nothing; the next one finds the new row."""
    shown.get_or_load("7", shelf)
    age(client, 1)
    shelf.books["7"] = replace(EMMA, title="Emma, revised", version=2)

    stale = shown.get_or_load("7", shelf)
    loads_before = len(shelf.asked)
    later.popleft()()

    assert stale == EMMA
    assert loads_before == 1
    assert shown.get_or_load("7", shelf).title == "Emma, revised"
    assert outcomes(log)[2:] == ["lookup stale", "fill filled", "lookup hit"]


def test_an_invalidation_ends_what_is_shown_stale(shown, client, shelf):
    """Stale means old, never known to be wrong."""
    shown.get_or_load("7", shelf)
    age(client, 1)
    shelf.books["7"] = replace(EMMA, version=2)

    shown.drop(["7"])

    assert shown.get_or_load("7", shelf).version == 2


def test_an_invalidation_during_a_refresh_wins(shown, client, shelf, later):
    """What the background loaded before the commit is not stored after it."""
    shown.get_or_load("7", shelf)
    age(client, 1)
    shown.get_or_load("7", shelf)
    shelf.meanwhile = lambda: shown.drop(["7"])

    later.popleft()()

    assert shown.get("7") is MISSING


def test_a_failing_refresh_is_not_tried_again_at_once(shown, client, shelf, later):
    """Every reader of a stale record would else send a load after a dead database."""
    shown.get_or_load("7", shelf)
    age(client, 1)
    shelf.error = ConnectionError("gone")

    for _ in range(5):
        assert shown.get_or_load("7", shelf) == EMMA
    with pytest.raises(ConnectionError):
        later.popleft()()
    while later:
        later.popleft()()

    assert len(shelf.asked) == 2


def test_past_its_staleness_a_record_is_loaded(shown, client, shelf, log):
    """The reader waits for the load."""
    shown.get_or_load("7", shelf)
    age(client, 31)
    shelf.books["7"] = replace(EMMA, version=2)

    assert shown.get_or_load("7", shelf).version == 2
    assert outcomes(log)[2:] == ["lookup expired", "fill filled"]


def test_an_expired_record_is_shown_when_the_loader_fails(shown, client, shelf, log):
    """An outage of the declared kind is covered, and counted."""
    shown.get_or_load("7", shelf)
    age(client, 31)
    shelf.error = ConnectionError("gone")

    assert shown.get_or_load("7", shelf) == EMMA
    assert shown.get_or_load_many(["7"], shelf.many) == {"7": EMMA}
    assert outcomes(log).count("fill rescued") == 2


def test_a_bug_of_the_loader_is_not_covered(shown, client, shelf):
    """Only the declared errors are outages."""
    shown.get_or_load("7", shelf)
    age(client, 31)
    shelf.error = LookupError("bug")

    with pytest.raises(LookupError):
        shown.get_or_load("7", shelf)


def test_without_an_old_record_the_error_is_the_callers(shown, shelf):
    """There is nothing to show."""
    shelf.error = ConnectionError("gone")

    with pytest.raises(ConnectionError):
        shown.get_or_load("7", shelf)
    with pytest.raises(ConnectionError):
        shown.get_or_load_many(["7", "8"], shelf.many)


def test_what_is_not_for_display_is_never_stale(books, client, shelf):
    """Without the mark a record lives for its life and no longer."""
    books.get_or_load("7", shelf)

    assert client.call("PTTL", KEY) == pytest.approx(100_000, abs=500)


@pytest.mark.parametrize("wrong", [{"stale_s": 1}, {"on_error_s": 1}, {"errors": (OSError,)}])
def test_half_a_mark_is_refused(wrong):
    """Staleness needs somebody who refreshes, cover needs to know what it covers."""
    with pytest.raises(ValueError, match="together"):
        Display(**wrong)


# Tags


@pytest.fixture
def tags(client):
    """Return tags that outlive the books."""
    return Tags(client=client, space=KEYS.space("tag", ttl_s=1000))


@pytest.fixture
def tagged(books, tags):
    """Return the same cache, each book tagged by its shelf and by its first digit."""
    return replace(books, tagging=Tagging(tags=tags, by=lambda ident: ("shelf", f"id-{ident[0]}")))


def test_dropping_a_tag_makes_all_its_records_misses(tagged, tags, shelf, client, log):
    """One command, however many records; the others stay."""
    tagged.get_or_load_many(["7", "8"], shelf.many)
    log.clear()

    tags.drop("id-7")

    assert count(log, "pipeline") == 1
    assert tagged.get("7") is MISSING
    assert tagged.get("8") == ULYSSES
    assert outcomes(log) == ["lookup outdated", "lookup hit"]


def test_tags_are_read_in_the_same_round_trip(tagged, shelf, log):
    """A hit is one MGET."""
    tagged.get_or_load("7", shelf)
    log.clear()

    assert tagged.get_or_load("7", shelf) == EMMA
    assert [subject for subject, _ in log if " " not in subject] == ["mget"]


def test_a_tag_dropped_while_loading_wins(tagged, tags, shelf):
    """The record is stored with the version from before, and is not believed."""
    shelf.meanwhile = lambda: tags.drop("shelf")
    tagged.get_or_load("7", shelf)

    assert tagged.get("7") is MISSING


def test_a_lost_tag_believes_nothing_and_meets_no_old_version(tagged, client, shelf):
    """A flush of the tags alone cannot bring back what was dropped before."""
    tagged.get_or_load("7", shelf)
    before = client.call("GET", "lib:v1:tag:shelf")
    client.call("DEL", "lib:v1:tag:shelf")

    assert tagged.get("7") is MISSING
    tagged.get_or_load("8", shelf)
    assert client.call("GET", "lib:v1:tag:shelf") != before
    assert tagged.get("7") is MISSING


# Pattern


def test_a_pattern_drops_what_begins_so(books, client, shelf):
    """Here two of three; other spaces and other beginnings stay."""
    rows = {ident: Book(ident, "x") for ident in ("tech7:mon", "tech7:tue", "tech70:mon")}
    books.get_or_load_many(rows, lambda idents: {ident: rows[ident] for ident in idents})
    client.call("SET", "lib:v1:other:tech7:mon", "1")

    dropped = pattern_drop(client, SPACE, "tech7:", ANY)

    assert dropped == 2
    assert books.get("tech70:mon") == rows["tech70:mon"]
    assert client.call("EXISTS", "lib:v1:other:tech7:mon") == 1


@pytest.mark.parametrize("glob", ["*", "?", "[a-z]", "7*", "\\7"])
def test_a_pattern_made_of_input_matches_itself_alone(books, client, shelf, glob):
    """What means something in a pattern is escaped."""
    books.get_or_load("7", shelf)

    assert pattern_drop(client, SPACE, glob) == 0
    assert books.get("7") == EMMA


def test_without_pieces_the_whole_space_goes_in_bounded_steps(books, client, log):
    """1,200 records in several steps, none of them larger than its bound."""
    rows = {str(number): Book(str(number), "x") for number in range(1200)}
    books.get_or_load_many(rows, lambda idents: {ident: rows[ident] for ident in idents})
    log.clear()

    assert pattern_drop(client, SPACE) == 1200
    assert count(log, "scan") >= 4
    assert count(log, "keys") == count(log, "flushdb") == 0


def test_a_load_under_way_cannot_store_after_a_pattern(books, client, shelf):
    """Leases go with the records."""
    shelf.meanwhile = lambda: pattern_drop(client, SPACE, ANY)
    books.get_or_load("7", shelf)

    assert books.get("7") is MISSING


# Many at once


def test_the_loader_of_many_sees_what_is_missing_alone(books, shelf, log):
    """Once each, in one call; the answer is in the order asked."""
    books.get_or_load("8", shelf)
    log.clear()
    shelf.asked.clear()

    found = books.get_or_load_many(["9", "8", "7", "7"], shelf.many)

    assert list(found.items()) == [("8", ULYSSES), ("7", EMMA)]
    assert shelf.asked == [("9", "7")]
    assert (count(log, "mget"), count(log, "pipeline")) == (1, 2)
    assert books.get("7") == EMMA


def test_many_hits_are_one_round_trip_and_no_load(books, shelf, log):
    """100 records, one MGET."""
    rows = {str(number): Book(str(number), "x") for number in range(100)}
    books.get_or_load_many(rows, lambda idents: {ident: rows[ident] for ident in idents})
    log.clear()

    found = books.get_or_load_many(rows, shelf.many)

    assert found == rows
    assert shelf.asked == []
    assert [subject for subject, _ in log if " " not in subject] == ["mget"]


def test_nothing_asked_is_nothing_done(books, shelf, log):
    """Neither Redis nor the loader hears of it."""
    assert books.get_or_load_many([], shelf.many) == {}
    assert (shelf.asked, log) == ([], [])


def test_an_invalidation_during_a_batch_wins(books, shelf):
    """For the record it concerns; the others are stored."""
    shelf.meanwhile = lambda: books.drop(["7"])

    books.get_or_load_many(["7", "8"], shelf.many)

    assert (books.get("7"), books.get("8")) == (MISSING, ULYSSES)


def test_a_batch_remembers_what_is_not_there(books, shelf):
    """Asked once."""
    remembering = replace(books, negative_ttl_s=5)
    for _ in range(2):
        assert remembering.get_or_load_many(["9", "7"], shelf.many) == {"7": EMMA}

    assert shelf.asked == [("9", "7")]


def test_what_the_loader_adds_is_neither_returned_nor_stored(books, shelf):
    """A loader that returns more than asked for has no say."""
    found = books.get_or_load_many(["7"], lambda _: {"7": EMMA, "8": ULYSSES})

    assert found == {"7": EMMA}
    assert books.get("8") is MISSING


def test_many_without_redis_are_loaded(books, shelf, server, log):
    """The loader alone; each counted."""
    server.connected = False

    assert books.get_or_load_many(["7", "8"], shelf.many) == {"7": EMMA, "8": ULYSSES}
    assert outcomes(log) == ["lookup unavailable"] * 2


def test_many_unproven_are_loaded_and_not_stored(books, shelf, client):
    """One marker for all of them, in the same round trip."""
    proven = replace(books, proof=Proof(marker_key="lib:v1:marker", trusted=lambda marker, _: bool(marker)))

    assert proven.get_or_load_many(["7", "8"], shelf.many) == {"7": EMMA, "8": ULYSSES}
    assert client.mget([KEY, LEASE]).values == [None, None]


def test_stale_ones_among_many_are_refreshed_behind(shown, client, shelf, later):
    """They are shown at once."""
    shown.get_or_load("7", shelf)
    age(client, 1)
    shelf.books["7"] = replace(EMMA, version=2)

    found = shown.get_or_load_many(["7", "8"], shelf.many)
    later.popleft()()

    assert found == {"7": EMMA, "8": ULYSSES}
    assert shown.get("7").version == 2


# Writing


def test_writing_through_replaces_the_record(books, shelf, client, log):
    """The next reader finds the new row without a load."""
    books.get_or_load("7", shelf)
    revised = replace(EMMA, title="Emma, revised", version=2)

    written = books.write_through("7", lambda: revised)

    assert (written.value, written.is_coherent) == (revised, True)
    assert books.get("7") == revised
    assert client.call("EXISTS", LEASE) == 0
    assert outcomes(log)[-2:] == ["fill written", "lookup hit"]


def test_a_reader_that_loaded_before_a_write_cannot_store(books, shelf):
    """The writer takes the lease over."""
    revised = replace(EMMA, version=2)
    shelf.meanwhile = lambda: books.write_through("7", lambda: revised)

    books.get_or_load("7", shelf)

    assert books.get("7") == revised


def test_an_invalidation_during_a_write_drops_what_it_would_have_stored(books, log):
    """Somebody else changed the row as well: who was last, only the truth knows."""

    def change():
        books.drop(["7"])
        return EMMA

    assert books.write_through("7", change).is_coherent
    assert books.get("7") is MISSING
    assert outcomes(log)[0] == "fill dropped"


def test_two_writers_at_once_leave_nothing_wrong(books):
    """The one inside stores, the one around finds his lease taken, and drops."""
    older, newer = replace(EMMA, version=2), replace(EMMA, version=3)

    def change():
        books.write_through("7", lambda: newer)
        return older

    books.write_through("7", change)

    assert books.get("7") is MISSING


def test_a_change_that_fails_drops_the_record(books, shelf):
    """A commit that failed to answer may have happened."""
    books.get_or_load("7", shelf)

    def change():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        books.write_through("7", change)
    assert books.get("7") is MISSING


def test_a_write_without_redis_says_that_the_cache_may_lie(books, server):
    """The change is done; whoever needs the copy dropped hears that it is not."""
    server.connected = False

    written = books.write_through("7", lambda: EMMA)

    assert (written.value, written.is_coherent) == (EMMA, False)


# Packing


def test_a_long_record_is_packed_and_still_outranks_older_ones(books, client, shelf):
    """The scripts in Redis read its version."""
    long = Book("7", "Emma " * 500, 5)
    packing = replace(books, pack_over_bytes=1000)
    packing.get_or_load("7", Shelf(long))
    stored = client.call("GET", KEY)

    shelf.meanwhile = lambda: client.call("SET", KEY, stored)
    client.call("DEL", KEY)
    packing.get_or_load("7", shelf)

    assert stored.startswith(b"z5:")
    assert len(stored) < 200
    assert packing.get("7") == books.get("7") == long


def test_a_short_record_is_not_packed(books, client, shelf):
    """It stays readable."""
    replace(books, pack_over_bytes=1000).get_or_load("7", shelf)

    assert client.call("GET", KEY).startswith(b"{")


# The refresher


def test_a_refresher_runs_one_work_for_a_key_and_tells_errors():
    """Twice the same key while it is being worked on is once; an error reaches the listener."""
    errors = []
    refresher = Refresher(threads=1, on_error=lambda key, error: errors.append((key, str(error))))

    def broken():
        again.append(refresher.submit("a", lambda: None))
        raise LookupError("gone")

    again: list[bool] = []
    first = refresher.submit("a", broken)
    refresher.close()  # waits for what runs, whatever it submits

    assert (first, again) == (True, [False])
    assert errors == [("a", "gone")]
    assert refresher.submit("b", lambda: None) is False


def test_a_full_refresher_refuses():
    """Places are bounded; who is refused shows what is stale a little longer."""
    refresher = Refresher(threads=1, pending=2)
    gate: list[bool] = []
    filled = threading.Event()

    def fill():
        gate.extend(refresher.submit(key, lambda: None) for key in ("b", "c"))
        filled.set()

    refresher.submit("a", fill)
    assert filled.wait(10)
    refresher.close()

    assert gate == [True, False]


def test_errors_of_redis_during_a_look_stay_visible(shown, server):
    """A plain look never pretends."""
    server.connected = False

    with pytest.raises(CacheUnavailable):
        shown.get("7")
