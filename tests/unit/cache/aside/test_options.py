"""What an Aside may be told besides: nothing there, lives, packing."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from authsvc.cache import MISSING, CacheUnavailable, Reason, SingleFlight
from tests.unit.cache.aside.shelf import EMMA, KEY, SPACE, Book, Shelf, outcomes


def test_what_is_not_there_is_remembered_for_its_own_time(books, client, log):
    """The loader is asked once; the entry lives as long as negative entries do."""
    shelf = Shelf()
    remembering = replace(books, records=replace(books.records, negative_ttl_s=5))

    answers = [remembering.get_or_load("7", shelf) for _ in range(3)]

    assert answers == [MISSING] * 3
    assert shelf.asked == [("7",)]
    assert client.call("PTTL", KEY) == pytest.approx(5000, abs=500)
    assert remembering.get("7") is MISSING
    assert outcomes(log)[:4] == ["lookup miss", "fill filled", "lookup negative", "lookup negative"]


def test_a_created_row_replaces_its_negative_entry(books, shelf):
    """The invalidation that a creation sends is enough."""
    remembering = replace(books, records=replace(books.records, negative_ttl_s=5))
    remembering.get_or_load("7", Shelf())

    remembering.drop(["7"])

    assert remembering.get_or_load("7", shelf) == EMMA


def test_a_creation_while_looking_wins_over_the_negative_entry(books, shelf):
    """What was not there before the commit is not remembered after it."""
    remembering = replace(books, records=replace(books.records, negative_ttl_s=5))
    empty = Shelf()
    empty.meanwhile = lambda: remembering.drop(["7"])

    remembering.get_or_load("7", empty)

    assert remembering.get_or_load("7", shelf) == EMMA


def test_a_negative_entry_never_replaces_a_row(books, client):
    """Any row outranks it, also version 0."""
    row = b'{"id":"7","title":"Emma","_v":0,"_s":1}'
    empty = Shelf()
    empty.meanwhile = lambda: client.call("SET", KEY, row)

    replace(books, records=replace(books.records, negative_ttl_s=5)).get_or_load("7", empty)

    assert client.call("GET", KEY) == row


def test_a_life_may_depend_on_the_record(books, client, shelf):
    """Here by the id; it could be by the status of a task."""
    lives = {"7": 10, "8": 1000}
    varied = replace(books, records=replace(books.records, life_s=lambda ident, _book: lives[ident]))

    varied.get_or_load_many(["7", "8"], shelf.many)

    left_ms = client.pipeline([("PTTL", SPACE.key(ident)) for ident in "78"]).values
    assert left_ms == [pytest.approx(10_000, abs=500), pytest.approx(1_000_000, abs=500)]


def test_a_long_record_is_packed_and_still_outranks_older_ones(books, client, shelf):
    """The scripts in Redis read its version."""
    long = Book("7", "Emma " * 500, 5)
    packing = replace(books, records=replace(books.records, pack_over_bytes=1000))
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
    replace(books, records=replace(books.records, pack_over_bytes=1000)).get_or_load("7", shelf)

    assert client.call("GET", KEY).startswith(b"{")


class Unleased:
    """A client that reads, and whose batches, which take leases, fail."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)

    def pipeline(self, commands):
        """Fail."""
        raise CacheUnavailable(Reason.OOM)


def test_where_no_lease_can_be_taken_nobody_waits_for_one(books, client, shelf):
    """A Redis that refuses writes, unlike a lease that others hold: the reader loads at once."""
    pauses: list[float] = []
    ticks = count()
    alone = replace(
        books,
        records=replace(books.records, client=Unleased(client)),
        single_flight=SingleFlight(patience_s=9, clock=lambda: next(ticks), pause=pauses.append),
    )

    assert alone.get_or_load("7", shelf) == EMMA
    assert pauses == []
