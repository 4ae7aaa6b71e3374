"""Writing through, and who else writes meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.cache import MISSING, Entry
from tests.unit.cache.aside.shelf import EMMA, LEASE, SHAPE, outcomes


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


@pytest.mark.parametrize("ident", [7, None, "8"])
def test_a_record_that_could_never_be_a_hit_is_refused(books, shelf, client, ident):
    """Its id is no text, or another's: told where it is made; what a write replaces goes all the same."""
    dump = lambda book: Entry({"id": ident, "title": book.title}, book.version)  # noqa: E731
    wrong = replace(books, shape=replace(SHAPE, dump=dump))
    books.get_or_load("7", shelf)

    with pytest.raises(ValueError, match="field 'id' of a record must be the id"):
        wrong.write_through("7", lambda: EMMA)
    assert books.get("7") is MISSING
    with pytest.raises(ValueError, match="field 'id' of a record must be the id"):
        wrong.get_or_load("7", shelf)
    assert client.call("EXISTS", books.space.key("7")) == 0
