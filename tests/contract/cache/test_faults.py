"""What the cache's client makes of a real server that is broken on purpose."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from authsvc.cache import CacheUnavailable, CircuitBreaker, Deadlines, State
from tests.contract.cache.clients import cache_client, in_threads
from tests.contract.copies.redis_side import Stopwatch
from tests.processes import wait_until
from tests.servers.proxy import Mode, Rule, TcpProxy

pytestmark = pytest.mark.fault

#: Longer than any call waits, even on a busy machine.
HOPELESS_S = 15
RECOVERY_S = 2
#: As in the service, for what is never answered; other clients here wait for as long as it takes.
HASTY = Deadlines(connect_s=0.25, read_s=0.25, wait_s=0.1, total_s=0.4)


@pytest.fixture
def clock():
    """Return the breaker's clock: no time passes before somebody waits for a recovery."""
    return Stopwatch()


@pytest.fixture
def breaker(clock):
    """Return a breaker that lets probes through after a pause."""
    return CircuitBreaker(recovery_timeout_s=RECOVERY_S, clock=clock)


@pytest.fixture
def recover(breaker, clock):
    """Let time pass, and a client ask, until the breaker is closed again."""

    def ask_until_closed(client):
        def is_closed():
            clock.tick(RECOVERY_S)
            with suppress(CacheUnavailable):
                client.ping()
            return breaker.state is State.CLOSED

        wait_until(is_closed, what="recovery")

    return ask_until_closed


@pytest.fixture
def client(private_redis, breaker):
    """Return a client with eight open connections to a server to break."""
    client = cache_client(private_redis.url, size=8, breaker=breaker)
    client.connections.fill()
    yield client
    client.close()


@pytest.fixture
def hasty(breaker):
    """Make clients that give up soon, with open connections."""
    with ExitStack() as stack:

        def connected(url, **options):
            client = cache_client(url, **{"breaker": breaker, "deadlines": HASTY, **options})
            stack.callback(client.close)
            size = options.get("size", 4)
            wait_until(lambda: client.connections.fill() == size, what="connections")
            return client

        yield connected


def answered(client, *command):
    """Return the answer that comes in time; on a busy machine not every one does."""
    found = []

    def is_answered():
        with suppress(CacheUnavailable):
            found.append(client.pipeline([command]))
        return bool(found)

    wait_until(is_answered, what="an answer")
    return found[0]


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


def test_a_dead_server_is_refused_at_once(client, breaker, private_redis, recover):
    """Five refusals open the breaker, none takes long; it recovers by itself."""
    private_redis.kill()
    told = refusals(client, 7)
    private_redis.start()
    recover(client)

    assert [reason for reason, _ in told] == ["refused"] * 5 + ["open"] * 2
    assert max(seconds for _, seconds in told) < HOPELESS_S


def test_a_restart_is_survived_by_every_connection(client, breaker, private_redis):
    """No connection from before the restart gets to fail; all of them show new generations."""
    before = client.connections.generation
    private_redis.kill()
    private_redis.start()

    answers = in_threads(*[lambda: client.mget(["a"])] * 8)

    assert [answer.values for answer in answers] == [[None]] * 8
    assert min(answer.generation for answer in answers) > before
    assert breaker.state is State.CLOSED


def test_a_hung_server_costs_a_quarter_of_a_second_each_time(hasty, breaker, private_redis, recover):
    """Five time-outs, then nothing is sent; after it wakes up everything works."""
    client = hasty(private_redis.url)
    private_redis.pause()
    told = refusals(client, 7)
    private_redis.resume()
    recover(client)

    assert [reason for reason, _ in told] == ["timeout"] * 5 + ["open"] * 2
    assert max(seconds for _, seconds in told) < HOPELESS_S


def test_after_a_hang_no_old_connection_is_trusted(hasty, breaker, private_redis, recover):
    """An outage may have been a failover: every later answer comes with a later generation."""
    client = hasty(private_redis.url, size=8)
    before = client.connections.generation
    private_redis.pause()
    refusals(client, 5)
    private_redis.resume()
    recover(client)

    answers = in_threads(*[lambda: answered(client, "GET", "a")] * 8)

    assert min(answer.generation for answer in answers) > before


def test_a_lost_reply_is_not_asked_for_again(private_redis, proxy, hasty, client):
    """INCR whose answer got lost has counted once."""
    losing = hasty(proxy.url_for(private_redis.url))
    proxy.switch(Mode.MUTE)
    with pytest.raises(CacheUnavailable, match="timeout"):
        losing.call("INCR", "n")
    wait_until(lambda: client.call("EXISTS", "n") == 1, what="the request's arrival")
    proxy.switch(Mode.PASS)
    answered(losing, "PING")

    assert client.call("GET", "n") == b"1"


def test_a_timed_out_reply_never_reaches_the_next_caller(private_redis, proxy, hasty, client):
    """The late answer dies with its connection."""
    client.pipeline([("SET", "mine", "1"), ("SET", "yours", "2")])
    losing = hasty(proxy.url_for(private_redis.url), size=1)
    proxy.switch(Mode.MUTE)
    with pytest.raises(CacheUnavailable, match="timeout"):
        losing.mget(["mine"])
    proxy.switch(Mode.PASS)

    assert answered(losing, "GET", "yours").values == [b"2"]


def test_a_reply_that_drips_is_late_as_a_whole(private_redis, proxy, hasty, client):
    """Each byte is in time, the reply is not; the same holds for the handshake of the next connection."""
    client.call("SET", "a", "x" * 1000)
    client = hasty(proxy.url_for(private_redis.url), size=1)
    proxy.switch(Rule(mode=Mode.DRIP, late_s=0.02))
    told = refusals(client, 2)
    proxy.switch(Mode.PASS)

    assert [reason for reason, _ in told] == ["timeout", "timeout"]
    assert max(seconds for _, seconds in told) < HOPELESS_S
    assert answered(client, "GET", "a").values == [b"x" * 1000]


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
def test_an_unreachable_server_is_left_alone_and_found_again(
    private_redis, proxy, hasty, breaker, mode, recover
):
    """Whatever the way to be unreachable: soon an open breaker, then recovery by itself."""
    client = hasty(proxy.url_for(private_redis.url))
    proxy.switch(mode)
    told = refusals(client, 6)
    proxy.switch(Mode.PASS)
    recover(client)

    assert told[-1][0] == "open"
    assert max(seconds for _, seconds in told) < HOPELESS_S


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
    with Redis.from_url(url, socket_timeout=120) as admin, suppress(ResponseError):
        admin.eval("while true do end", 0)


def is_busy(admin):
    """Ask whether a script blocks the server."""
    try:
        admin.ping()
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_a_server_busy_with_a_script_is_an_outage(client, breaker, private_redis, recover):
    """BUSY comes at once and counts; after the script's end everything works."""
    client.call("CONFIG", "SET", "busy-reply-threshold", 1)
    loop = threading.Thread(target=run_for_ever, args=(private_redis.url,))
    loop.start()
    with Redis.from_url(private_redis.url) as admin:
        wait_until(lambda: is_busy(admin), what="BUSY")
        told = refusals(client, 6)
        admin.script_kill()
    loop.join(60)
    recover(client)

    assert [reason for reason, _ in told] == ["busy"] * 5 + ["open"]


def test_a_full_server_is_an_outage(client, private_redis):
    """A connection beyond maxclients is refused in words, not by the network."""
    client.call("CONFIG", "SET", "maxclients", 1)
    late = cache_client(private_redis.url)

    with pytest.raises(CacheUnavailable, match="refused"):
        late.ping()
