"""Locks across clients of a real server, and what becomes of them when something dies."""

from __future__ import annotations

import threading
import time

import pytest

from authsvc.cache import CacheUnavailable, KeySpace, Locks
from tests.contract.cache.clients import cache_client, in_threads
from tests.processes import wait_until

KEYS = KeySpace("lib")


@pytest.fixture
def client(redis_url):
    """Return a client."""
    client = cache_client(redis_url, size=16)
    yield client
    client.close()


@pytest.fixture
def locks(client):
    """Return locks that ask again twice, soon."""
    return Locks(client, KEYS, ttl_s=60, retry_delay_s=0.05, max_retries=2)


def test_one_of_many_gets_a_lock(locks, client):
    """16 threads at once: exactly one; its key lies under lock: and lives for its time."""
    held = in_threads(*[lambda: locks.acquire("nightly", waits=False)] * 16)

    assert sum(one is not None for one in held) == 1
    assert 30_000 < client.call("PTTL", "lib:v1:lock:nightly") <= 60_000


def test_a_lock_given_back_can_be_taken(locks):
    """By its owner once, not twice."""
    held = locks.acquire("nightly")
    released = [held.release(), held.release()]

    assert released == [True, False]
    assert locks.acquire("nightly", waits=False) is not None


def test_only_the_owner_gives_it_back(locks, client):
    """A lock that was lost is another's: it is neither released nor extended."""
    held = locks.acquire("nightly")
    client.call("SET", "lib:v1:lock:nightly", "another's", "PX", 60_000)

    assert (held.extend(600), held.is_owned(), held.release()) == (False, False, False)
    assert client.call("GET", "lib:v1:lock:nightly") == b"another's"


def test_extending_sets_the_life_anew(locks, client):
    """Not added to what was left."""
    held = locks.acquire("nightly")

    assert held.extend(600) is True
    assert 300_000 < client.call("PTTL", "lib:v1:lock:nightly") <= 600_000
    assert held.is_owned()


def test_waiting_is_bounded(locks):
    """Two retries, 50 ms apart, and then no lock."""
    locks.acquire("nightly")
    began = time.monotonic()

    assert locks.acquire("nightly") is None
    assert 0.09 < time.monotonic() - began < 15


def test_who_waits_gets_it_when_it_is_free(client):
    """A lock given back in time."""
    patient = Locks(client, KEYS, ttl_s=600, retry_delay_s=0.02, max_retries=3000)
    held = patient.acquire("nightly")
    assert held is not None
    giving_back = threading.Timer(0.1, held.release)
    giving_back.start()

    assert patient.acquire("nightly") is not None
    giving_back.join()


def test_a_dead_owner_costs_the_life_of_its_lock(client):
    """And no more."""
    dying = Locks(client, KEYS, ttl_s=0.2)
    began = time.monotonic()
    dying.acquire("nightly")

    assert Locks(client, KEYS, retry_delay_s=0.02, max_retries=3000).acquire("nightly") is not None
    assert 0.19 < time.monotonic() - began < 15


def test_locks_held_are_counted(client):
    """Up while one is held, down also when the work fails."""
    told: list[int] = []
    locks = Locks(client, KEYS, max_retries=0, on_active=told.append)

    def fail():
        with locks.holding("nightly") as held, locks.holding("nightly") as second:
            seen.append((held is not None, second is None))
            raise LookupError

    seen: list[tuple[bool, bool]] = []
    with pytest.raises(LookupError):
        fail()

    assert seen == [(True, True)]
    assert (told, locks.active) == ([1, 0], 0)
    assert locks.acquire("nightly") is not None


def test_different_names_are_different_locks(locks):
    """Also names that need quoting."""
    assert locks.acquire("a:b") is not None
    assert locks.acquire("a") is not None


def test_without_redis_there_is_no_lock_and_no_pretence(private_redis):
    """The caller hears of the outage; what it holds ends by itself."""
    client = cache_client(private_redis.url)
    locks = Locks(client, KEYS)
    with locks.holding("nightly") as held:
        assert held is not None
        private_redis.kill()
        with pytest.raises(CacheUnavailable):
            held.extend(60)
        with pytest.raises(CacheUnavailable):
            locks.acquire("other")
    wait_until(lambda: locks.active == 0, what="no lock counted")
