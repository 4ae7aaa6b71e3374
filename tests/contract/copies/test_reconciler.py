"""When Redis is trusted: the comparison with SQL, by one process and by many."""

from __future__ import annotations

import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from tests.contract.cache.clients import in_threads
from tests.contract.copies.redis_side import KEYS
from tests.timings import UNHURRIED


class TestComparing:
    """What one comparison brings about."""

    def test_before_the_first_comparison_nothing_is_proven(self, world):
        """Also where another process has left a good marker."""
        first, _ = world.start()
        assert first.reconciler.tick()
        second, _ = world.start()

        assert first.is_proven()
        assert not second.is_proven()

    def test_an_empty_redis_is_filled_before_it_is_believed(self, world):
        """Every entry that is still needed is written, then the marker, for its whole life."""
        keys = world.fill_log(3) | {world.revoke()}
        process, _ = world.start()

        assert process.reconciler.tick()

        assert process.is_proven()
        assert world.tombstones() == keys
        assert world.marker() == b"4"
        assert UNHURRIED.marker.life_ms / 2 < world.redis.pttl(KEYS.marker) <= UNHURRIED.marker.life_ms
        assert process.lags == [4, 0]

    def test_an_empty_log_proves_an_empty_redis(self, world):
        """A new installation."""
        process, _ = world.start()

        assert process.reconciler.tick()

        assert process.is_proven()
        assert world.marker() == b"0"

    def test_what_another_process_could_not_write_is_brought_in(self, world):
        """A 202 becomes true for all within one comparison, and only the new entries are replayed."""
        process, _ = world.start()
        process.reconciler.tick()

        keys = {world.revoke(), world.revoke()}
        assert world.tombstones() == set()
        assert process.reconciler.tick()

        assert world.tombstones() == keys
        assert world.marker() == b"2"
        assert process.lags == [0, 0, 2, 0]

    def test_what_this_process_could_not_write_is_distrusted_until_then(self, world):
        """Its own 202: not even for the second until the next comparison."""
        process, _ = world.start()
        process.reconciler.tick()

        world.revoke()
        process.proof.learned(world.stores.log.head())
        assert not process.is_proven()

        assert process.reconciler.tick()
        assert process.is_proven()

    def test_a_long_log_is_brought_in_page_by_page(self, world):
        """Into an empty Redis, and behind a marker."""
        keys = world.fill_log(1100)
        process, _ = world.start()
        assert process.reconciler.tick()
        assert world.tombstones() == keys

        keys |= world.fill_log(1100)
        assert process.reconciler.tick()

        assert world.tombstones() == keys
        assert world.marker() == b"2200"
        assert process.is_proven()

    def test_entries_that_can_no_longer_matter_are_passed_over(self, world):
        """The marker moves past them all the same."""
        world.fill_log(3)
        world.stores.clock.tick(4_000)
        keys = {world.revoke()}
        world.stores.clock.tick(10)
        process, _ = world.start()

        assert process.reconciler.tick()
        assert world.tombstones() == keys
        world.stores.clock.tick(4_000)
        world.redis.flushall()
        assert process.reconciler.tick()

        assert world.tombstones() == set()
        assert world.marker() == b"4"

    def test_a_number_without_commit_holds_the_comparison_up(self, brief_locks, postgres_world):
        """Redis stays proven by what is known; nothing is passed by."""
        world, log = postgres_world, postgres_world.stores.log
        process, _ = world.start()
        process.reconciler.tick()
        draft = log.draft_end(UserId(new_id()), SessionId(new_id()), "late")

        with world.stores.database.transaction() as connection:
            log.append(connection, [draft])
            assert process.reconciler.tick()
            assert world.marker() == b"0"

        assert process.reconciler.tick()
        assert world.marker() == b"1"
        assert world.tombstones() == {KEYS.session(draft.session_id or "").encode()}


class TestTwoProcesses:
    """Any number of them compare at once."""

    def test_one_refills_and_the_other_waits(self, world):
        """While it does, the claim stands in the marker's place; afterwards both believe."""
        keys = world.fill_log(3)
        (first, log), (second, _) = world.start(), world.start()
        waited: list[bool] = []
        log.after_page = lambda: waited.append(second.reconciler.tick())

        assert first.reconciler.tick()
        assert waited == [False]
        assert second.lags == []
        assert not second.is_proven()

        assert second.reconciler.tick()
        assert second.is_proven()
        assert world.tombstones() == keys

    def test_of_many_that_find_redis_empty_one_refills(self, world):
        """All start at once; each entry is replayed by one of them."""
        world.fill_log(600)
        processes = [world.start()[0] for _ in range(4)]

        in_threads(*(process.reconciler.tick for process in processes))

        assert sum(process.lags.count(600) for process in processes) == 1
        assert all(process.reconciler.tick() for process in processes)
        assert all(process.is_proven() for process in processes)

    def test_an_advance_from_a_stale_read_lowers_nothing(self, world):
        """The other one was faster, and further."""
        (slow, log), (quick, _) = world.start(), world.start()
        slow.reconciler.tick()
        quick.reconciler.tick()
        world.revoke()

        def overtake() -> None:
            world.revoke()
            assert quick.reconciler.tick()

        log.after_head = overtake

        assert slow.reconciler.tick()
        assert world.marker() == b"2"
        assert slow.is_proven()
        assert quick.is_proven()

    def test_a_stale_read_does_not_outlive_a_flush_that_others_mended(self, world):
        """The marker was rebuilt meanwhile, from a log that had all of it."""
        (slow, log), (quick, _) = world.start(), world.start()
        keys = world.fill_log(2)
        slow.reconciler.tick()
        keys |= {world.revoke()}

        def lose_and_mend() -> None:
            world.redis.flushall()
            assert quick.reconciler.tick()

        log.after_page = lose_and_mend

        slow.reconciler.tick()

        assert world.tombstones() == keys
        assert world.marker() == b"3"

    def test_a_dead_process_holds_its_claim_for_a_moment_only(self, world):
        """Nobody else begins before; it ends by itself."""
        process, _ = world.start()
        assert process.marker.claim() is not None

        assert not process.reconciler.tick()
        assert 0 < world.redis.pttl(KEYS.marker) <= UNHURRIED.marker.claim_ms
        world.let_marker_end()

        assert process.reconciler.tick()

    @pytest.mark.parametrize("value", [b"garbage", b"", b"-1", b"1.5", b"9" * 30, b"9" * 16])
    def test_what_no_process_can_have_written_is_replaced(self, world, value):
        """It proves nothing meanwhile, and does not block for ever."""
        keys = world.fill_log(2)
        process, _ = world.start()
        process.reconciler.tick()
        world.redis.flushall()
        world.redis.set(KEYS.marker, value)

        assert not process.is_proven()
        assert process.reconciler.tick()

        assert world.marker() == b"2"
        assert world.tombstones() == keys


class TestRestoredSql:
    """The database is behind what Redis or a process has seen of it."""

    def test_numbers_go_on_behind_the_highest_that_was_seen(self, world):
        """None is used twice, and Redis is believed again at once."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()

        world.forget_after(2)
        assert process.reconciler.tick()

        assert world.stores.log.head() == 5
        assert process.is_proven()
        world.revoke()
        assert world.stores.log.head() == 6
        assert process.reconciler.tick()
        assert world.marker() == b"6"

    def test_new_entries_below_the_marker_are_replayed(self, world):
        """Their numbers are below the marker, and no process had written them to Redis."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        world.forget_after(2)
        key = world.revoke()

        assert process.reconciler.tick()

        assert key in world.tombstones()
        assert world.stores.log.head() == 5

    @pytest.mark.parametrize("witness", ["redis", "process"])
    def test_one_witness_is_enough(self, world, witness):
        """A new process sees the marker; an old one remembers, though Redis was emptied."""
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        world.forget_after(2)
        if witness == "redis":
            process, _ = world.start()
        else:
            world.redis.flushall()

        assert process.reconciler.tick()

        assert world.stores.log.head() == 5
        assert process.is_proven()

    def test_an_epoch_that_only_redis_remembers_locks_nobody_out(self, world):
        """Each lost entry may have raised an epoch by one: what SQL gives out from now on is higher."""
        user = world.stores.register()
        world.fill_log(5)
        process, _ = world.start()
        process.reconciler.tick()
        head = world.stores.log.head()
        world.forget_after(head - 3)

        for _ in range(2):
            process.reconciler.tick()

        assert world.stores.users.get(user.id).epoch == user.epoch + 4
        assert world.redis.get(KEYS.epoch(user.id)) == b"%d" % (user.epoch + 4)

    def test_a_process_that_died_in_the_middle_leaves_no_marker(self, world):
        """The marker went first: whoever comes next replays everything, also the new entries below it."""
        world.fill_log(5)
        dying, log = world.start()
        dying.reconciler.tick()
        world.forget_after(2)
        key = world.revoke()

        def die() -> None:
            log.skip_to = refuse

        def refuse(_seq: int) -> None:
            raise StoreUnavailable("sql")

        log.after_head = die
        with pytest.raises(StoreUnavailable):
            dying.reconciler.tick()
        assert world.marker() is None

        successor, _ = world.start()
        assert successor.reconciler.tick()
        assert key in world.tombstones()

    def test_many_processes_notice_it_at_once(self, world):
        """They agree on the numbers, and on Redis within a few comparisons."""
        world.fill_log(5)
        processes = [world.start()[0] for _ in range(4)]
        for process in processes:
            process.reconciler.tick()
        world.forget_after(2)
        key = world.revoke()

        in_threads(*(process.reconciler.tick for process in processes))
        for _ in range(3):
            for process in processes:
                process.reconciler.tick()

        assert all(process.is_proven() for process in processes)
        assert key in world.tombstones()
        world.revoke()
        assert world.stores.log.head() == 6
