"""The cache's client against a real server."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest

from authsvc.cache import CacheMisuse, CacheUnavailable, CircuitBreaker, Script, State
from tests.contract.cache.clients import PATIENT, cache_client, in_threads
from tests.processes import wait_until


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def client(request, redis_url):
    """Return a client over either protocol."""
    client = cache_client(redis_url, protocol=request.param)
    yield client
    client.close()


def narrow_url(server, *rules):
    """Create a user with *rules* alone and return the URL to log in with."""
    admin = cache_client(server.url)
    admin.call("ACL", "SETUSER", "narrow", "reset", "on", ">pass:word", *rules)
    admin.close()
    return f"redis://narrow:pass%3Aword@{server.host}:{server.port}/0"


def test_replies_are_the_same_over_both_protocols(client):
    """Bytes, integers, None and lists, in order."""
    replies = client.pipeline(
        [("SET", "a", "é", "EX", 60), ("GET", "a"), ("GET", "b"), ("TTL", "a"), ("MGET", "a", "b")]
    )

    assert replies.values == [b"OK", "é".encode(), None, 60, ["é".encode(), None]]


def test_info_is_read_by_section(client):
    """Field names and values as text, without headings."""
    memory = client.info("memory")

    assert memory is not None
    assert int(memory["used_memory"]) > 0
    assert memory["maxmemory_policy"] == "noeviction"
    assert not any(name.startswith("#") for name in memory)


def test_a_wrong_type_is_a_misuse_and_leaves_the_connection_in_step(client):
    """The error is read to its end, the next reply is the next command's."""
    client.call("RPUSH", "list", "x")
    with pytest.raises(CacheMisuse):
        client.pipeline([("SET", "a", "1"), ("INCR", "list"), ("GET", "list"), ("SET", "b", "2")])

    assert client.mget(["a", "list", "b"]) == ([b"1", None, b"2"], 1)


def test_a_script_survives_a_script_flush(client):
    """The text travels with each call."""
    script = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    first = client.call(*script.command(["n"], [2]))
    client.call("SCRIPT", "FLUSH")
    second = client.pipeline([script.command(["n"], [3])]).values

    assert [first, *second] == [2, 5]


def test_large_values_pass(client):
    """Values beyond one segment and one buffer come back whole."""
    value = b"x" * 300_000

    client.pipeline([("SET", "big", value), ("SET", "small", "1")])

    assert client.mget(["big", "small"]).values == [value, b"1"]


def test_the_database_is_selected(redis_url):
    """Keys of database 3 are not in database 0."""
    zero, three = cache_client(redis_url), cache_client(redis_url.removesuffix("/0") + "/3")
    three.call("SET", "cache:only-three", "1", "EX", 5)

    assert zero.mget(["cache:only-three"]).values == [None]
    assert three.mget(["cache:only-three"]).values == [b"1"]
    zero.close()
    three.close()


def test_a_connection_is_named(redis_url):
    """CLIENT LIST tells an operator whose connection it is."""
    client = cache_client(redis_url, client_name="library")

    assert client.call("CLIENT", "GETNAME") == b"library"
    client.close()


def test_a_narrow_user_is_enough(private_redis):
    """A name that an ACL denies, and INFO, cost only themselves; the breaker stays closed."""
    url = narrow_url(private_redis, "~lib:*", "+@read", "+@write", "+@scripting", "+ping")
    breaker = CircuitBreaker(failure_threshold=1, clock=time.monotonic)
    client = cache_client(url, client_name="library", breaker=breaker)

    client.call("SET", "lib:a", "1")
    with pytest.raises(CacheUnavailable, match="denied"):
        client.mget(["other:a"])
    with pytest.raises(CacheUnavailable, match="denied"):
        client.call(*Script("return redis.call('GET', 'other:a')").command([], []))

    assert client.info("memory") is None
    assert client.mget(["lib:a"]) == ([b"1"], 1)
    assert breaker.state is State.CLOSED
    client.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_wrong_password_is_an_outage(private_redis, protocol):
    """The breaker counts it: nothing works until somebody acts."""
    url = narrow_url(private_redis, "+@all").replace("pass%3Aword", "other")
    breaker = CircuitBreaker(failure_threshold=1, clock=time.monotonic)
    client = cache_client(url, breaker=breaker, protocol=protocol)

    with pytest.raises(CacheUnavailable, match="denied"):
        client.ping()

    assert breaker.state is State.OPEN


def test_a_database_that_is_not_there_is_an_outage(private_redis):
    """A handshake that the server refuses leaves nothing to call."""
    client = cache_client(private_redis.url.removesuffix("/0") + "/99")

    with pytest.raises(CacheUnavailable, match="other"):
        client.ping()


def test_an_exhausted_pool_is_refused_soon(redis_url):
    """
    If all connections stay in use for a tenth of a second, the call fails, and the breaker does not count it.
    """
    breaker = CircuitBreaker(failure_threshold=1, clock=time.monotonic)
    client = cache_client(redis_url, size=1, breaker=breaker, deadlines=replace(PATIENT, wait_s=0.1))
    wire = client.connections.acquire()
    started = time.monotonic()
    with pytest.raises(CacheUnavailable, match="exhausted"):
        client.ping()
    took_s = time.monotonic() - started
    client.connections.release(wire)
    client.ping()

    assert 0.09 < took_s < 10
    assert breaker.state is State.CLOSED
    assert client.connections.generation == 1
    client.close()


def test_threads_share_a_pool_without_mixing_replies(redis_url):
    """16 threads over 4 connections each read what they wrote, 200 times."""
    client = cache_client(redis_url, size=4)

    def work(name):
        return sum(
            client.pipeline([("SET", f"k{name}", n), ("GET", f"k{name}")]).values[1] == str(n).encode()
            and client.mget([f"k{name}"]).values == [str(n).encode()]
            for n in range(200)
        )

    right = in_threads(*(partial(work, name) for name in range(16)))

    assert right == [200] * 16
    assert client.connections.generation <= 4
    client.close()


def test_closing_ends_connections_idle_and_in_use(redis_url):
    """Idle ones at once, one in use when it comes back."""
    observer, client = cache_client(redis_url, size=1), cache_client(redis_url, client_name="leaving")
    client.connections.fill()
    wire = client.connections.acquire()

    def connected():
        return str(observer.call("CLIENT", "LIST")).count("name=leaving")

    full = connected()
    client.close()
    wait_until(lambda: connected() == 1, what="idle connections closed")
    client.connections.release(wire)
    wait_until(lambda: connected() == 0, what="the last connection closed")

    assert full == 4
    observer.close()


def test_a_suspended_client_sends_nothing_until_it_is_resumed(redis_url):
    """However long it takes: the breaker's probes do not begin meanwhile."""
    now_s = [0.0]
    breaker = CircuitBreaker(recovery_timeout_s=0.001, clock=lambda: now_s[0])
    client = cache_client(redis_url, breaker=breaker)
    client.call("SET", "a", "1")
    client.suspend()
    now_s[0] = 3600.0

    with pytest.raises(CacheUnavailable):
        client.call("GET", "a")
    assert client.state.value == "open"

    client.resume()
    assert client.call("GET", "a") == b"1"
    assert client.state.value == "closed"
    client.close()
