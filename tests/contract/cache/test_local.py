"""The first level in the process: bounded, short-lived, told of what others drop, healed after silence."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from redis import Redis

from authsvc.cache import (
    MISSING,
    Aside,
    CacheUnavailable,
    Display,
    Invalidations,
    Near,
    Records,
    RedisAddress,
    bounded_pool,
)
from authsvc.cache.local import DEAF_AFTER_S
from tests.contract.cache.clients import KEYS, PATIENT, SHAPE, SPACE, Row, cache_client
from tests.processes import wait_until
from tests.servers.proxy import Mode, Rule, TcpProxy


class Table:
    """The truth, and a count of its loads."""

    def __init__(self):
        self.version = 1
        self.loads = 0
        self.meanwhile = lambda: None

    def __call__(self, ident):
        """Load a row, with something happening between the read and the return."""
        self.loads += 1
        row = Row(ident, self.version)
        self.meanwhile()
        return row


class Process:
    """What one process has: client, subscription, first level, clock."""

    def __init__(self, url, *, max_entries=100, listens_at=None):
        self.now_s = 1000.0
        self.client = cache_client(url)
        aside = Aside(
            Records(
                client=self.client,
                space=SPACE,
                shape=SHAPE,
                lease_ms=60_000,
                rng=lambda: 0.5,
                display=Display(on_error_s=60, errors=(ConnectionError,)),
            )
        )
        self.aside = aside
        pool = bounded_pool(RedisAddress.from_url(listens_at or url), size=1, deadlines=PATIENT)
        self.invalidations = Invalidations(pool, KEYS)
        self.near = Near(
            aside, self.invalidations, ttl_s=3, max_entries=max_entries, clock=lambda: self.now_s
        )
        self.invalidations.start()
        assert self.invalidations.is_listening.wait(60)

    def close(self):
        """Stop."""
        self.invalidations.close()
        self.client.close()


@pytest.fixture
def table():
    """Return a table."""
    return Table()


@pytest.fixture
def one(redis_url):
    """Return one process."""
    process = Process(redis_url)
    yield process
    process.close()


@pytest.fixture
def other(redis_url):
    """Return another."""
    process = Process(redis_url)
    yield process
    process.close()


def test_what_is_kept_is_read_without_redis(one, table):
    """The second time nothing is asked."""
    one.near.get_or_load("7", table)
    one.client.call("DEL", SPACE.key("7"))

    assert one.near.get_or_load("7", table) == Row("7", 1)
    assert table.loads == 1


def test_after_its_seconds_redis_is_asked(one, table):
    """By the clock given."""
    one.near.get_or_load("7", table)
    one.client.call("DEL", SPACE.key("7"))
    one.now_s += 3

    one.near.get_or_load("7", table)

    assert table.loads == 2


def test_the_number_is_bounded(redis_url, table):
    """The least recently used record is dropped."""
    process = Process(redis_url, max_entries=2)
    for ident in ("a", "b", "a", "c"):
        process.near.get_or_load(ident, table)
    process.client.call("DEL", *(SPACE.key(ident) for ident in "abc"))
    for ident in ("a", "c", "b"):
        process.near.get_or_load(ident, table)

    assert len(process.near) == 2
    assert table.loads == 4
    process.close()


def test_a_drop_is_seen_here_at_once_and_there_soon(one, other, table):
    """Without waiting for the seconds to pass."""
    one.near.get_or_load("7", table)
    other.near.get_or_load("7", table)
    table.version = 2

    one.near.drop(["7"])

    assert one.near.get_or_load("7", table) == Row("7", 2)
    wait_until(lambda: other.near.get_or_load("7", table) == Row("7", 2), what="the other process")


def test_drops_can_travel_with_other_commands(one, other, table):
    """One round trip for all that a change means."""
    other.near.get_or_load("7", table)
    table.version = 2

    one.client.pipeline([("SET", "lib:v1:x", "1"), *one.near.drop_commands(["7"])])

    wait_until(lambda: other.near.get_or_load("7", table) == Row("7", 2), what="the other process")


def test_a_drop_while_loading_is_not_overtaken(one, table):
    """What was on its way here is returned and not kept."""
    table.meanwhile = lambda: one.near.drop(["7"])

    one.near.get_or_load("7", table)

    assert len(one.near) == 0


def test_channels_stay_under_the_prefix(redis_url, one):
    """As the ACL has it."""
    with Redis.from_url(redis_url) as client:
        assert client.pubsub_channels() == [b"lib:v1:invalidations"]


def test_nothing_is_kept_while_nobody_listens(private_redis, table):
    """Cut off from the channel, a process forgets all and keeps nothing, and keeps again once it listens."""
    with TcpProxy(private_redis.url) as proxy:
        cut = Process(private_redis.url, listens_at=proxy.url_for(private_redis.url))
        cut.near.get_or_load("7", table)
        proxy.switch(Mode.REFUSE)
        wait_until(lambda: not cut.invalidations.is_listening.is_set(), what="deaf")
        wait_until(lambda: len(cut.near) == 0, what="forgotten")
        table.version = 2
        cut.aside.drop(["7"])

        assert cut.near.get_or_load("7", table) == Row("7", 2)
        assert len(cut.near) == 0
        proxy.switch(Mode.PASS)
        assert cut.invalidations.is_listening.wait(60)
        cut.near.get_or_load("7", table)
        assert len(cut.near) == 1
        cut.close()


@pytest.mark.parametrize("rule", [Rule(mode=Mode.SILENT), Rule(mode=Mode.DRIP, late_s=0.15)])
def test_a_subscription_that_says_nothing_whole_is_given_up(private_redis, table, rule):
    """Half open, or with a message that never ends: nothing else tells."""
    with TcpProxy(private_redis.url) as proxy:
        deaf = Process(private_redis.url, listens_at=proxy.url_for(private_redis.url))
        deaf.near.get_or_load("7", table)
        proxy.switch(rule)
        with Redis.from_url(private_redis.url) as client:
            client.publish(deaf.invalidations.channel, "x" * 200)

        wait_until(lambda: not deaf.invalidations.is_listening.is_set(), what="deaf")
        wait_until(lambda: len(deaf.near) == 0, what="forgotten")
        proxy.switch(Mode.PASS)
        assert deaf.invalidations.is_listening.wait(60)
        deaf.close()


def test_a_quiet_subscription_is_kept(private_redis, table):
    """Where nothing is dropped for long, answers to PING are a sign of life, and nothing is forgotten."""
    with TcpProxy(private_redis.url) as proxy:
        quiet = Process(private_redis.url, listens_at=proxy.url_for(private_redis.url))
        quiet.near.get_or_load("7", table)
        began_s = time.monotonic()

        wait_until(lambda: time.monotonic() - began_s > 2 * DEAF_AFTER_S, what="silence")

        assert quiet.invalidations.is_listening.is_set()
        assert len(quiet.near) == 1
        quiet.close()


def test_a_drop_that_redis_does_not_get_is_told(private_redis, table):
    """It holds here; that it does not elsewhere is the caller's to know."""
    process = Process(private_redis.url)
    process.near.get_or_load("7", table)
    private_redis.kill()

    with pytest.raises(CacheUnavailable):
        process.near.drop(["7"])
    assert len(process.near) == 0
    process.close()


def test_what_is_not_for_display_is_refused(one):
    """Status and roles are never kept in a process."""
    with pytest.raises(ValueError, match="displayed"):
        Near(
            replace(one.aside, records=replace(one.aside.records, display=None)),
            one.invalidations,
            ttl_s=1,
            max_entries=1,
            clock=time.monotonic,
        )


def test_nothing_there_is_not_kept(one):
    """The cache in Redis may remember it, this one does not."""
    assert one.near.get_or_load("9", lambda _: MISSING) is MISSING
    assert len(one.near) == 0
