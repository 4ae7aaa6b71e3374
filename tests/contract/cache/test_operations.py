"""Values, hashes, lists, sets, counters: the same on a real server, over both protocols, and on fakeredis."""

from __future__ import annotations

import time
from functools import partial

import pytest
from fakeredis import FakeRedisConnection, FakeServer
from redis import ConnectionPool

from authsvc.cache import (
    MISSING,
    CacheClient,
    CacheEvents,
    CacheMisuse,
    CircuitBreaker,
    Counters,
    Hashes,
    Json,
    Keys,
    KeySpace,
    Lists,
    Sets,
    Values,
    stamped,
)
from tests.contract.cache.clients import cache_client, in_threads

SPACE = KeySpace("lib").space("thing", ttl_s=60)
FALSY: list[Json] = [None, False, 0, 0.0, "", [], {}]


def fake_client():
    """Return a client of a Redis in this process."""
    pool = ConnectionPool(connection_class=stamped(FakeRedisConnection), server=FakeServer())
    return CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)


def seconds_left(keys: Keys, ident: str) -> float:
    """Return the life of a key that must be there."""
    left_s = keys.ttl_s(ident)
    assert left_s is not MISSING
    return float(left_s)


@pytest.fixture(params=["RESP2", "RESP3", "fakeredis"])
def client(request):
    """Return a client of each kind."""
    if request.param == "fakeredis":
        client = fake_client()
    else:
        client = cache_client(request.getfixturevalue("redis_url"), protocol=int(request.param[-1]))
    yield client
    client.close()


@pytest.fixture
def told():
    """Collect the outcomes of looks."""
    return []


@pytest.fixture
def events(told):
    """Return callbacks that write to *told*."""
    return CacheEvents(on_lookup=lambda _space, outcome: told.append(outcome))


@pytest.fixture
def values(client, events):
    """Return values."""
    return Values(client=client, space=SPACE, events=events)


@pytest.mark.parametrize("value", [*FALSY, "é\u0000", 1 << 60, {"a": [1, {"b": None}]}], ids=repr)
def test_any_json_value_comes_back_as_it_was(values, value):
    """What is falsy is a hit, and nothing is mistaken for nothing."""
    values.set("7", value)

    assert values.get("7") == value
    assert type(values.get("7")) is type(value)


def test_missing_is_not_none(values, told):
    """A stored null is there, an unknown id is not."""
    values.set("7", None)

    assert values.get("7") is None
    assert values.get("8") is MISSING
    assert told == ["hit", "miss"]


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (b"\x80\x04N.", "undecodable"),
        (b"{", "undecodable"),
        (b'{"id":"7","_v":0,"_s":1}', "undecodable"),
        (b"[" * 100_000, "undecodable"),
        (b"z0:5:nonsense", "undecodable"),
        (b'{"id":"7","value":1,"_v":0,"_s":2}', "other_schema"),
        (b'{"id":"8","value":1,"_v":0,"_s":1}', "other_id"),
    ],
)
def test_what_is_not_believed_is_missing_and_counted(values, client, told, raw, outcome):
    """Also a pickle, which is never loaded."""
    client.call("SET", SPACE.key("7"), raw)

    assert values.get("7") is MISSING
    assert told == [outcome]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": float("nan")}, {1, 2}], ids=repr)
def test_what_json_cannot_say_is_refused(values, value):
    """The bug shows where it is made."""
    with pytest.raises((ValueError, TypeError)):
        values.set("7", value)


def test_many_are_set_and_read_in_one_round_trip_each(values, told):
    """Those that are there come back, by id."""
    values.set_many({"a": 1, "b": None})

    assert values.get_many(["b", "x", "a"]) == {"b": None, "a": 1}
    assert told == ["hit", "miss", "hit"]
    assert values.get_many([]) == {}


def test_adding_leaves_what_is_there(values):
    """The first wins."""
    assert values.add("7", "first") is True
    assert values.add("7", "second") is False
    assert values.get("7") == "first"


def test_a_long_value_is_packed(client, values):
    """Readers that do not pack can read it, too."""
    packing = Values(client=client, space=SPACE, pack_over_bytes=100)
    packing.set("7", "x" * 10_000)

    assert len(client.call("GET", SPACE.key("7"))) < 200
    assert values.get("7") == "x" * 10_000


def test_keys_are_looked_at_prolonged_and_deleted(values):
    """exists, ttl_s, expire, delete."""
    values.set("7", 1)
    values.set("8", 1, ttl_s=30.5)
    keys = values.keys

    assert (keys.exists("7"), keys.exists("9")) == (True, False)
    assert 31 < seconds_left(keys, "7") <= 60
    assert 0 < seconds_left(keys, "8") <= 30.5
    assert keys.ttl_s("9") is MISSING
    assert (keys.expire("7", 1000), keys.expire("9", 1000)) == (True, False)
    assert 900 < seconds_left(keys, "7") <= 1000
    assert keys.delete("7", "8", "9") == 2
    assert values.get("7") is MISSING


def test_a_life_of_nothing_is_refused(values):
    """It would delete."""
    with pytest.raises(ValueError, match="longer than 0 s"):
        values.set("7", 1, ttl_s=0)
    with pytest.raises(ValueError, match="longer than 0 s"):
        values.keys.expire("7", -1)


def test_hashes(client, events, told):
    """Fields come and go one by one; the hash has a life from its first field on, which does not move."""
    hashes = Hashes(client=client, space=SPACE, events=events)
    hashes.set("7", {"a": 1, "b": None, "c": {"d": []}})
    hashes.keys.expire("7", 40)
    hashes.set("7", {"a": 2})

    assert hashes.get("7", "a") == 2
    assert hashes.get("7", "b") is None
    assert hashes.get("7", "x") is hashes.get("8", "a") is MISSING
    assert hashes.get_all("7") == {"a": 2, "b": None, "c": {"d": []}}
    assert hashes.get_all("8") == {}
    assert hashes.remove("7", "a", "x") == 1
    assert 0 < seconds_left(hashes.keys, "7") <= 40
    assert told[:4] == ["hit", "hit", "miss", "miss"]


def test_lists(client, events):
    """In order, bounded where one wants."""
    lists = Lists(client=client, space=SPACE, events=events)

    assert lists.append("7", "a", None, {"b": 1}) == 3
    assert lists.range("7") == ["a", None, {"b": 1}]
    assert lists.range("7", -1, -1) == [{"b": 1}]
    lists.keep("7", 2)
    assert lists.length("7") == 2
    assert lists.pop("7") is None
    assert lists.pop("7") == {"b": 1}
    assert lists.pop("7") is MISSING
    lists.append("7", 1)
    assert 0 < seconds_left(lists.keys, "7") <= 60


def test_sets(client, events):
    """Equal values are one, whatever the order of their keys."""
    sets = Sets(client=client, space=SPACE, events=events)

    assert sets.add("7", {"a": 1, "b": 2}, {"b": 2, "a": 1}, None, 0) == 3
    assert sets.contains("7", {"b": 2, "a": 1})
    assert not sets.contains("7", False)
    assert sets.size("7") == 3
    assert sorted(map(str, sets.members("7"))) == ["0", "None", "{'a': 1, 'b': 2}"]
    assert sets.members("8") == []
    assert sets.remove("7", None, "x") == 1
    assert 0 < seconds_left(sets.keys, "7") <= 60


def test_counters_have_a_life_from_their_first_step_on(client, events):
    """It is given in that very step and not prolonged by the next."""
    counters = Counters(client=client, space=SPACE, events=events)

    assert counters.read("7") is MISSING
    assert [counters.increment("7"), counters.increment("7", 5), counters.decrement("7", 2)] == [1, 6, 4]
    counters.keys.expire("7", 40)
    counters.increment("7")

    assert counters.read("7") == 5
    assert 0 < seconds_left(counters.keys, "7") <= 40


def test_a_counter_that_stands_at_nothing_is_there(client, events, told):
    """Zero is a hit."""
    counters = Counters(client=client, space=SPACE, events=events)
    counters.increment("7", 0)

    assert counters.read("7") == 0
    assert told == ["hit"]


def test_counting_in_threads_loses_nothing(client):
    """8 threads, 50 each: exactly 400, and a life."""
    counters = Counters(client=client, space=SPACE)

    in_threads(*[partial(lambda n: [counters.increment("7") for _ in range(n)], 50)] * 8)

    assert counters.read("7") == 400
    assert seconds_left(counters.keys, "7") <= 60


def test_another_type_is_a_misuse(client):
    """No silent answer."""
    Lists(client=client, space=SPACE).append("7", 1)

    with pytest.raises(CacheMisuse):
        Counters(client=client, space=SPACE).increment("7")
    with pytest.raises(CacheMisuse):
        Hashes(client=client, space=SPACE).get("7", "a")


def test_more_arguments_than_a_script_takes_are_refused(client):
    """Bounded steps; the caller cuts them as it likes."""
    with pytest.raises(ValueError, match="at most"):
        Sets(client=client, space=SPACE).add("7", *range(2000))


def test_collections_skip_what_does_not_decode(client, events, told):
    """And count it."""
    client.call("RPUSH", SPACE.key("7"), "1", "\x80bad", "2")

    assert Lists(client=client, space=SPACE, events=events).range("7") == [1, 2]
    assert told == ["hit", "undecodable", "hit"]
