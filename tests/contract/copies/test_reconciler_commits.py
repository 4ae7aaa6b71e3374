"""When Redis is trusted: others commit slowly, out of order, or to a restored log."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Committed, Revocations
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.store.copies.backlog import Backlog
from tests.contract.copies.redis_side import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.copies.reconciling import World
    from tests.contract.copies.redis_side import Process


@contextmanager
def uncommitted(world: World) -> Iterator[bytes]:
    """An entry that has its number and is committed at the end; the key of its tombstone."""
    log = world.stores.log
    draft = log.draft_end(UserId(new_id()), SessionId(new_id()), "late")
    with world.stores.database.transaction() as connection:
        log.append(connection, [draft])
        yield KEYS.session(draft.session_id or "").encode()


def set_back(world: World, statement: str) -> None:
    """Change the log behind the back of the service."""
    with world.stores.database.transaction() as connection:
        connection.exec_driver_sql(statement)


class TestSlowCommits:
    """A number below the head is still to come: that holds up the marker, and nothing else."""

    def test_what_is_visible_is_written_at_once(self, postgres_world):
        """By each process, once; the marker waits, and Redis is believed meanwhile."""
        world = postgres_world
        process, _ = world.start()
        assert process.reconciler.tick()

        with uncommitted(world) as late:
            keys = {world.revoke(), world.revoke()}
            assert process.reconciler.tick()
            assert world.tombstones() == keys
            assert (world.marker(), process.is_proven()) == (b"0", True)

            world.redis.delete(*keys)
            more = {world.revoke()}
            assert process.reconciler.tick()
            assert world.tombstones() == more, "what was written is not written again"
            assert process.is_proven()

        assert process.reconciler.tick()
        assert world.tombstones() == more | {late}
        assert (world.marker(), process.is_proven()) == (b"4", True)

    def test_the_marker_moves_though_somebody_always_commits(self, postgres_world):
        """As soon as those have ended that were under way behind a look."""
        world = postgres_world
        process, _ = world.start()
        process.reconciler.tick()
        markers = []

        with ExitStack() as before:
            before.enter_context(uncommitted(world))
            for _ in range(4):
                world.revoke()
                assert process.reconciler.tick()
                markers.append(int(world.marker()))
                following = ExitStack()
                following.enter_context(uncommitted(world))
                before.close()
                before.push(following)

        assert markers == sorted(markers)
        assert markers[-1] > markers[1] > 0

    def test_redis_that_lost_it_is_told_again(self, postgres_world):
        """Emptied while the marker is behind: all that is visible is written anew."""
        world = postgres_world
        process, _ = world.start()
        process.reconciler.tick()

        with uncommitted(world):
            keys = {world.revoke(), world.revoke()}
            process.reconciler.tick()
            world.redis.flushall()
            assert not process.is_proven()

            assert process.reconciler.tick()
            assert world.tombstones() == keys
            assert (world.marker(), process.is_proven()) == (b"0", True)

    def test_redis_that_lost_the_seal_is_told_again(self, postgres_world):
        """The marker stands, what was written above it may be gone: as after a moment as a replica."""
        world = postgres_world
        process, _ = world.start()
        process.reconciler.tick()

        with uncommitted(world):
            keys = {world.revoke(), world.revoke()}
            process.reconciler.tick()
            world.redis.delete(*(key for key in world.redis.scan_iter() if key != KEYS.marker.encode()))

            assert process.reconciler.tick()
            assert world.tombstones() == keys

    def test_a_refill_begins_at_the_beginning(self, postgres_world):
        """The marker was removed, by hand or by who saw a restored log: nothing written before counts."""
        world = postgres_world
        process, _ = world.start()
        keys = {world.revoke()}
        process.reconciler.tick()

        with uncommitted(world):
            keys |= {world.revoke(), world.revoke()}
            process.reconciler.tick()
            world.redis.delete(KEYS.marker, *keys)

            assert process.reconciler.tick()
            assert world.tombstones() == keys
            assert world.marker() == b"1"

    def test_a_new_process_does_not_fill_redis_before_it_knows_how_far(self, postgres_world):
        """Nobody has told it, and somebody may commit below any head that it sees."""
        world = postgres_world
        process, _ = world.start()

        with uncommitted(world):
            world.revoke()
            assert not process.reconciler.tick()
            assert not process.reconciler.tick()
            assert world.marker() is None

        assert process.reconciler.tick()
        assert world.marker() == b"2"

    def test_a_new_process_goes_on_from_the_marker_of_others(self, postgres_world):
        """They have found out how far nothing is to come; what lies above it writes by itself."""
        world = postgres_world
        first, _ = world.start()
        first.reconciler.tick()

        with uncommitted(world) as late:
            key = world.revoke()
            second, _ = world.start()
            assert second.reconciler.tick()
            assert second.is_proven()
            assert world.tombstones() == {key}

        assert second.reconciler.tick()
        assert world.tombstones() == {key, late}

    def test_many_gaps_are_read_as_a_few(self, postgres_world):
        """However many numbers are missing, what is asked of SQL stays short, and all of them are found."""
        world = postgres_world
        process, _ = world.start()
        for shard in process.reconciler.servers.shards:
            shard.backlog = Backlog(most_ranges=3)
        process.reconciler.tick()

        with ExitStack() as writers:
            late, keys = set(), set()
            for _ in range(8):
                late.add(writers.enter_context(uncommitted(world)))
                keys.add(world.revoke())
            assert process.reconciler.tick()
            assert world.tombstones() == keys
        assert process.reconciler.tick()

        assert world.tombstones() == keys | late
        assert world.marker() == b"16"


class TestNumbersThatGoBack:
    """A log whose numbers, or whose entries, are not those that were seen before."""

    def publish(self, world: World, process: Process) -> bytes:
        """A revocation as a request makes it; the key of its tombstone."""
        draft = world.stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "test")
        with world.stores.database.transaction() as connection:
            entries = world.stores.log.append(connection, [draft])
        assert Revocations(process.index, process.index.proofs).publish(Committed(None, entries)).is_complete
        return KEYS.session(draft.session_id or "").encode()

    def test_a_restore_right_after_a_commit_is_noticed(self, world, caplog):
        """Head and marker are the same again; the process knows that it has committed more."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        self.publish(world, process)
        world.forget_after(5)

        assert process.reconciler.tick()

        assert "revocations.rewound" in caplog.messages
        assert world.stores.log.head() == 6

    def test_everybody_is_cut_off_once_though_the_log_cannot_be_moved_on_at_once(self, world, monkeypatch):
        """A second cut would be another entry for every user, each second."""
        user = world.stores.register()
        world.fill_log(20)
        process, log = world.start()
        process.reconciler.tick()
        head = world.stores.log.head()
        world.forget_after(head - 10)

        def no_lock(_: int) -> None:
            raise StoreUnavailable("sql")

        with monkeypatch.context() as patch:
            patch.setattr(log, "skip_to", no_lock)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    process.reconciler.tick()
        assert process.reconciler.tick()

        raised = world.stores.users.get(user.id).epoch - user.epoch
        assert raised == 11
        assert world.stores.log.head() == head

    @pytest.mark.parametrize("witness", ["redis", "process"])
    def test_a_restored_log_that_has_grown_again_is_noticed(self, world, caplog, witness):
        """Another entry has the number of the marker: what is new below it was never in Redis."""
        user = world.stores.register()
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        head = world.stores.log.head()
        world.forget_after(head - 3)
        keys = world.fill_log(4)
        if witness == "redis":
            process, _ = world.start()
        else:
            world.redis.flushall()

        assert process.reconciler.tick()

        assert "revocations.rewound" in caplog.messages
        assert world.tombstones() >= keys
        assert world.stores.users.get(user.id).epoch > user.epoch + head
        caplog.clear()
        assert process.reconciler.tick()
        assert caplog.messages == []

    def test_a_pruned_entry_is_no_restored_log(self, world, caplog):
        """Nobody has the number of the marker any more: nothing speaks against this log."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        world.fill_log(1)
        set_back(world, "DELETE FROM revocations WHERE seq = 5")

        assert process.reconciler.tick()
        assert "revocations.rewound" not in caplog.messages
        assert world.marker() == b"6"

    def test_numbers_behind_the_log_are_set_right(self, postgres_world, caplog):
        """Before anybody takes one; said once, in the log."""
        world = postgres_world
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        set_back(world, "ALTER SEQUENCE revocations_seq_seq RESTART")

        assert process.reconciler.tick()
        assert caplog.messages.count("revocations.numbers_behind") == 1

        assert process.reconciler.tick()
        assert caplog.messages.count("revocations.numbers_behind") == 1
        key = world.revoke()
        assert world.stores.log.head() == 6
        assert process.reconciler.tick()
        assert key in world.tombstones()

    def test_a_marker_that_an_older_version_moved_is_believed(self, world, caplog):
        """It writes the number alone, beside the name of an earlier entry; the next comparison names it."""
        process, _ = world.start()
        world.fill_log(2)
        process.reconciler.tick()
        keys = world.fill_log(1)
        for key in keys:
            world.redis.set(key, "ended")
        world.redis.set(KEYS.marker, "3", px=100_000)
        assert process.is_proven()

        assert process.reconciler.tick()

        assert process.marker.read().position.seq == 3
        assert len(process.marker.read().position.trace) == 16
        assert world.marker().isdigit(), "what an older version can read"
        assert "revocations.rewound" not in caplog.messages
