"""What the cache's client makes of a real server that is broken on purpose."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from authsvc.cache import CacheUnavailable, CircuitBreaker, State
from tests.contract.cache_clients import cache_client, in_threads
from tests.processes import wait_until
from tests.proxy import Mode, Rule, TcpProxy

pytestmark = pytest.mark.fault

RECOVERY_S = 0.3


@pytest.fixture
def breaker():
    """Return a breaker that lets probes through soon."""
    return CircuitBreaker(recovery_timeout_s=RECOVERY_S, clock=time.monotonic)


@pytest.fixture
def client(private_redis, breaker):
    """Return a client with eight open connections to a server to break."""
    client = cache_client(private_redis.url, size=8, breaker=breaker)
    client.connections.fill()
    yield client
    client.close()


@pytest.fixture
def proxy(private_redis):
    """Return a proxy before the server to break."""
    with TcpProxy(private_redis.url) as proxy:
        yield proxy


def refusals(client, count):
    """Ask *count* times, and return (reason, seconds) of each refusal."""
    told = []
    for _ in range(count):
        started = time.monotonic()
        with pytest.raises(CacheUnavailable) as refusal:
            client.mget(["a"])
        told.append((refusal.value.reason, time.monotonic() - started))
    return told


def recover(client, breaker):
    """Ask until the breaker is closed again; fails after ten seconds."""

    def answers():
        try:
            client.ping()
        except CacheUnavailable:
            return False
        return True

    wait_until(answers, timeout_s=10, what="recovery")
    assert breaker.state is State.CLOSED


def test_a_dead_server_is_refused_at_once(client, breaker, private_redis):
    """Five refusals open the breaker, none takes long; it recovers by itself."""
    private_redis.kill()
    told = refusals(client, 7)
    private_redis.start()
    recover(client, breaker)

    assert [reason for reason, _ in told] == ["refused"] * 5 + ["open"] * 2
    assert max(seconds for _, seconds in told) < 2


def test_a_restart_is_survived_by_every_connection(client, breaker, private_redis):
    """No connection from before the restart gets to fail; all of them show new generations."""
    before = client.connections.generation
    private_redis.kill()
    private_redis.start()

    answers = in_threads(*[lambda: client.mget(["a"])] * 8)

    assert [answer.values for answer in answers] == [[None]] * 8
    assert min(answer.generation for answer in answers) > before
    assert breaker.state is State.CLOSED


def test_a_hung_server_costs_a_quarter_of_a_second_each_time(client, breaker, private_redis):
    """Five time-outs, then nothing is sent; after it wakes up everything works."""
    private_redis.pause()
    told = refusals(client, 7)
    private_redis.resume()
    recover(client, breaker)

    assert [reason for reason, _ in told] == ["timeout"] * 5 + ["open"] * 2
    assert max(seconds for _, seconds in told[:5]) < 2
    assert max(seconds for _, seconds in told[5:]) < 0.2


def test_after_a_hang_no_old_connection_is_trusted(client, breaker, private_redis):
    """An outage may have been a failover: every later answer comes with a later generation."""
    before = client.connections.generation
    private_redis.pause()
    refusals(client, 5)
    private_redis.resume()
    recover(client, breaker)

    answers = in_threads(*[lambda: client.mget(["a"])] * 8)

    assert min(answer.generation for answer in answers) > before


def test_a_lost_reply_is_not_asked_for_again(private_redis, proxy):
    """INCR whose answer got lost has counted once."""
    client = cache_client(proxy.url_for(private_redis.url))
    client.call("INCR", "n")
    proxy.switch(Mode.MUTE)
    with pytest.raises(CacheUnavailable, match="timeout"):
        client.call("INCR", "n")
    proxy.switch(Mode.PASS)

    assert client.mget(["n"]).values == [b"2"]
    client.close()


def test_a_timed_out_reply_never_reaches_the_next_caller(private_redis, proxy):
    """The late answer dies with its connection."""
    client = cache_client(proxy.url_for(private_redis.url), size=1)
    client.pipeline([("SET", "mine", "1"), ("SET", "yours", "2")])
    proxy.switch(Mode.MUTE)
    with pytest.raises(CacheUnavailable, match="timeout"):
        client.mget(["mine"])
    proxy.switch(Mode.PASS)

    assert client.mget(["yours"]).values == [b"2"]
    client.close()


def test_a_reply_that_drips_is_late_as_a_whole(private_redis, proxy):
    """Each byte is in time, the reply is not; the same holds for the handshake of the next connection."""
    client = cache_client(proxy.url_for(private_redis.url), size=1)
    client.call("SET", "a", "x" * 1000)
    proxy.switch(Rule(mode=Mode.DRIP, late_s=0.02))
    told = refusals(client, 2)
    proxy.switch(Mode.PASS)

    assert [reason for reason, _ in told] == ["timeout", "timeout"]
    assert max(seconds for _, seconds in told) < 4
    assert client.call("GET", "a") == b"x" * 1000
    client.close()


def test_connections_reset_while_idle_cost_nothing(private_redis, proxy):
    """A firewall that forgets its connections is not an outage."""
    breaker = CircuitBreaker(failure_threshold=1, clock=time.monotonic)
    client = cache_client(proxy.url_for(private_redis.url), breaker=breaker)
    client.connections.fill()
    proxy.switch(Mode.RESET)
    proxy.switch(Mode.PASS)

    answers = in_threads(*[lambda: client.call("INCR", "n")] * 4)

    assert sorted(answers) == [1, 2, 3, 4]
    assert breaker.state is State.CLOSED
    client.close()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET, Mode.SILENT])
def test_an_unreachable_server_is_left_alone_and_found_again(private_redis, proxy, breaker, mode):
    """Whatever the way to be unreachable: soon an open breaker, then recovery by itself."""
    client = cache_client(proxy.url_for(private_redis.url), breaker=breaker)
    client.connections.fill()
    proxy.switch(mode)
    told = refusals(client, 6)
    proxy.switch(Mode.PASS)
    recover(client, breaker)

    assert told[-1][0] == "open"
    assert max(seconds for _, seconds in told) < 4
    client.close()


@pytest.mark.parametrize(
    ("setting", "value", "reason"), [("maxmemory", "1", "oom"), ("min-replicas-to-write", "1", "noreplicas")]
)
def test_a_server_that_refuses_writes_is_still_read(client, breaker, setting, value, reason):
    """Refused writes, plain or in a script, do not open the breaker: reads are answered."""
    client.call("SET", "a", "1")
    client.call("CONFIG", "SET", setting, value)
    for command in [("SET", "a", "2"), ("EVAL", "return redis.call('SET', KEYS[1], '2')", 1, "a")] * 5:
        with pytest.raises(CacheUnavailable, match=reason):
            client.call(*command)

    assert client.mget(["a"]).values == [b"1"]
    assert breaker.state is State.CLOSED


def test_a_read_only_server_smells_of_a_failover(client, breaker):
    """A replica where the primary was: it is left, and every connection remade."""
    client.call("SET", "a", "1")
    before = client.connections.generation
    client.call("REPLICAOF", "127.0.0.1", "1")
    for command in [("SET", "a", "2"), ("EVAL", "return redis.call('SET', KEYS[1], '2')", 1, "a")] * 2:
        with pytest.raises(CacheUnavailable, match="readonly"):
            client.call(*command)

    read = client.mget(["a"])

    assert read.values == [b"1"]
    assert read.generation > before
    with pytest.raises(CacheUnavailable, match="readonly"):
        client.call("SET", "a", "3")
    assert breaker.state is State.OPEN


def run_for_ever(url):
    """Run a script that never ends, until it is killed."""
    with Redis.from_url(url, socket_timeout=20) as admin, suppress(ResponseError):
        admin.eval("while true do end", 0)


def is_busy(admin):
    """Ask whether a script blocks the server."""
    try:
        admin.ping()
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_a_server_busy_with_a_script_is_an_outage(client, breaker, private_redis):
    """BUSY comes at once and counts; after the script's end everything works."""
    client.call("CONFIG", "SET", "busy-reply-threshold", 1)
    loop = threading.Thread(target=run_for_ever, args=(private_redis.url,))
    loop.start()
    with Redis.from_url(private_redis.url) as admin:
        wait_until(lambda: is_busy(admin), what="BUSY")
        told = refusals(client, 6)
        admin.script_kill()
    loop.join(10)
    recover(client, breaker)

    assert [reason for reason, _ in told] == ["busy"] * 5 + ["open"]


def test_a_full_server_is_an_outage(client, private_redis):
    """A connection beyond maxclients is refused in words, not by the network."""
    client.call("CONFIG", "SET", "maxclients", 1)
    late = cache_client(private_redis.url)

    with pytest.raises(CacheUnavailable, match="refused"):
        late.ping()
