"""Reads over a connection that an event loop watches: complete or nothing, and never somebody else's."""

from __future__ import annotations

import select
import time

import pytest
from redis import Redis

from authsvc.cache import CacheUnavailable, RedisAddress, bounded_pool
from authsvc.cache.redis.connections import Generations
from authsvc.cache.redis.polled import LONGEST_PAUSE_S, STABLE_S, PolledReads
from tests.contract.cache.clients import PATIENT, answer_to, answered, mget, reads_over, wait_once
from tests.contract.copies.redis_side import Stopwatch
from tests.servers import RedisServer
from tests.servers.proxy import Mode, Rule, TcpProxy


def pool_of(url: str, **options):
    """A pool to the server at *url*."""
    return bounded_pool(RedisAddress.from_url(url), size=1, **{"deadlines": PATIENT, **options})


@pytest.fixture
def proxy(private_redis):
    """A server behind a proxy; two keys are there, one of them long."""
    with Redis.from_url(private_redis.url) as client:
        client.mset({"a": "1", "long": "x" * 3_000_000})
    with TcpProxy(private_redis.url) as made:
        yield made


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_is_there_and_what_is_not(private_redis, protocol):
    """Values in the order of the keys, None for each that is missing; again and again."""
    with Redis.from_url(private_redis.url) as client:
        client.set("a", "1")
    reads = reads_over(pool_of(private_redis.url, protocol=protocol))

    for _ in range(3):
        assert answer_to(reads, "a", "b", "a") == [b"1", None, b"1"]
    reads.close()


def test_a_reply_in_many_pieces_is_taken_when_it_is_whole(proxy):
    """The loop does not wait for the rest, and does not use a part."""
    reads = reads_over(pool_of(proxy.url_for("redis://x")))
    # A proxy without pauses may be as quick as the loop: then one round takes all.
    proxy.switch(Rule(mode=Mode.DELAY, late_s=0.02))

    reads.send(mget("long", "a"), 2)
    rounds = [wait_once(reads)]
    while rounds[-1] is None:
        rounds.append(wait_once(reads))

    assert [len(value or b"") for value in rounds[-1]] == [3_000_000, 1]
    assert len(rounds) > 1
    reads.close()


def test_a_request_that_does_not_fit_the_socket_goes_in_pieces(private_redis):
    """The loop goes on, and sends the rest when there is room."""
    with Redis.from_url(private_redis.url) as client:
        client.set("a", "1")
    reads = reads_over(pool_of(private_redis.url))
    keys = ["a", *(f"{number:04}{'k' * 10_000}" for number in range(1500))]

    reads.send(mget(*keys), len(keys))
    was_unsent = reads.has_unsent

    assert was_unsent
    assert answered(reads) == [b"1", *[None] * 1500]
    reads.close()


def test_a_broken_connection_is_no_answer(proxy):
    """It is closed, and another is wanted; what comes over that has a higher stamp."""
    reads = reads_over(pool_of(proxy.url_for("redis://x")))
    first = reads.generation
    proxy.switch(Mode.LOSE)

    with pytest.raises(CacheUnavailable, match="refused"):
        answer_to(reads, "a")
    assert (reads.socket, reads.is_busy, reads.wants_renewal()) == (None, False, True)
    proxy.switch(Mode.PASS)
    reads.renew()

    assert reads.adopt(lambda _generation: True)
    assert reads.generation > first
    assert answer_to(reads, "a") == [b"1"]
    reads.close()


OTHER_REPLIES = {
    "too few": b"*1\r\n$1\r\nx\r\n",
    "too many": b"*3\r\n$1\r\nx\r\n$1\r\ny\r\n$1\r\nz\r\n",
    "one value": b"$1\r\nx\r\n",
    "a status": b"+OK\r\n",
    "an error": b"-LOADING x\r\n",
    "nonsense": b"?\r\n",
    "and one more": b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n+MORE\r\n",
}


@pytest.mark.parametrize("answer", OTHER_REPLIES.values(), ids=OTHER_REPLIES)
def test_any_other_reply_is_no_answer(proxy, answer):
    """Not one value too few or too many, and nothing behind it: the next batch would be told it."""
    reads = reads_over(pool_of(proxy.url_for("redis://x")))
    proxy.switch(Rule(mode=Mode.ANSWER, answer=answer))

    with pytest.raises(CacheUnavailable):
        answer_to(reads, "a", "b")

    assert reads.socket is None


def test_what_nobody_asked_for_closes_the_connection(proxy):
    """
    A second reply to one request arrives while no read is pending; it is never taken as the reply to the next
    one.
    """
    reads = reads_over(pool_of(proxy.url_for("redis://x")))
    sock = reads.socket
    assert sock is not None
    sock.send(mget("a"))

    select.select([sock], [], [], 60)
    with pytest.raises(CacheUnavailable):
        reads.receive()

    assert reads.socket is None


def test_a_connection_is_adopted_only_if_it_is_trusted(private_redis):
    """Until a comparison has seen it, the loop keeps what it has, which may be nothing."""
    reads = PolledReads(pool_of(private_redis.url), clock=time.monotonic, deadlines=PATIENT)
    reads.renew()

    assert not reads.adopt(lambda _generation: False)
    assert not reads.wants_renewal()
    assert reads.adopt(lambda generation: generation == 1)
    reads.renew()
    assert reads.adopt(lambda generation: generation == 1)
    assert reads.generation == 1
    assert reads.adopt(lambda generation: generation == 2)
    assert reads.generation == 2
    reads.close()


def test_connections_are_counted_with_those_of_the_pool(private_redis):
    """One order for all, so that a comparison can tell which are older."""
    generations = Generations()
    reads = reads_over(pool_of(private_redis.url, generations=generations))
    other = pool_of(private_redis.url, generations=generations).get_connection()

    assert (reads.generation, other.generation) == (1, 2)
    reads.close()
    other.disconnect()


def test_connections_that_do_not_live_are_made_ever_more_slowly(proxy):
    """At once after a long life; else in pauses that are doubled, up to a bound."""
    clock = Stopwatch()
    reads = PolledReads(pool_of(proxy.url_for("redis://x")), clock=clock, deadlines=PATIENT)
    reads.renew()
    reads.adopt(lambda _generation: True)
    clock.tick(STABLE_S)
    reads.abandon()
    assert reads.wants_renewal()

    pauses = []
    for _ in range(6):
        reads.renew()
        reads.adopt(lambda _generation: True)
        reads.abandon()
        began_s = clock()
        while not reads.wants_renewal():
            clock.tick(1)
        pauses.append(clock() - began_s)

    assert pauses == [1, 2, 4, 8, 8, 8]
    assert pauses[-1] == LONGEST_PAUSE_S
    reads.close()


def test_without_a_server_there_is_no_connection():
    """Nobody hears an error; the next one is wanted after a pause."""
    with RedisServer() as server:
        url = server.url
    reads = PolledReads(pool_of(url), clock=time.monotonic, deadlines=PATIENT)

    reads.renew()
    reads.renew()

    assert not reads.adopt(lambda _generation: True)
    assert not reads.wants_renewal()
