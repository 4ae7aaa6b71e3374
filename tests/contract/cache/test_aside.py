"""Cache-aside against a real server, with real threads."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, replace
from functools import partial

import pytest
from redis.crc import key_slot

from authsvc.cache import MISSING, Aside, CacheEvents, Entry, KeySpace, Records, Shape
from tests.contract.cache.clients import cache_client, in_threads
from tests.processes import wait_until

SPACE = KeySpace("lib").space("row", ttl_s=60)


@dataclass(frozen=True)
class Row:
    """One row and its version."""

    id: str
    version: int


SHAPE = Shape(
    schema=1,
    dump=lambda row: Entry({"id": row.id}, row.version),
    load=lambda entry: Row(str(entry.fields["id"]), entry.row_version),
)


class Table:
    """The truth: one version for each id, and a count of reads."""

    def __init__(self, idents):
        self.versions = dict.fromkeys(idents, 1)
        self.reads = 0
        self._lock = threading.Lock()

    def load(self, ident):
        """Read a row."""
        with self._lock:
            self.reads += 1
            return Row(ident, self.versions[ident])

    def commit(self, ident):
        """Change a row and return its new version."""
        with self._lock:
            self.versions[ident] += 1
            return self.versions[ident]


@pytest.fixture
def rows(redis_url):
    """Return a cache of rows."""
    client = cache_client(redis_url, size=8)
    client.connections.fill()
    yield Aside(
        Records(
            client=client,
            space=SPACE,
            shape=SHAPE,
            lease_ms=60_000,
            rng=random.Random(1).random,
        )
    )
    client.close()


def test_a_record_lies_in_redis_as_json_with_a_life(rows):
    """Under its key, readable, within a tenth of the space's TTL; the lease is gone."""
    rows.get_or_load("7", Table(["7"]).load)
    key = SPACE.key("7")
    text, left_s, lease = rows.client.pipeline(
        [("GET", key), ("TTL", key), ("EXISTS", SPACE.lease(key))]
    ).values

    assert text == b'{"id":"7","_v":1,"_s":1}'
    assert 30 <= left_s <= 66
    assert lease == 0


def test_lease_and_record_share_a_slot():
    """A cluster runs the fill on one node."""
    key = SPACE.key("{7}")

    assert key_slot(SPACE.lease(key).encode()) == key_slot(key.encode())


def test_an_abandoned_lease_ends_by_itself(rows):
    """A reader that died while loading keeps others from storing for as long as its lease, no longer."""
    table = Table(["7"])
    short = replace(rows, records=replace(rows.records, lease_ms=50))

    def die(_ident):
        raise SystemExit

    with pytest.raises(SystemExit):
        short.get_or_load("7", die)

    def is_stored():
        return short.get_or_load("7", table.load) == short.get("7")

    wait_until(is_stored, what="a reader that may store")

    assert short.get("7") == Row("7", 1)


def test_racing_readers_store_once(rows):
    """Eight readers that miss one row at once all get it; exactly one of them stores."""
    table = Table(["7"])
    all_missed = threading.Barrier(8)
    filled = []
    racing = replace(rows, events=CacheEvents(on_fill=lambda _space, outcome: filled.append(outcome)))

    def load(ident):
        all_missed.wait(60)
        return table.load(ident)

    answers = in_threads(*[lambda: racing.get_or_load("7", load)] * 8)

    assert answers == [Row("7", 1)] * 8
    assert sorted(filled) == ["filled"] + ["leased"] * 7
    assert racing.get("7") == Row("7", 1)


def test_no_reader_sees_a_row_older_than_its_last_invalidation(rows):
    """Four readers and two writers on four rows: 1,600 reads, 400 changes, not one stale answer."""
    idents = ["a", "b", "c", "d"]
    table = Table(idents)
    floors = dict.fromkeys(idents, 0)

    def write(own):
        for turn in range(200):
            ident = own[turn % len(own)]
            version = table.commit(ident)
            rows.drop([ident])
            floors[ident] = version

    def read(seed):
        choose = random.Random(seed).choice
        stale = 0
        for _ in range(400):
            ident = choose(idents)
            floor = floors[ident]
            stale += rows.get_or_load(ident, table.load).version < floor
        return stale

    results = in_threads(partial(write, "ab"), partial(write, "cd"), *(partial(read, n) for n in range(4)))

    assert results == [None, None, 0, 0, 0, 0]
    cached = [rows.get(ident) for ident in idents]
    assert all(row is MISSING or row.version == table.versions[row.id] for row in cached)
    assert table.reads < 1600
