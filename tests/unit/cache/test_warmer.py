"""Warmers: bounded, single, stoppable, told of."""

from __future__ import annotations

import threading

import pytest

from authsvc.cache import CacheMisuse, CacheUnavailable, Ending, KeySpace, Locks, Warmed, Warmer, Warming

IDENTS = [str(number) for number in range(250)]


class Oven:
    """Collects what was warmed."""

    def __init__(self):
        self.batches = []
        self.error = {}

    def __call__(self, batch):
        """Warm *batch*, or fail on the one that was told to."""
        self.batches.append(list(batch))
        if len(self.batches) in self.error:
            raise self.error[len(self.batches)]
        return len(batch)


@pytest.fixture
def oven():
    """Return a cold oven."""
    return Oven()


@pytest.fixture
def pauses():
    """Collect how long the runs waited, in seconds."""
    return []


@pytest.fixture
def progress():
    """Collect what was told under way."""
    return []


@pytest.fixture
def warming(pauses, progress):
    """Return warming that waits in no time."""

    def pause(seconds):
        pauses.append(seconds)
        return False

    return Warming(on_progress=progress.append, pause=pause)


def users(oven, **options):
    """Return a warmer of 250 users."""
    return Warmer(name="users", idents=lambda: iter(IDENTS), warm=oven, **options)


def test_everything_is_warmed_by_batches(warming, oven, progress):
    """The result counts; each batch is told."""
    warming.register(users(oven))

    result = warming.run("users")

    assert result == Warmed("users", seen=250, warmed=250, failed=0, ending=Ending.DONE)
    assert [len(batch) for batch in oven.batches] == [100, 100, 50]
    assert [one.seen for one in progress] == [100, 200, 250]


def test_number_and_rate_are_bounded(warming, oven, pauses):
    """120 of 250, 50 a second by tens: a fifth of a second before every batch but the first."""
    warming.register(users(oven, limit=120, batch_size=10, rate_per_s=50))

    result = warming.run("users")

    assert result.seen == 120
    assert pauses == [0.2] * 11


def test_a_source_without_end_is_cut(warming, oven):
    """Ids are drawn as they are needed."""
    warming.register(Warmer(name="endless", idents=lambda: iter(lambda: "x", None), warm=oven, limit=50))

    assert warming.run("endless").seen == 50


def test_a_declared_error_costs_its_batch(warming, oven):
    """The next batch is tried all the same."""
    oven.error[2] = ConnectionError("gone")
    warming.register(users(oven, errors=(ConnectionError,)))

    assert warming.run("users") == Warmed("users", seen=250, warmed=150, failed=100, ending=Ending.DONE)


def test_a_bug_is_the_callers_and_the_warmer_can_run_again(warming, oven):
    """Nothing is left locked."""
    oven.error[2] = LookupError("bug")
    warming.register(users(oven))
    with pytest.raises(LookupError):
        warming.run("users")

    assert warming.run("users").ending is Ending.DONE


def test_a_name_is_taken_once(warming, oven):
    """And an unknown one is an error."""
    warming.register(users(oven))

    with pytest.raises(ValueError, match="users"):
        warming.register(users(oven))
    with pytest.raises(KeyError):
        warming.run("books")
    assert warming.names == ("users",)


def test_closing_stops_between_batches(oven):
    """What was warmed stays counted; the rest is for the next run."""
    closing = Warming(on_progress=lambda _: closing.close())
    closing.register(users(oven))

    result = closing.run("users")

    assert (result.seen, result.ending) == (100, Ending.STOPPED)


def test_two_at_once_in_a_process_are_one(warming, oven):
    """The second is told that it is busy."""
    inside = []

    def warm(batch):
        inside.append(warming.run("users").ending)
        return len(batch)

    warming.register(Warmer(name="users", idents=lambda: IDENTS[:1], warm=warm))

    assert warming.run("users").ending is Ending.DONE
    assert inside == [Ending.BUSY]


def test_two_processes_at_once_are_one(client, oven):
    """The lock is the other's; when it is free the run is done."""
    locks = Locks(client, KeySpace("lib"), max_retries=0)
    warming = Warming(locks=locks)
    warming.register(users(oven, batch_size=250))
    with locks.holding("warm:users"):
        busy = warming.run("users")

    assert busy == Warmed("users", 0, 0, 0, Ending.BUSY)
    assert warming.run("users").ending is Ending.DONE
    assert client.call("EXISTS", "lib:v1:lock:warm%3Ausers") == 0


def test_a_lost_lock_stops_the_run(client, oven):
    """Another process goes on from there."""
    warming = Warming(
        locks=Locks(client, KeySpace("lib")),
        on_progress=lambda _: client.call("DEL", "lib:v1:lock:warm%3Ausers"),
        pause=lambda _: False,
    )
    warming.register(users(oven))

    assert warming.run("users").ending is Ending.STOPPED
    assert len(oven.batches) == 1


def test_an_outage_before_the_run_is_the_callers(client, server, oven):
    """Without Redis there is nothing to warm."""
    server.connected = False
    warming = Warming(locks=Locks(client, KeySpace("lib"), max_retries=0))
    warming.register(users(oven))

    with pytest.raises(CacheUnavailable):
        warming.run("users")
    assert oven.batches == []


def test_at_the_start_all_run_behind_and_one_broken_keeps_nobody_back(warming, oven, caplog):
    """What it raised is in the log."""

    def broken():
        raise CacheMisuse("bug")

    done = threading.Event()

    def warm(batch):
        done.set()
        return oven(batch)

    warming.register(Warmer(name="broken", idents=broken, warm=oven))
    warming.register(Warmer(name="users", idents=lambda: IDENTS, warm=warm))
    warming.start()

    assert done.wait(10)
    warming.close()
    assert "cache.warming_failed" in caplog.text


def test_run_all_returns_each_result(warming, oven):
    """By name, in order."""
    warming.register(users(oven))
    warming.register(Warmer(name="none", idents=lambda: (), warm=oven))

    assert [(name, one.warmed) for name, one in warming.run_all().items()] == [("users", 250), ("none", 0)]
