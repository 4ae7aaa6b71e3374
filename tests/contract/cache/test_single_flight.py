"""One load for many who miss at once: threads of one process, and several processes."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import replace

import pytest
from redis import Redis

from authsvc.cache import (
    MISSING,
    Aside,
    CacheEvents,
    Records,
    SingleFlight,
)
from tests.contract.cache.clients import PATIENT, SHAPE, SPACE, Row, cache_client, in_threads
from tests.processes import wait_until

LEASE = SPACE.lease(SPACE.key("7"))
PROCESSES, THREADS = 4, 50


def rows_of(url, *, patience_s=60.0, lease_ms=60_000, size=16, retry_s=0.02, events=None, **pool_options):
    """Return a cache of rows whose readers wait for each other."""
    return Aside(
        Records(
            client=cache_client(url, size=size, **pool_options),
            space=SPACE,
            shape=SHAPE,
            lease_ms=lease_ms,
            rng=lambda: 0.5,
            negative_ttl_s=0,
        ),
        single_flight=SingleFlight(patience_s=patience_s, retry_s=retry_s),
        events=events or CacheEvents(),
    )


def storm(url, start, answers):
    """Be one process of the storm: 50 threads that miss one key at once."""
    # A call that is late on a busy machine would be answered by a load: right, but not what is counted here.
    rows = rows_of(url, deadlines=PATIENT)
    loads = Redis.from_url(url)

    def load(ident):
        loads.incr("test:loads")
        wait_until(
            lambda: loads.get("test:readers") == b"%d" % (PROCESSES * THREADS), what="all 200 readers asked"
        )
        return Row(ident, 1)

    def read():
        loads.incr("test:readers")
        return rows.get_or_load("7", load)

    start.wait(120)
    found = in_threads(*[read] * THREADS)
    answers.put(sum(answer == Row("7", 1) for answer in found))
    rows.client.close()
    loads.close()


def test_200_threads_in_4_processes_load_a_cold_row_once(redis_url):
    """One load, counted in Redis; all 200 get the row."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=storm, args=(redis_url, start, answers)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        right = [answers.get(timeout=120) for _ in processes]
    finally:
        for process in processes:
            process.join(60)
            process.kill()

    with Redis.from_url(redis_url) as client:
        assert client.get("test:loads") == b"1"
    assert right == [THREADS] * PROCESSES


class Table:
    """Counts its loads; each waits until the test opens the gate, and the first may fail."""

    def __init__(self):
        self.loads = 0
        self.version = 1
        self.is_there = True
        self.error = None
        self.begun, self.gate = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def load(self, ident):
        """Read a row."""
        with self._lock:
            self.loads += 1
            row = Row(ident, self.version) if self.is_there else MISSING
        self.begun.set()
        assert self.gate.wait(60)
        with self._lock:
            error, self.error = self.error, None
        if error:
            raise error
        return row


@pytest.fixture
def table():
    """Return a table behind a closed gate."""
    return Table()


@pytest.fixture
def rows(redis_url):
    """Return a cache whose readers wait for each other."""
    rows = rows_of(redis_url)
    yield rows
    rows.client.close()


def when_all_wait(rows, table, then, *, readers=8):
    """Let one reader load, the others join, do *then*, and open the gate; returns all answers."""

    def arrange():
        assert table.begun.wait(60)
        load, _ = rows.single_flight.join(SPACE.key("7"))
        wait_until(lambda: load.joined == readers + 1, what="all joined")
        then()
        table.gate.set()

    return in_threads(arrange, *[lambda: rows.get_or_load("7", table.load)] * readers)[1:]


def test_threads_share_one_load(rows, table):
    """Seven wait, one loads."""
    answers = when_all_wait(rows, table, lambda: None)

    assert answers == [Row("7", 1)] * 8
    assert table.loads == 1


def test_who_asked_before_an_invalidation_gets_what_came_after_it(rows, table):
    """The leader's own load was overtaken: the waiters do not share it, and one of them loads again."""

    def change():
        table.version = 2
        rows.drop(["7"])

    answers = when_all_wait(rows, table, change)

    assert sorted(answer.version for answer in answers) == [1] + [2] * 7
    assert table.loads == 2
    assert rows.get("7") == Row("7", 2)


def test_nothing_there_is_shared_too(rows, table):
    """Without negative entries the lease, given back untouched, is proof enough."""
    table.is_there = False

    answers = when_all_wait(rows, table, lambda: None)

    assert answers == [MISSING] * 8
    assert table.loads == 1


def test_a_failed_load_is_nobody_elses_failure(rows, table):
    """Its caller gets the error; those who waited ask the loader for themselves."""
    table.error = LookupError("gone")

    answers = when_all_wait(rows, table, lambda: None)

    assert sum(isinstance(answer, LookupError) for answer in answers) == 1
    assert table.loads == 8
    assert rows.client.call("EXISTS", LEASE) == 0


class Overtaken:
    """A client behind whose lookups something happens: *then* by the number of the lookup."""

    def __init__(self, client, then):
        self.client, self.then = client, then
        self.looks = 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def mget(self, keys):
        """Look, and then."""
        found = self.client.mget(keys)
        self.looks += 1
        self.then.get(self.looks, lambda: None)()
        return found


def test_a_waiter_gets_what_another_process_stores(redis_url, rows):
    """The lease is another's: the value is looked for until it is there."""
    rows.client.call("SET", LEASE, "another's", "PX", 60_000)

    def store():
        rows.client.call("SET", SPACE.key("7"), b'{"id":"7","_v":3,"_s":1}', "PX", 60_000)

    client = Overtaken(rows.client, {4: store})
    waiting = replace(rows, records=replace(rows.records, client=client))

    assert waiting.get_or_load("7", lambda _: pytest.fail("loaded")) == Row("7", 3)
    assert client.looks == 5


def test_what_was_stored_between_a_look_and_a_lease_is_not_loaded_again(redis_url, rows):
    """The owner stores and goes behind a waiter's back: the waiter's lease is free, and needless."""
    rows.client.call("SET", LEASE, "another's", "PX", 60_000)

    def store_and_go():
        rows.client.call("SET", SPACE.key("7"), b'{"id":"7","_v":3,"_s":1}', "PX", 60_000)
        rows.client.call("DEL", LEASE)

    overtaken = replace(rows, records=replace(rows.records, client=Overtaken(rows.client, {2: store_and_go})))

    assert overtaken.get_or_load("7", lambda _: pytest.fail("loaded")) == Row("7", 3)
    assert rows.client.call("EXISTS", LEASE) == 0


def test_who_comes_after_an_invalidation_behind_a_lookup_does_not_share_it(rows, table):
    """The leader found another's row, which was current when it was read: latecomers look again."""
    table.gate.set()
    table.version = 2
    late = []
    rows.client.call("SET", LEASE, "another's", "PX", 60_000)

    def store():
        rows.client.call("SET", SPACE.key("7"), b'{"id":"7","_v":1,"_s":1}', "PX", 60_000)

    def invalidate_and_join():
        rows.drop(["7"])
        latecomer.start()
        load, _ = rows.single_flight.join(SPACE.key("7"))
        wait_until(lambda: load.joined == 3, what="leader, latecomer and this observer joined")

    client = Overtaken(rows.client, {1: store, 2: invalidate_and_join})
    overtaken = replace(rows, records=replace(rows.records, client=client))
    latecomer = threading.Thread(target=lambda: late.append(overtaken.get_or_load("7", table.load)))

    first = overtaken.get_or_load("7", lambda _: pytest.fail("loaded"))
    latecomer.join(60)

    assert (first, late) == (Row("7", 1), [Row("7", 2)])


class SettledThen:
    """A client behind whose second batch, the one that stores the row, something happens."""

    def __init__(self, client, then):
        self.client, self.then = client, then
        self.batches = 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def pipeline(self, commands):
        """Send, and then."""
        replies = self.client.pipeline(commands)
        self.batches += 1
        if self.batches == 2:
            self.then()
        return replies


def test_who_comes_after_an_invalidation_behind_the_fill_does_not_share_it(rows, table):
    """The leader's row was current when it was stored, and is not any more: latecomers load again."""
    table.gate.set()
    late = []

    def invalidate_and_join():
        table.version = 2
        rows.drop(["7"])
        latecomer.start()
        load, _ = rows.single_flight.join(SPACE.key("7"))
        wait_until(lambda: load.joined == 3, what="leader, latecomer and this observer joined")

    overtaken = replace(
        rows, records=replace(rows.records, client=SettledThen(rows.client, invalidate_and_join))
    )
    latecomer = threading.Thread(target=lambda: late.append(overtaken.get_or_load("7", table.load)))

    first = overtaken.get_or_load("7", table.load)
    latecomer.join(60)

    assert (first, late) == (Row("7", 1), [Row("7", 2)])


def test_a_dead_owner_costs_its_lease_and_no_more(redis_url, rows):
    """When the lease ends a waiter takes it, loads and stores."""
    began = time.monotonic()
    rows.client.call("SET", LEASE, "a dead one's", "PX", 300)

    answer = rows.get_or_load("7", lambda ident: Row(ident, 1))
    took_s = time.monotonic() - began

    assert answer == rows.get("7") == Row("7", 1)
    assert 0.29 < took_s < 20


def test_patience_ends(redis_url):
    """Those who have waited long enough load for themselves and do not store."""
    told = []
    rows = rows_of(
        redis_url, patience_s=0.1, events=CacheEvents(on_fill=lambda _, outcome: told.append(outcome))
    )
    rows.client.call("SET", LEASE, "another's", "PX", 60_000)

    answer = rows.get_or_load("7", lambda ident: Row(ident, 1))

    assert answer == Row("7", 1)
    assert rows.get("7") is MISSING
    assert told == ["leased"]
    rows.client.close()


def test_without_redis_nobody_waits(private_redis, table):
    """All load for themselves, at once."""
    rows = rows_of(private_redis.url)
    private_redis.kill()
    table.gate.set()
    began = time.monotonic()

    answers = in_threads(*[lambda: rows.get_or_load("7", table.load)] * 8)

    assert answers == [Row("7", 1)] * 8
    assert table.loads == 8
    assert time.monotonic() - began < 30


def test_an_outage_while_waiting_ends_the_waiting(private_redis):
    """Those who poll for another's load and find no Redis any more load for themselves."""
    rows = rows_of(private_redis.url, retry_s=0.1)
    rows.client.call("SET", LEASE, "another's", "PX", 60_000)

    _, answer = in_threads(private_redis.kill, lambda: rows.get_or_load("7", lambda ident: Row(ident, 1)))

    assert answer == Row("7", 1)


def test_patience_for_a_slow_leader_ends_too(rows, table):
    """A hung load holds up its own caller and, for their patience, those who wait; not for ever."""
    impatient = replace(rows, single_flight=SingleFlight(patience_s=0.1, retry_s=0.02))
    leader = threading.Thread(target=impatient.get_or_load, args=("7", table.load))
    leader.start()
    assert table.begun.wait(60)

    answer = impatient.get_or_load("7", lambda ident: Row(ident, 1))
    table.gate.set()
    leader.join(60)

    assert answer == Row("7", 1)


class Ledger:
    """Two rows that change, the versions below which nothing may be seen, and slow loads."""

    def __init__(self, rows):
        self.rows = rows
        self.versions = {"a": 1, "b": 1}
        self.floors = {"a": 0, "b": 0}
        self._lock = threading.Lock()

    def load(self, ident):
        """Read a row, in a millisecond: without the pause, hardly any change would fall into a load."""
        row = Row(ident, self.versions[ident])
        time.sleep(0.001)
        return row

    def commit(self, ident):
        """Change a row."""
        with self._lock:
            self.versions[ident] += 1
            return Row(ident, self.versions[ident])

    def drop(self):
        """Change and drop row a, 100 times."""
        for _ in range(100):
            row = self.commit("a")
            self.rows.drop(["a"])
            self.floors["a"] = row.version

    def write(self):
        """Write row b through, 100 times."""
        for _ in range(100):
            self.floors["b"] = self.rows.write_through("b", lambda: self.commit("b")).value.version

    def read(self):
        """Read 200 times, and return how often the answer was stale."""
        stale = 0
        for turn in range(200):
            ident = "ab"[turn % 2]
            floor = self.floors[ident]
            stale += self.rows.get_or_load(ident, self.load).version < floor
        return stale


def test_sharing_never_shows_a_row_older_than_its_last_invalidation(rows):
    """Six readers that share loads, two writers of two kinds: 1,200 reads, 200 changes, no stale answer."""
    ledger = Ledger(rows)

    results = in_threads(ledger.drop, ledger.write, *[ledger.read] * 6)

    assert results == [None, None, *[0] * 6]
