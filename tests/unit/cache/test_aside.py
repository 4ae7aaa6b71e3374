"""Cache-aside: hits, misses, leases, proof, outages."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from authsvc.cache import MISSING, Aside, CacheUnavailable, Entry, KeySpace, Records, Shape, TrustCheck

SPACE = KeySpace("lib").space("book", ttl_s=100)
KEY = "lib:v1:book:7"
LEASE = "lib:v1:lease:{lib:v1:book:7}"
MARKER = "lib:v1:marker"


@dataclass(frozen=True)
class Book:
    """A row: its id, its title, its version."""

    id: str
    title: str
    version: int = 1


def load(entry):
    """Make a book of an entry."""
    return Book(str(entry.fields["id"]), str(entry.fields["title"]), entry.row_version)


SHAPE = Shape(
    schema=1, dump=lambda book: Entry({"id": book.id, "title": book.title}, book.version), load=load
)
EMMA = Book("7", "Emma")


class Shelf:
    """The truth: counts what is asked of it."""

    def __init__(self, *books):
        self.books = {book.id: book for book in books}
        self.asked = []
        self.meanwhile = lambda: None

    def __call__(self, ident):
        """Load a book, with something happening between the read and the return."""
        self.asked.append(ident)
        found = self.books.get(ident, MISSING)
        self.meanwhile()
        return found


@pytest.fixture
def shelf():
    """Return a shelf with one book."""
    return Shelf(EMMA)


@pytest.fixture
def books(client, log):
    """Return the cache beside the shelf; no jitter."""
    return Aside(
        Records(
            client=client,
            space=SPACE,
            shape=SHAPE,
            lease_ms=5000,
            rng=lambda: 0.5,
        ),
        events=log.events(),
    )


def outcomes(log):
    """Return what the cache told, without the client's own operations."""
    return [f"{subject.split()[0]} {outcome}" for subject, outcome in log if subject.endswith(" book")]


def test_a_miss_loads_and_stores(books, shelf, client, log):
    """The second reader finds what the first one loaded."""
    first = books.get_or_load("7", shelf)
    second = books.get_or_load("7", shelf)

    assert first == second == EMMA
    assert shelf.asked == ["7"]
    assert client.call("GET", KEY) == b'{"id":"7","title":"Emma","_v":1,"_s":1}'
    assert outcomes(log) == ["lookup miss", "fill filled", "lookup hit"]


def test_get_loads_nothing(books, shelf):
    """A plain look says what is cached."""
    before = books.get("7")
    books.get_or_load("7", shelf)

    assert before is MISSING
    assert books.get("7") == EMMA


def test_a_fill_leaves_no_lease(books, shelf, client):
    """The lease goes with the fill."""
    books.get_or_load("7", shelf)

    assert client.call("EXISTS", LEASE) == 0


@pytest.mark.parametrize("error", [None, LookupError("shelf")], ids=["finds nothing", "fails"])
def test_who_stores_nothing_takes_no_lease_of_another(books, error):
    """The row is made and dropped while a reader looks: the lease is the next reader's, who will store."""
    early, late = Shelf(), Shelf(EMMA)
    begun, early_is_done = threading.Event(), threading.Event()

    def next_reader_loads():
        begun.set()
        assert early_is_done.wait(60)

    def made_and_dropped():
        books.drop(["7"])
        next_reader.start()
        assert begun.wait(60)
        if error:
            raise error

    early.meanwhile, late.meanwhile = made_and_dropped, next_reader_loads
    next_reader = threading.Thread(target=books.get_or_load, args=("7", late))

    with suppress(LookupError):
        books.get_or_load("7", early)
    early_is_done.set()
    next_reader.join(60)

    assert books.get("7") == EMMA


def test_what_the_loader_does_not_have_is_not_stored(books, client):
    """Nothing is cached of what is not there."""
    assert books.get_or_load("8", Shelf()) is MISSING
    assert client.mget(["lib:v1:book:8"]).values == [None]


def test_an_error_of_the_loader_is_the_callers(books):
    """The cache neither hides it nor answers in its place."""

    def broken(_ident):
        raise LookupError("shelf")

    with pytest.raises(LookupError, match="shelf"):
        books.get_or_load("7", broken)


@pytest.mark.parametrize(("chance", "life_ms"), [(0.0, 90_000), (0.5, 100_000), (0.999999, 110_000)])
def test_lives_are_spread_by_a_tenth(books, shelf, client, chance, life_ms):
    """Between 90 % and 110 % of the space's TTL."""
    replace(books, records=replace(books.records, rng=lambda: chance)).get_or_load("7", shelf)

    assert client.call("PTTL", KEY) == pytest.approx(life_ms, abs=500)


def test_a_lease_ends_by_itself(books, shelf, client):
    """A reader that dies keeps nobody from storing for longer than its lease."""
    seen = []
    shelf.meanwhile = lambda: seen.append(client.call("PTTL", LEASE))
    books.get_or_load("7", shelf)

    assert seen == [pytest.approx(5000, abs=500)]


def test_an_invalidation_while_loading_wins(books, shelf, client, log):
    """What was read before the change is returned to its reader and not stored."""
    shelf.meanwhile = lambda: books.drop(["7"])

    assert books.get_or_load("7", shelf) == EMMA
    assert client.mget([KEY]).values == [None]
    assert outcomes(log) == ["lookup miss", "fill refused"]


def test_an_expired_lease_stores_nothing(books, shelf, client):
    """After the lease's end an invalidation would have had nothing to delete."""
    shelf.meanwhile = lambda: client.call("DEL", LEASE)
    books.get_or_load("7", shelf)

    assert books.get("7") is MISSING


def test_a_lease_taken_over_by_another_stores_nothing(books, shelf, client):
    """Only the owner of the lease stores."""
    shelf.meanwhile = lambda: client.call("SET", LEASE, "another's")
    books.get_or_load("7", shelf)

    assert books.get("7") is MISSING
    assert client.call("GET", LEASE) == b"another's"


def test_who_finds_the_lease_taken_loads_and_does_not_store(books, shelf, client, log):
    """A waiter goes on by itself."""
    client.call("SET", LEASE, "another's")

    assert books.get_or_load("7", shelf) == EMMA
    assert client.mget([KEY]).values == [None]
    assert outcomes(log) == ["lookup miss", "fill leased"]


def test_a_newer_row_is_never_overwritten(books, shelf, client):
    """A fill under its own lease still gives way to a newer version."""
    newer = b'{"id":"7","title":"Persuasion","_v":2,"_s":1}'
    shelf.meanwhile = lambda: client.call("SET", KEY, newer)
    books.get_or_load("7", shelf)

    assert client.call("GET", KEY) == newer


@pytest.mark.parametrize(
    "older",
    [
        b'{"id":"7","title":"Lady Susan","_v":0,"_s":1}',
        b"{",
        b"7",
        b'{"_v":"9"x}',
        b'{"_v":{}}',
        b'{"_v":null}',
    ],
)
def test_an_older_row_or_rubbish_gives_way(books, shelf, client, older):
    """What has no newer version is replaced."""
    shelf.meanwhile = lambda: client.call("SET", KEY, older)
    books.get_or_load("7", shelf)

    assert books.get("7") == EMMA


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        (b"{", "undecodable"),
        (b'{"id":"7","_v":9,"_s":1}', "undecodable"),
        (b'{"id":"7","title":"Emma","_v":9,"_s":2}', "other_schema"),
        (b'{"id":"8","title":"Ulysses","_v":9,"_s":1}', "other_id"),
    ],
)
def test_a_value_not_believed_is_a_miss_and_is_replaced(books, shelf, client, log, raw, flaw):
    """Whatever version it claims, it does not outrank the truth."""
    client.call("SET", KEY, raw)

    assert books.get_or_load("7", shelf) == EMMA
    assert books.get("7") == EMMA
    assert outcomes(log) == [f"lookup {flaw}", "fill filled", "lookup hit"]


def test_without_redis_the_loader_answers(books, shelf, server, log):
    """An outage costs the cache, not the answer; it is counted, and nothing more is tried."""
    server.connected = False

    assert books.get_or_load("7", shelf) == EMMA
    assert outcomes(log) == ["lookup unavailable"]
    assert [subject for subject, _ in log if " " not in subject] == ["mget"]


def test_an_outage_while_loading_costs_only_the_fill(books, shelf, server, log):
    """The loaded record is returned."""
    shelf.meanwhile = lambda: setattr(server, "connected", False)

    assert books.get_or_load("7", shelf) == EMMA
    assert outcomes(log) == ["lookup miss", "fill failed"]


def test_who_needs_the_truth_hears_of_the_outage(books, server):
    """A look and an invalidation raise: silence would be a lie."""
    server.connected = False

    with pytest.raises(CacheUnavailable):
        books.get("7")
    with pytest.raises(CacheUnavailable):
        books.drop(["7"])


def test_dropping_deletes_the_lease_before_the_record(books):
    """The other way round a fill between the two would stay."""
    assert books.drop_commands(["7"]) == [("DEL", LEASE), ("DEL", KEY)]


def test_dropping_nothing_is_no_error(books):
    """An empty list is allowed."""
    books.drop([])


def test_drops_can_travel_with_other_commands(books, shelf, client):
    """One round trip for all that a change means."""
    books.get_or_load("7", shelf)

    client.pipeline([("SET", "other", "1"), *books.drop_commands(["7", "8"])])

    assert client.mget([KEY, "other"]).values == [None, b"1"]


@pytest.fixture
def verdicts():
    """Collect what the judge of the proof was asked."""
    return []


@pytest.fixture
def proven(books, verdicts):
    """Return the same cache with a proof: it holds while the marker says yes."""

    def trusted(marker, generation):
        verdicts.append((marker, generation))
        return marker == b"yes"

    return replace(
        books, records=replace(books.records, trust=TrustCheck(marker_key=MARKER, trusted=trusted))
    )


def test_a_proof_travels_with_the_value(proven, shelf, client, log, verdicts):
    """Marker and value come in one round trip, over the connection whose generation is told."""
    client.call("SET", MARKER, "yes")
    proven.get_or_load("7", shelf)
    log.clear()

    assert proven.get("7") == EMMA
    assert [subject for subject, _ in log if " " not in subject] == ["mget"]
    assert verdicts == [(b"yes", 1), (b"yes", 1)]


@pytest.mark.parametrize("marker_before", ["yes", "no"])
def test_a_write_without_proof_drops(proven, shelf, client, log, marker_before):
    """What is written while Redis may have lost an invalidation is not there when it is proven again."""
    client.call("SET", MARKER, "yes")
    proven.get_or_load("7", shelf)
    client.call("SET", MARKER, marker_before)
    revised = replace(EMMA, title="Emma, revised", version=2)

    def change():
        client.call("SET", MARKER, "no")
        return revised

    written = proven.write_through("7", change)
    client.call("SET", MARKER, "yes")

    assert (written.value, written.is_coherent) == (revised, True)
    assert proven.get("7") is MISSING
    assert "fill dropped" in outcomes(log)
    assert client.call("EXISTS", LEASE) == 0


@pytest.mark.parametrize("marker", [None, b"no"])
def test_an_unproven_value_is_neither_believed_nor_replaced(proven, shelf, client, log, marker):
    """Redis that may have lost an invalidation is not read, and nothing is stored in it."""
    stale = b'{"id":"7","title":"Stale","_v":1,"_s":1}'
    client.call("SET", KEY, stale)
    if marker is not None:
        client.call("SET", MARKER, marker)

    assert proven.get_or_load("7", shelf) == EMMA
    assert proven.get("7") is MISSING
    assert client.mget([KEY, LEASE]).values == [stale, None]
    assert outcomes(log) == ["lookup untrusted", "lookup untrusted"]
