"""What may be shown past its life, and who loads it anew."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from authsvc.cache import MISSING, CacheUnavailable, Display, Refresher
from tests.unit.cache.aside.shelf import EMMA, KEY, age, outcomes


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
