"""Writing through, and who else writes meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.cache import MISSING, Entry, TrustCheck
from tests.unit.cache.aside.shelf import EMMA, KEY, LEASE, SHAPE, outcomes


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
    """The one inside stores, the one around finds its lease taken, and drops."""
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
    wrong = replace(books, records=replace(books.records, shape=replace(SHAPE, dump=dump)))
    books.get_or_load("7", shelf)

    with pytest.raises(ValueError, match="field 'id' of a record must be the id"):
        wrong.write_through("7", lambda: EMMA)
    assert books.get("7") is MISSING
    with pytest.raises(ValueError, match="field 'id' of a record must be the id"):
        wrong.get_or_load("7", shelf)
    assert client.call("EXISTS", books.space.key("7")) == 0


THIRD = replace(EMMA, version=3)
STORED = {
    "older": (b'{"id":"7","title":"Emma","_v":2,"_s":1}', False),
    "as new": (b'{"id":"7","title":"Emma","_v":3,"_s":1}', True),
    "newer": (b'{"id":"7","title":"Emma","_v":4,"_s":1}', True),
    "older, packed": (b"z2:9:packed", False),
    "newer, packed": (b"z10:9:packed", True),
    "known not to exist": (b'{"id":"7","_v":-1,"_s":1,"_n":true}', False),
    "no version": (b'{"id":"7","title":"Emma","_s":1}', False),
    "a word for a version": (b'{"id":"7","title":"Emma","_v":"new","_s":1}', False),
    "no JSON": (b"Emma", False),
    "nothing": (b"", False),
    "a list": (b"[4]", False),
}


@pytest.mark.parametrize("case", STORED)
def test_outdating_spares_what_is_as_new_as_the_change(books, client, case):
    """Everything else goes; nobody who read before the change can store, whatever was there."""
    stored, is_spared = STORED[case]
    client.pipeline([("SET", KEY, stored), ("SET", LEASE, "somebody's")])

    dropped = client.call(*books.outdate_command("7", 3))

    assert client.mget([KEY, LEASE]).values == [stored if is_spared else None, None]
    assert dropped == (not is_spared)


def test_outdating_drops_what_is_no_record(books, client):
    """A key of another type is no reason to fail for ever."""
    client.call("RPUSH", KEY, "Emma")

    assert client.call(*books.outdate_command("7", 3)) == 1
    assert client.call(*books.outdate_command("7", 3)) == 0


def test_what_is_written_ahead_survives_its_own_invalidation(books, shelf, client):
    """And every repetition of it: the next reader loads nothing."""
    books.get_or_load("7", shelf)

    assert books.write_ahead("7", lambda: ("made", THIRD), lambda made: made[1]) == (("made", THIRD), True)
    for version in (3, 2, 3):
        client.call(*books.outdate_command("7", version))

    assert books.get("7") == THIRD
    assert client.call("EXISTS", LEASE) == 0


def test_an_invalidation_during_a_write_ahead_leaves_nothing(books, client):
    """Somebody else changed the row as well, and this one may have been first."""

    def change():
        client.call(*books.outdate_command("7", 4))
        return THIRD

    assert books.write_ahead("7", change, lambda made: made) == (THIRD, False)
    assert books.get("7") is MISSING


def test_a_write_ahead_that_made_no_record_drops(books, shelf, client):
    """What was there may be out of date, and the lease is free for the next reader."""
    books.get_or_load("7", shelf)

    assert books.write_ahead("7", lambda: None, lambda _: MISSING) == (None, False)
    assert client.mget([KEY, LEASE]).values == [None, None]


def test_a_write_ahead_that_fails_drops(books, shelf, client):
    """A commit that failed to answer may have happened."""
    books.get_or_load("7", shelf)

    def change():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        books.write_ahead("7", change, lambda made: made)
    assert client.mget([KEY, LEASE]).values == [None, None]


def test_without_proof_nothing_is_written_ahead(books, shelf, client):
    """A Redis that may have lost an invalidation gets nothing to be believed later."""
    unproven = replace(
        books,
        records=replace(
            books.records, trust=TrustCheck(marker_key="lib:v1:marker", trusted=lambda *_: False)
        ),
    )
    books.get_or_load("7", shelf)

    assert unproven.write_ahead("7", lambda: THIRD, lambda made: made) == (THIRD, False)
    assert client.mget([KEY, LEASE]).values == [None, None]


def test_a_write_ahead_waits_for_a_failing_redis_once(books, server, log):
    """The change is made; what failed before it is not tried again behind it."""
    server.connected = False

    assert books.write_ahead("7", lambda: THIRD, lambda made: made) == (THIRD, False)
    assert [outcome for subject, outcome in log if " " not in subject] == ["refused"]
