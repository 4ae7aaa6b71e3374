"""When Redis may be believed: connections break and lead elsewhere, and all of it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, cast

import pytest
from redis import Redis

from authsvc.cache import Command
from authsvc.cache.errors import CacheError
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Revocation
from authsvc.domain.values.emails import Email
from authsvc.store.copies.heartbeat import Heartbeat, HeartbeatTimings
from authsvc.store.copies.index import RedisIndex
from tests.contract.cache.clients import in_threads
from tests.contract.copies.reconciling import World, nothing
from tests.contract.copies.redis_side import KEYS, Process, access_token
from tests.processes import wait_until
from tests.servers.proxy import TcpProxy

ALICE = Email("alice@example.com")


class Interrupted:
    """An index that lets something happen behind every write."""

    def __init__(self, index: RedisIndex, happen: Callable[[], None]) -> None:
        self._index = index
        self._happen = happen

    def parts(self, page: Sequence[Revocation]) -> dict[int, list[Command]]:
        """What is written."""
        return self._index.parts(page)

    def wrote(self, *_: Any) -> None:
        """Let it happen."""
        self._happen()


class TestConnections:
    """After every reconnect: first compare, then trust."""

    def test_new_connections_of_checks_wait_for_the_next_comparison(self, quick_world):
        """They say so, and are trusted after it."""
        process, _ = quick_world.start()
        process.reconciler.tick()
        assert process.is_proven()
        before = process.hooks.new_connections

        quick_world.kill_connections(of=process)
        assert not process.is_proven()
        assert process.hooks.new_connections > before

        assert process.reconciler.tick()
        assert process.is_proven()

    def test_a_lost_connection_of_the_reconciler_has_all_others_remade(self, quick_world):
        """Those that were made before may lead to another server than it does now."""
        process, _ = quick_world.start()
        process.reconciler.tick()
        process.checks.connections.fill()

        before = quick_world.connections(of=process)
        quick_world.redis.client_kill_filter(_id=process.connection_id())
        with suppress(CacheError):
            process.reconciler.tick()
        assert process.reconciler.tick()

        assert quick_world.connections(of=process).isdisjoint(before)
        assert process.is_proven()

    def test_a_connection_made_during_a_comparison_is_not_trusted_by_it(self, quick_world):
        """Only what was there before the comparison began was compared."""
        process, log = quick_world.start()
        process.reconciler.tick()

        def reconnect() -> None:
            process.checks.connections.suspect()
            process.checks.ping()

        log.after_head = reconnect

        process.reconciler.tick()
        assert not process.is_proven()
        assert process.reconciler.tick()
        assert process.is_proven()

    def test_the_reconciler_follows_checks_that_lead_elsewhere(self, quick_world, private_redis):
        """An address was moved: new connections reach the new server, the reconciler's old one does not."""
        keys = quick_world.fill_log(2)
        with TcpProxy(quick_world.server.url) as proxy, Redis.from_url(private_redis.url) as other:
            process, _ = quick_world.start(url=proxy.url_for(quick_world.server.url))
            process.reconciler.tick()
            proxy.target = (private_redis.host, private_redis.port)
            other.set(KEYS.marker, "2", px=100_000)
            process.checks.connections.suspect()
            token = access_token(quick_world.stores.clock)
            process.index.remember([(token, ALICE)])
            assert other.get(KEYS.token(token.token_id)) is not None

            for _ in range(2):
                process.reconciler.tick()

            other.delete(KEYS.marker)
            assert not process.is_proven()
            assert process.reconciler.tick()
            assert {key for key in other.scan_iter() if other.get(key) == b"ended"} == keys

    @pytest.mark.parametrize("start", ["behind a marker", "empty"])
    def test_a_failover_between_a_page_and_its_marker_loses_nothing(self, quick_world, private_redis, start):
        """The replica lacks the page: the marker must not come to stand on it, whoever reads it."""
        world = quick_world
        happened: list[bytes | None] = []
        with TcpProxy(world.server.url) as proxy, Redis.from_url(private_redis.url) as replica:
            process, _ = world.start(url=proxy.url_for(world.server.url))
            if start == "behind a marker":
                process.reconciler.tick()
            keys = world.fill_log(3)

            def fail_over() -> None:
                if not happened:
                    happened.append(world.marker())
                    replica.set(KEYS.marker, world.marker(), px=100_000)
                    proxy.target = (private_redis.host, private_redis.port)
                    process.reconciling.connections.suspect()

            process.reconciler.index = cast("RedisIndex", Interrupted(process.reconciler.index, fail_over))
            with suppress(CacheError, StoreUnavailable):
                assert not process.reconciler.tick()

            assert replica.get(KEYS.marker) == happened[0]
            if start == "empty":
                replica.delete(KEYS.marker)  # the claim of who died, at its end
            assert process.reconciler.tick()
            assert {key for key in replica.scan_iter() if replica.get(key) == b"ended"} == keys
            assert replica.get(KEYS.marker) == b"3"


@contextmanager
def beating(world: World, *, interval_s: float) -> Iterator[tuple[Process, Heartbeat, threading.Semaphore]]:
    """A process that compares on a thread of its own, and a semaphore that counts the comparisons."""
    process, _ = world.start()
    beats = threading.Semaphore(0)
    heartbeat = Heartbeat(process.reconciler, beats.release, HeartbeatTimings(interval_s=interval_s))
    heartbeat.start()
    try:
        yield process, heartbeat, beats
    finally:
        heartbeat.close()


class TestHeartbeat:
    """The comparison on a thread of its own."""

    def test_it_outlives_every_outage(self, stores, private_redis):
        """A beat says whether Redis is proven, and never raises."""
        with closing(World(stores, private_redis)) as world:
            process, log = world.start()
            heartbeat = Heartbeat(process.reconciler, alongside=nothing)
            assert heartbeat.beat()

            private_redis.kill()
            assert not heartbeat.beat()
            log.is_down = True
            assert not heartbeat.beat()
            private_redis.start()
            assert not heartbeat.beat()
            log.is_down = False

            assert heartbeat.beat()

    def test_it_compares_again_and_again_until_it_is_closed(self, quick_world):
        """Every second; a lost marker is back by itself."""
        assert HeartbeatTimings().interval_s == 1
        with beating(quick_world, interval_s=0.2) as (process, _, beats):
            wait_until(process.is_proven, what="proven")
            quick_world.redis.flushall()
            wait_until(process.is_proven, what="proven again")

        while beats.acquire(blocking=False):
            pass
        assert not beats.acquire(timeout=0.5)

    def test_woken_it_does_not_wait(self, quick_world):
        """A new connection is compared at once; by itself the next comparison would come in an hour."""
        with beating(quick_world, interval_s=3600) as (process, heartbeat, beats):
            assert beats.acquire(timeout=60)
            quick_world.kill_connections(of=process)
            assert not process.is_proven()

            heartbeat.wake()

            wait_until(process.is_proven, what="proven again")


class Storm:
    """Processes compare and revoke, and Redis loses its data, all at once and as fast as they can."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.processes = [world.start()[0] for _ in range(3)]
        self.revoked: list[bytes] = []
        self.is_over = threading.Event()

    def compare(self, process: Process) -> None:
        """Until it is over."""
        while not self.is_over.is_set():
            with suppress(CacheError, StoreUnavailable):
                process.reconciler.tick()

    def revoke(self, process: Process) -> None:
        """Every other time without Redis."""
        for turn in range(60):
            with suppress(StoreUnavailable):
                self.revoked.append(self.world.revoke(by=process if turn % 2 else None))

    def has_revoked(self, count: int) -> bool:
        """Whether that many have been acknowledged."""
        return len(self.revoked) >= count

    def lose(self) -> None:
        """Everything, eight times, each after another 18 of the 180 revocations."""
        for count in range(18, 145, 18):
            wait_until(partial(self.has_revoked, count), what=f"{count} revocations")
            self.world.redis.flushall()
        self.is_over.set()


def test_a_whole_storm_ends_with_every_revocation_in_redis(postgres_world):
    """Whatever was lost between any two steps: as soon as Redis is proven, nothing is missing."""
    storm = Storm(postgres_world)
    compare = [partial(storm.compare, process) for process in storm.processes]
    revoke = [partial(storm.revoke, process) for process in storm.processes]

    assert in_threads(*compare, *revoke, storm.lose) == [None] * 7
    for process in storm.processes:
        wait_until(process.reconciler.tick, what="proven")

    assert len(storm.revoked) > 150
    assert postgres_world.tombstones() >= set(storm.revoked)
    assert all(process.is_proven() for process in storm.processes)
