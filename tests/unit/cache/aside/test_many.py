"""Many at once: one look, one load for what is missing."""

from __future__ import annotations

from dataclasses import replace

from authsvc.cache import MISSING, TrustCheck
from tests.unit.cache.aside.shelf import EMMA, KEY, LEASE, ULYSSES, Book, age, count, outcomes


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
    remembering = replace(books, records=replace(books.records, negative_ttl_s=5))
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
    proven = replace(
        books,
        records=replace(
            books.records,
            trust=TrustCheck(marker_key="lib:v1:marker", trusted=lambda marker, _: bool(marker)),
        ),
    )

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
