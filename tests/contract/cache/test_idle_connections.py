"""Connections that were closed while idle cause no error, and no command is executed twice."""

from __future__ import annotations

import select
import time
from dataclasses import replace
from functools import partial

import pytest
from redis import Redis
from redis.connection import BlockingConnectionPool, Connection
from redis.exceptions import ConnectionError as DriverConnectionError

from authsvc.cache import CacheClient, CacheUnavailable, CircuitBreaker, Deadlines
from authsvc.cache.redis.connections import socket_options, stamped
from tests.contract.cache.clients import PATIENT, cache_client, in_threads
from tests.processes import wait_until
from tests.servers.proxy import Mode, TcpProxy

pytestmark = pytest.mark.fault

SIZE = 8
#: Patient, and asking each connection for a sign of life before it is used.
ASKING = Deadlines(connect_s=10, read_s=2, wait_s=10, total_s=10, idle_s=0)


@pytest.mark.parametrize("silently", [False, True], ids=["reset", "silent"])
def test_what_a_balancer_cut_is_remade_before_use(private_redis, silently):
    """Neither a reset that comes with the next bytes nor silence fails a step that must not be sent twice."""
    with TcpProxy(private_redis.url) as proxy:
        client = cache_client(proxy.url_for(private_redis.url), size=SIZE, deadlines=ASKING)
        assert client.connections.fill() == SIZE
        proxy.forget(silently=silently)

        replies = in_threads(*[partial(client.call, "INCR", "count")] * SIZE)

        assert sorted(replies) == list(range(1, SIZE + 1))
        client.close()


def test_what_the_server_cut_is_remade_before_use(private_redis):
    """Redis' own ``timeout``: 32 of 32 steps are done, once each."""
    client = cache_client(private_redis.url, size=32)
    assert client.connections.fill() == 32
    with Redis.from_url(private_redis.url) as admin:
        admin.config_set("timeout", 1)
        wait_until(lambda: len(admin.client_list()) == 1, what="idle connections cut")

        replies = in_threads(*[partial(client.call, "INCR", "count")] * 32)

        assert sorted(replies) == list(range(1, 33))
        client.close()


def test_a_connection_in_use_is_not_asked(private_redis):
    """A sign of life costs a round trip: only what lay idle has to give one."""
    client = cache_client(private_redis.url, size=1, deadlines=replace(PATIENT, idle_s=60))
    with Redis.from_url(private_redis.url) as admin:
        client.call("SET", "count", 0)
        admin.config_resetstat()
        for _ in range(10):
            client.call("INCR", "count")

        assert "cmdstat_ping" not in admin.info("commandstats")
    client.close()


class Faltering(Connection):
    """Something befalls it just before it sends."""

    befalls = staticmethod(lambda _: None)

    def send_packed_command(self, command, check_health=True):  # noqa: FBT002 the driver's
        """Send *command* a moment too late."""
        self.befalls(self)
        super().send_packed_command(command, check_health)


def faltering(proxy, fault):
    """A client over *proxy* with one connection; *fault* befalls its second step, once."""
    steps = []

    def befalls(connection):
        steps.append(connection)
        if len(steps) == 2:
            fault(connection)

    limits = Deadlines(connect_s=10, read_s=10, wait_s=10, total_s=10)
    kind = stamped(Faltering, deadlines=limits)
    pool = BlockingConnectionPool(
        max_connections=1, timeout=10, connection_class=kind, host="127.0.0.1", port=proxy.port,
        **socket_options(limits, 2),
    )  # fmt: skip
    client = CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)
    Faltering.befalls = staticmethod(befalls)
    return client


@pytest.fixture(autouse=True)
def steady():
    """Nothing befalls anybody afterwards."""
    yield
    Faltering.befalls = staticmethod(lambda _: None)


def reset_by(proxy):
    """Cut the connection, and let the system here know before anything is sent."""

    def fault(connection):
        proxy.switch(Mode.RESET)
        poll = select.poll()
        poll.register(connection._sock.fileno(), select.POLLERR | select.POLLHUP)  # noqa: SLF001 nobody else has it
        assert poll.poll(10_000)
        proxy.switch(Mode.PASS)

    return fault


@pytest.mark.parametrize("steps", [[("INCR", "count")], [("INCR", "count"), ("INCR", "count")]])
def test_what_was_never_sent_is_sent_again(private_redis, steps):
    """The connection broke before the first byte: one step or several, each is done once."""
    with TcpProxy(private_redis.url) as proxy:
        client = faltering(proxy, reset_by(proxy))
        client.call("SET", "count", 0)

        assert client.pipeline(steps).values == list(range(1, len(steps) + 1))
        assert client.call("GET", "count") == str(len(steps)).encode()
        client.close()


def test_what_may_have_been_done_is_not_sent_again(private_redis):
    """The request left and its answer was lost: told, and done once."""
    with TcpProxy(private_redis.url) as proxy:
        client = faltering(proxy, lambda _: proxy.switch(Mode.CUT))
        client.call("SET", "count", 0)

        with pytest.raises(CacheUnavailable) as refusal:
            client.call("INCR", "count")

        assert isinstance(refusal.value.__cause__, DriverConnectionError)
        proxy.switch(Mode.PASS)
        assert client.call("GET", "count") == b"1"
        client.close()
