"""When Redis may be believed: its data are lost, SQL is away, keys are evicted."""

from __future__ import annotations

from contextlib import closing, suppress

import pytest

from authsvc.cache.errors import CacheError
from authsvc.domain.errors import StoreUnavailable
from authsvc.store.copies.servers import POLICY_EVERY
from tests.contract.copies.reconciling import World
from tests.contract.copies.redis_side import KEYS, MAX_STALENESS_S

#: The life of a marker that nobody has renewed: long, and shorter than a renewed one's.
SOON_MS = 100_000


class TestLosingRedisData:
    """Everything in Redis can be gone at any step."""

    def test_a_flush_ends_the_proof_until_all_is_replayed(self, world):
        """At once for every process; the marker comes last."""
        keys = world.fill_log(3)
        process, _ = world.start()
        process.reconciler.tick()

        world.redis.flushall()
        assert not process.is_proven()
        assert process.reconciler.tick()

        assert process.is_proven()
        assert world.tombstones() == keys

    def test_a_flush_in_the_middle_of_a_refill_leaves_no_marker(self, world):
        """The claim is lost with the data: what was written before it is not vouched for."""
        keys = world.fill_log(700)
        process, log = world.start()
        log.after_page = world.redis.flushall

        assert not process.reconciler.tick()
        assert world.marker() is None
        assert not process.is_proven()

        assert process.reconciler.tick()
        assert world.tombstones() == keys

    def test_a_flush_behind_the_last_page_of_a_refill_leaves_no_marker(self, world):
        """The same, where nothing was left to write."""
        keys = world.fill_log(3)
        process, log = world.start()
        log.after_page = world.redis.flushall

        assert not process.reconciler.tick()
        assert world.marker() is None

        assert process.reconciler.tick()
        assert world.tombstones() == keys

    @pytest.mark.parametrize("step", ["after_head", "after_page"])
    def test_a_flush_in_an_ordinary_comparison_leaves_no_marker(self, world, step):
        """It is not brought back by an advance from what was read before."""
        process, log = world.start()
        keys = world.fill_log(2)
        process.reconciler.tick()
        keys |= {world.revoke()}
        setattr(log, step, world.redis.flushall)

        assert not process.reconciler.tick()
        assert world.marker() is None
        assert not process.is_proven()

        assert process.reconciler.tick()
        assert world.tombstones() == keys

    def test_a_revocation_between_the_head_and_the_claim_is_not_lost(self, world):
        """Acknowledged, written to Redis, and flushed before the refill was claimed: the refill has it."""
        process, log = world.start()
        other, _ = world.start()
        world.fill_log(2)
        process.reconciler.tick()
        world.redis.flushall()
        revoked: list[bytes] = []

        def revoke_and_lose() -> None:
            revoked.append(world.revoke(by=other))
            world.redis.flushall()

        log.after_head = revoke_and_lose

        assert process.reconciler.tick()

        assert process.is_proven()
        assert len(revoked) == 1
        assert world.tombstones() >= set(revoked)
        assert world.marker() == b"3"

    def test_a_restart_of_redis_is_followed_by_a_refill(self, stores, private_redis):
        """Killed and empty; no restart of the service."""
        with closing(World(stores, private_redis)) as world:
            keys = world.fill_log(2)
            process, _ = world.start()
            process.reconciler.tick()

            private_redis.kill()
            with pytest.raises(CacheError):
                process.reconciler.tick()
            with pytest.raises(StoreUnavailable):
                process.is_proven()
            private_redis.start()
            assert not process.is_proven()

            assert process.reconciler.tick()
            assert process.is_proven()
            assert world.tombstones() == keys

    def test_a_restored_dump_is_brought_up_to_date(self, stores, private_redis):
        """An old state with an old marker: the connection broke, so nothing is believed before."""
        with closing(World(stores, private_redis)) as world:
            process, _ = world.start()
            world.fill_log(2)
            process.reconciler.tick()
            world.redis.persist(KEYS.marker)
            dump = private_redis.save_dump()
            late = world.revoke(by=process)
            process.reconciler.tick()

            private_redis.restore(dump)
            assert world.marker() == b"2"
            assert late not in world.tombstones()
            assert not process.is_proven()

            assert process.reconciler.tick()
            assert process.is_proven()
            assert late in world.tombstones()

    def test_a_full_redis_does_not_prove_what_it_could_not_be_told(self, quick_world):
        """It still answers reads, with a marker that is still alive."""
        process, _ = quick_world.start()
        process.reconciler.tick()
        key = quick_world.revoke()
        quick_world.redis.config_set("maxmemory", "1")

        with pytest.raises((CacheError, StoreUnavailable)):
            process.reconciler.tick()
        assert not process.is_proven()

        quick_world.redis.config_set("maxmemory", "0")
        assert process.reconciler.tick()
        assert process.is_proven()
        assert key in quick_world.tombstones()

    def test_what_is_learned_while_sql_answers_is_no_restored_sql(self, quick_world, caplog):
        """A commit right behind the head that Redis did not take: nobody's tokens die for it."""
        process, log = quick_world.start()
        quick_world.fill_log(2)
        process.reconciler.tick()
        quick_world.fill_log(1)

        def commit_and_fail_to_tell() -> None:
            quick_world.fill_log(1)
            process.proof.learned(4)

        log.after_head = commit_and_fail_to_tell
        process.reconciler.tick()

        assert "revocations.rewound" not in caplog.messages
        assert process.reconciler.tick()
        assert quick_world.marker() == b"4"


class TestWithoutSql:
    """Redis is believed for a while, where nothing can have changed."""

    def test_a_marker_that_is_exactly_known_is_kept_going(self, quick_world):
        """So that a failover of the database does not stop token checks."""
        process, log = quick_world.start()
        quick_world.fill_log(2)
        process.reconciler.tick()
        log.is_down = True
        quick_world.redis.pexpire(KEYS.marker, SOON_MS)

        assert process.reconciler.tick()

        assert process.is_proven()
        assert quick_world.redis.pttl(KEYS.marker) > SOON_MS

    @pytest.mark.parametrize("marker", ["1", "3", "replaying:x", None])
    def test_any_other_marker_is_left_to_expire(self, quick_world, marker):
        """Less, more, a claim, nothing: SQL alone could say what it means."""
        process, log = quick_world.start()
        quick_world.fill_log(2)
        process.reconciler.tick()
        log.is_down = True
        quick_world.redis.delete(KEYS.marker)
        if marker is not None:
            quick_world.redis.set(KEYS.marker, marker, px=SOON_MS)

        assert not process.reconciler.tick()

        assert quick_world.redis.pttl(KEYS.marker) <= SOON_MS

    def test_a_process_that_knows_of_more_does_not_keep_it_going(self, quick_world):
        """Its own 202 is not in Redis yet."""
        process, log = quick_world.start()
        process.reconciler.tick()
        process.proof.learned(1)
        log.is_down = True

        assert not process.reconciler.tick()

    def test_a_process_that_has_never_compared_does_not_keep_it_going(self, quick_world):
        """It started during the outage: another process' marker is no proof to it."""
        first, _ = quick_world.start()
        first.reconciler.tick()
        second, log = quick_world.start()
        log.is_down = True

        assert not second.reconciler.tick()
        assert not second.is_proven()

    def test_a_new_connection_of_the_reconciler_ends_all_trust(self, quick_world):
        """It may lead to another server, and SQL cannot say whether that one has everything."""
        process, log = quick_world.start()
        process.reconciler.tick()
        log.is_down = True
        quick_world.redis.client_kill_filter(_id=process.connection_id())
        with suppress(CacheError):
            process.reconciler.tick()

        assert not process.reconciler.tick()

        assert not process.is_proven()
        log.is_down = False
        assert process.reconciler.tick()
        assert process.is_proven()

    def test_a_new_connection_of_a_check_is_not_trusted_and_the_others_are(self, quick_world):
        """One lost connection must not cost the process all of Redis while SQL is away."""
        process, log = quick_world.start()
        process.reconciler.tick()
        one = min(quick_world.connections(of=process))
        quick_world.redis.client_kill_filter(_id=one)
        log.is_down = True

        before = process.checks.connections.generation
        assert process.checks.connections.fill() == 3
        assert process.checks.connections.generation == before + 1
        assert process.reconciler.tick()

        marker, now_s = quick_world.marker(), process.monotonic()
        generations = range(before - 2, before + 2)
        assert [process.proof.holds(marker, one, now_s) for one in generations] == [True] * 3 + [False]

    def test_trust_ends_a_fixed_time_after_the_last_comparison(self, quick_world):
        """A process cut off from SQL alone cannot go on for ever, though its marker does."""
        process, log = quick_world.start()
        process.reconciler.tick()
        log.is_down = True

        process.monotonic.tick(MAX_STALENESS_S)
        assert process.reconciler.tick()
        assert process.is_proven()
        process.monotonic.tick(0.1)
        assert process.reconciler.tick()
        assert not process.is_proven()

        log.is_down = False
        assert process.reconciler.tick()
        assert process.is_proven()

    def test_time_counts_from_before_sql_was_asked(self, quick_world):
        """A process that stood still between question and answer knows nothing newer than the question."""
        process, log = quick_world.start()
        process.reconciler.tick()
        log.after_head = lambda: process.monotonic.tick(MAX_STALENESS_S + 1)

        process.reconciler.tick()

        assert not process.is_proven()


class TestEviction:
    """A Redis that drops keys on its own account proves nothing."""

    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
    def test_an_evicting_policy_set_at_run_time_ends_the_proof(self, quick_world, policy):
        """Within a few comparisons, for as long as it lasts; afterwards everything is replayed."""
        keys = quick_world.fill_log(2)
        process, _ = quick_world.start()
        process.reconciler.tick()
        quick_world.redis.config_set("maxmemory-policy", policy)

        outcomes = [process.reconciler.tick() for _ in range(POLICY_EVERY + 3)]
        assert outcomes[-4:] == [False] * 4
        quick_world.redis.set(KEYS.marker, "2")
        assert not process.is_proven(), "another process, which has not looked yet, keeps the marker going"
        quick_world.redis.delete(*keys)

        quick_world.redis.config_set("maxmemory-policy", "noeviction")
        assert not process.reconciler.tick()
        assert process.reconciler.tick()
        assert process.is_proven()
        assert quick_world.tombstones() == keys

    def test_it_is_seen_before_the_first_comparison(self, quick_world):
        """A process that starts on such a server never believes it."""
        quick_world.redis.config_set("maxmemory-policy", "allkeys-lfu")
        process, _ = quick_world.start()

        assert not process.reconciler.tick()
        assert not process.is_proven()
