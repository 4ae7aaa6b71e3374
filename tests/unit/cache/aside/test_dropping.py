"""Invalidation of many: by tag and by pattern."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.cache import ANY, MISSING, Tagging, Tags, pattern_drop
from tests.unit.cache.aside.shelf import EMMA, KEYS, SPACE, ULYSSES, Book, count, outcomes


@pytest.fixture
def tags(client):
    """Return tags that outlive the books."""
    return Tags(client=client, space=KEYS.space("tag", ttl_s=1000))


@pytest.fixture
def tagged(books, tags):
    """Return the same cache, each book tagged by its shelf and by its first digit."""
    return replace(
        books,
        records=replace(
            books.records, tagging=Tagging(tags=tags, by=lambda ident: ("shelf", f"id-{ident[0]}"))
        ),
    )


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
