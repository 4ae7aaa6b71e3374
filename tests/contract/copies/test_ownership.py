"""Data of another installation: never believed, never written to, never taken for a log that went back."""

from __future__ import annotations

from contextlib import closing

import pytest
from redis import Redis
from sqlalchemy import select, update

from authsvc.cache.errors import CacheUnavailable
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.store.copies.ownership import installation_id
from authsvc.store.migrations import upgrade
from authsvc.store.tables import installation, users
from tests.contract.copies.reconciling import World
from tests.contract.copies.redis_side import KEYS, Process
from tests.contract.store.stores import Stores, open_database
from tests.servers import RedisServer
from tests.servers.proxy import Mode, TcpProxy


@pytest.fixture
def staging(tmp_path, own_redis, world):
    """A service with a database of its own, and by mistake with the Redis of *world*."""
    with closing(open_database(f"sqlite:///{tmp_path / 'staging.db'}")) as database:
        upgrade(database)
        stores = Stores.over(database)
        other = World(stores, own_redis)
        yield other
        for process in other.processes:
            process.close()


@pytest.fixture
def elsewhere(world):
    """A second Redis, which belongs to another installation."""
    with RedisServer() as server, Redis.from_url(server.url) as client:
        client.set(KEYS.installation, new_id())
        client.set(KEYS.marker, 7000)
        yield server


def everything(world: World) -> dict[bytes, object]:
    """All of Redis but lives."""
    return {key: world.redis.dump(key) for key in world.redis.scan_iter()}


class TestOwn:
    """A Redis that is ours, or becomes it."""

    def test_an_empty_redis_becomes_ours_for_good(self, world):
        """The id of SQL, without an end."""
        process, _ = world.start()

        assert process.reconciler.tick()

        assert world.redis.get(KEYS.installation) == installation_id(world.stores.database).encode()
        assert world.redis.ttl(KEYS.installation) == -1

    def test_one_from_before_the_id_becomes_ours(self, world):
        """An upgrade: a marker and no id."""
        process, _ = world.start()
        process.reconciler.tick()
        world.redis.delete(KEYS.installation)

        assert process.reconciler.tick()
        assert process.is_proven()
        assert world.redis.exists(KEYS.installation)

    def test_a_flushed_one_is_refilled(self, world):
        """It has neither id nor marker."""
        keys = world.fill_log(3)
        process, _ = world.start()
        process.reconciler.tick()
        world.redis.flushall()

        assert process.reconciler.tick()

        assert process.is_proven()
        assert world.tombstones() == keys
        assert world.redis.exists(KEYS.installation)

    def test_a_row_that_was_lost_is_made_again(self, world):
        """A restore of data alone may have left it out; all processes agree on the new one."""
        with world.stores.database.transaction() as connection:
            connection.execute(installation.delete())

        assert installation_id(world.stores.database) == installation_id(world.stores.database)


class TestForeign:
    """A Redis that is another's."""

    def test_nothing_of_it_is_touched_and_nobody_is_cut_off(self, world, staging):
        """Theirs stays proven to them; ours is asked of SQL; no epoch rises and the log stays as it is."""
        world.fill_log(5)
        theirs, _ = world.start()
        theirs.reconciler.tick()
        user = staging.stores.register()
        head, before = staging.stores.log.head(), everything(world)
        ours, _ = staging.start()

        ticks = [ours.reconciler.tick() for _ in range(3)]

        assert ticks == [False] * 3
        assert everything(world) == before
        assert staging.stores.log.head() == head
        with staging.stores.database.read() as connection:
            assert connection.execute(select(users.c.epoch)).scalars().all() == [user.epoch]
        assert theirs.reconciler.tick()
        assert theirs.is_proven()

    def test_requests_do_without_it(self, world, staging):
        """As without any: nothing is read there, nothing written, and a revocation says so."""
        theirs, _ = world.start()
        theirs.reconciler.tick()
        ours, _ = staging.start()
        ours.reconciler.tick()
        draft = staging.stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "test")
        with staging.stores.database.transaction() as connection:
            entries = staging.stores.log.append(connection, [draft])
        before = everything(world)

        with pytest.raises(StoreUnavailable):
            ours.index.write(entries)
        with pytest.raises(StoreUnavailable):
            ours.is_proven()
        assert everything(world) == before

    def test_a_wrong_server_after_a_failover_is_not_believed(self, world, elsewhere):
        """The address leads elsewhere and back: distrusted meanwhile, right again without a restart."""
        keys = world.fill_log(3)
        with TcpProxy(world.server.url) as proxy:
            process, _ = world.start(url=proxy.url_for(world.server.url))
            assert process.reconciler.tick()
            proxy.switch(Mode.RESET)
            right, proxy.target = proxy.target, (elsewhere.host, elsewhere.port)
            proxy.switch(Mode.PASS)

            assert not settled(process)
            with Redis.from_url(elsewhere.url) as client:
                assert client.get(KEYS.marker) == b"7000"
                assert client.dbsize() == 2
            proxy.switch(Mode.RESET)
            proxy.target = right
            proxy.switch(Mode.PASS)
            assert settled(process)
            assert world.tombstones() == keys
            assert world.stores.log.head() == 3

    def test_a_database_that_became_another_s_is_not_taken_for_a_restored_one(self, world):
        """A wrong DATABASE_URL after a change of names: its log is shorter, and nobody is cut off in it."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        user = world.stores.register()
        world.forget_after(2)
        with world.stores.database.transaction() as connection:
            connection.execute(update(installation).values(id=new_id()))

        with pytest.raises(StoreUnavailable, match="another installation"):
            process.reconciler.tick()

        with world.stores.database.read() as connection:
            assert connection.execute(select(users.c.epoch)).scalars().all() == [user.epoch]
        assert world.stores.log.head() == 2


def settled(process: Process) -> bool:
    """The outcome of a comparison, once the connections that were cut are gone."""
    for _ in range(3):
        try:
            outcome = process.reconciler.tick()
        except CacheUnavailable:  # a connection that was reset
            continue
    return outcome
