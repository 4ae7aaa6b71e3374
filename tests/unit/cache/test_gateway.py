"""The client over a Redis of this process: stamps, breaker, errors.  Real faults are in tests/fault."""

from __future__ import annotations

import threading

import pytest
from fakeredis import FakeRedisConnection
from redis import ConnectionPool
from redis.exceptions import ConnectionError as DriverConnectionError

from authsvc.cache import (
    CacheClient,
    CacheEvents,
    CacheMisuse,
    CacheUnavailable,
    CircuitBreaker,
    RedisAddress,
    Script,
    State,
    bounded_pool,
)


def in_threads(work, count):
    """Run *work* in *count* threads and wait for all."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def test_mget_returns_bytes_or_none_in_order(client):
    """What is missing, or no string, is None; what is falsy is itself."""
    client.pipeline([("SET", "a", "1"), ("SET", "empty", ""), ("RPUSH", "list", "x")])

    values = client.mget(["a", "nothing", "empty", "list"]).values

    assert values == [b"1", None, b"", None]


def test_pipeline_returns_each_reply_in_order(client):
    """Replies are Redis' own."""
    replies = client.pipeline([("SET", "a", 5, "EX", 60), ("INCR", "a"), ("GET", "b"), ("MGET", "a", "b")])

    assert replies.values == [b"OK", 6, None, [b"6", None]]


def test_an_empty_pipeline_is_nothing(client):
    """Nothing to send is no error."""
    assert client.pipeline([]).values == []


def test_a_pipeline_finishes_before_it_raises(client):
    """Commands behind a wrong one are carried out, and the connection stays in step."""
    with pytest.raises(CacheMisuse):
        client.pipeline([("SET", "a", "text"), ("INCR", "a"), ("SET", "b", "done")])

    assert client.mget(["a", "b"]).values == [b"text", b"done"]


def test_a_script_runs_in_a_pipeline(client):
    """A script is a command like any other."""
    script = Script("return {KEYS[1], ARGV[1]}")

    replies = client.pipeline([("SET", "a", "1"), script.command(["k"], [7])]).values

    assert replies == [b"OK", [b"k", b"7"]]


def test_an_argument_that_cannot_be_sent_is_a_misuse(client):
    """None or a bool as an argument is a bug on this side."""
    with pytest.raises(CacheMisuse):
        client.call("SET", "a", None)

    assert client.call("GET", "a") is None


def test_misuse_does_not_open_the_breaker(connect, clock):
    """A bug in one command takes nothing else down."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    client = connect(breaker=breaker)

    for _ in range(3):
        with pytest.raises(CacheMisuse):
            client.call("GET", "too", "many")

    assert breaker.state is State.CLOSED


def test_an_outage_opens_the_breaker_and_its_end_closes_it(connect, server, clock):
    """After the threshold nothing is sent; after the recovery time the first answer closes it."""
    breaker = CircuitBreaker(failure_threshold=2, recovery_timeout_s=2.0, clock=clock)
    client = connect(breaker=breaker)
    client.ping()

    server.connected = False
    reasons = []
    for _ in range(4):
        with pytest.raises(CacheUnavailable) as refusal:
            client.mget(["a"])
        reasons.append(refusal.value.reason)
    server.connected = True
    clock.tick(2.0)
    client.ping()

    assert reasons == ["refused", "refused", "open", "open"]
    assert breaker.state is State.CLOSED


def test_an_error_keeps_the_drivers_as_its_cause(client, server):
    """The log can say what happened, the message does not."""
    server.connected = False
    with pytest.raises(CacheUnavailable, match=r"^refused$") as refusal:
        client.ping()

    assert type(refusal.value.__cause__).__module__ == "redis.exceptions"


def test_a_connection_keeps_its_generation(client):
    """As long as the connection lives its stamp stays."""
    first = client.mget(["a"]).generation
    second = client.pipeline([("GET", "a")]).generation

    assert first == second == client.connections.generation == 1


def test_each_connection_has_its_own_generation(connect):
    """A full pool of four holds the stamps 1 to 4."""
    client = connect(size=4)

    opened = client.connections.fill()

    assert opened == 4
    assert client.connections.generation == 4


def test_filling_twice_makes_nothing_new(connect):
    """Connections that are open stay."""
    client = connect(size=3)
    client.connections.fill()
    client.connections.fill()

    assert client.connections.generation == 3


def test_a_filled_pool_makes_no_connection_later(connect):
    """The hot path finds its connections made, also when all are in use."""
    client = connect(size=4)
    client.connections.fill()
    in_threads(lambda: [client.mget(["a"]) for _ in range(50)], 4)

    assert client.connections.generation == 4


def test_filling_without_redis_is_no_error(connect, server):
    """The number says that nothing was opened."""
    client = connect()
    server.connected = False

    assert client.connections.fill() == 0


def test_suspect_connections_are_remade_before_their_next_use(connect):
    """Nothing is read over a connection made before the suspicion; one remaking is enough."""
    client = connect(size=3)
    client.connections.fill()
    client.connections.suspect()
    first = client.mget(["a"]).generation
    second = client.mget(["a"]).generation
    client.connections.fill()

    assert first == second == 4
    assert client.connections.generation == 6


def test_a_connection_that_becomes_suspect_in_use_is_not_used_again(connect):
    """Suspicion reaches the connections that are out."""
    client = connect()
    wire = client.connections.acquire()
    client.connections.suspect()
    client.connections.release(wire)

    assert client.mget(["a"]).generation == 2


def test_an_opening_breaker_makes_all_connections_suspect(connect, clock):
    """The first probe after an outage runs over a new connection, not over one that may be dead too."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout_s=2.0, clock=clock)
    client = connect(size=2, breaker=breaker)
    client.connections.fill()
    held = [client.connections.acquire(), client.connections.acquire()]
    with pytest.raises(CacheUnavailable, match="exhausted"):
        client.ping()
    closed_still = breaker.state
    for wire in held:
        client.connections.release(wire)
    with pytest.raises(CacheUnavailable, match="readonly"):
        client.call("EVAL", "return redis.error_reply('READONLY You can not write')", 0)
    clock.tick(2.0)

    assert closed_still is State.CLOSED
    assert client.mget(["a"]).generation == 3


def test_a_pool_of_unstamped_connections_is_refused(server, clock):
    """Without stamps no one could tell a new connection from an old one."""
    pool = ConnectionPool(connection_class=FakeRedisConnection, server=server)

    with pytest.raises(TypeError, match="stamped"):
        CacheClient(pool, breaker=CircuitBreaker(clock=clock), clock=clock)


def test_a_pool_connects_to_nothing_before_it_is_used(clock):
    """Building a client is free; sockets are off in this test."""
    pool = bounded_pool(RedisAddress(host="redis.invalid"), size=2)

    client = CacheClient(pool, breaker=CircuitBreaker(clock=clock), clock=clock)

    assert client.connections.generation == 0


@pytest.fixture
def drop(client, monkeypatch):
    """Return a way to break connections: the next *times* replies are never read."""
    original = FakeRedisConnection.read_response

    def arrange(times):
        client.ping()
        drops = iter(range(times))

        def read(wire, **options):
            if next(drops, None) is None:
                return original(wire, **options)
            raise DriverConnectionError("Connection closed by server.")

        monkeypatch.setattr(FakeRedisConnection, "read_response", read)

    return arrange


def test_a_read_is_sent_again_over_a_new_connection(client, drop, log):
    """A connection that turns out to be closed costs a read nothing."""
    client.call("SET", "a", "1")
    drop(1)

    assert client.mget(["a"]) == ([b"1"], 2)
    assert log[-1] == ("mget", "ok")


@pytest.mark.parametrize("command", ["GET", "EXISTS", "TTL", "PTTL", "get"])
def test_single_reads_are_sent_again(client, drop, command):
    """What changes nothing may be repeated."""
    drop(1)

    client.call(command, "a")

    assert client.connections.generation == 2


def test_a_read_is_sent_again_once(client, drop):
    """The second break in a row is an outage."""
    drop(2)

    with pytest.raises(CacheUnavailable, match="refused"):
        client.mget(["a"])
    assert client.mget(["a"]).values == [None]


def test_a_write_is_never_sent_again(client, drop):
    """It may have been carried out: once is right, twice is wrong."""
    drop(1)
    with pytest.raises(CacheUnavailable, match="refused"):
        client.call("INCR", "a")
    drop(1)
    with pytest.raises(CacheUnavailable, match="refused"):
        client.pipeline([("INCR", "b")])

    assert client.mget(["a", "b"]).values == [b"1", b"1"]


def test_a_broken_connection_makes_the_others_suspect(connect, drop):
    """What closed one has closed all: none of them gets to fail and open the breaker."""
    client = connect(size=3)
    client.connections.fill()
    drop(1)
    with pytest.raises(CacheUnavailable):
        client.call("INCR", "a")
    client.connections.fill()

    assert client.connections.generation == 6


def test_info_is_none_where_the_server_has_none(client):
    """fakeredis knows no INFO, some ACLs deny it: neither is an error."""
    assert client.info("memory") is None


def test_info_raises_when_redis_is_gone(client, server):
    """An outage is not the same as a denial."""
    server.connected = False

    with pytest.raises(CacheUnavailable):
        client.info("memory")


def test_a_closed_client_can_be_used_again(client):
    """Closing drops connections; a late caller during shutdown gets an answer, over a new one."""
    client.ping()
    client.close()

    assert client.mget(["a"]).generation == 2


def test_each_operation_is_told_with_its_outcome(client, server, log):
    """Names and outcomes are finite, so that they can label a metric."""
    client.mget(["a"])
    client.pipeline([("GET", "a")])
    with pytest.raises(CacheMisuse):
        client.call("GET")
    server.connected = False
    with pytest.raises(CacheUnavailable):
        client.ping()

    assert log == [("mget", "ok"), ("pipeline", "ok"), ("get", "misuse"), ("ping", "refused")]


def test_an_interrupted_call_leaves_no_reply_behind(client, monkeypatch):
    """A worker stopped in the middle of a pipeline must not leave its replies to the next caller."""
    client.call("SET", "a", "mine")
    original = FakeRedisConnection.read_response
    replies = iter([None, SystemExit])

    def interrupt(wire, **options):
        if next(replies, None) is SystemExit:
            raise SystemExit
        return original(wire, **options)

    monkeypatch.setattr(FakeRedisConnection, "read_response", interrupt)
    with pytest.raises(SystemExit):
        client.pipeline([("ECHO", "1"), ("ECHO", "2"), ("ECHO", "3")])

    assert client.call("GET", "a") == b"mine"


def test_time_is_measured_by_the_clock_given(connect):
    """Seconds reach the listener."""
    times_s = iter([10.0, 10.25])
    told = []
    client = connect(
        clock=lambda: next(times_s), events=CacheEvents(on_operation=lambda *event: told.append(event))
    )

    client.ping()

    assert told == [("ping", 0.25, "ok")]
