"""Tokens in the shards of a real cluster: what a thread and the lane make of them."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest
from redis.crc import key_slot

from authsvc.cache import CacheClient, CacheError, ClusterAddress, ClusterServers, KeySpace, Topology
from authsvc.cache.keys import spread_tags
from authsvc.cache.redis.connections import Pool
from authsvc.cache.redis.polled import PolledFleet, PolledReads
from authsvc.cache.redis.topology import ServerGenerations
from authsvc.domain.revocations import Proof, Verdict, judge
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.values.emails import Email
from authsvc.domain.values.shards import CLUSTER_SHARDS, Sharded, shard_of
from authsvc.store.copies.index import IndexKeys, RedisIndex
from authsvc.store.copies.ownership import Ownership, installation_id
from authsvc.store.copies.polled import PolledIndex
from authsvc.store.copies.reconciler import Reconciler
from authsvc.store.copies.servers import Servers, shards_of
from tests.contract.cache.clients import PATIENT
from tests.contract.copies.index_side import end_of
from tests.contract.copies.redis_side import MAX_STALENESS_S, access_token, client_over, index_over
from tests.processes import wait_until
from tests.servers.clusters import SLOTS, Cluster, cluster
from tests.timings import UNHURRIED

TAGS = spread_tags(CLUSTER_SHARDS)
ALICE = Email("alice@example.com")


@dataclass
class Side:
    """One service process on a cluster."""

    three: Cluster
    index: RedisIndex
    polled: PolledIndex
    reconciler: Reconciler

    def issued(self, count: int) -> list[AccessToken]:
        """Tokens of so many users."""
        tokens = [access_token(self.index.clock) for _ in range(count)]
        for token in tokens:
            self.index.remember([(token, ALICE)])
        return tokens

    def verdicts(self, tokens: Sequence[AccessToken]) -> list[Verdict]:
        """What a thread makes of each; the lane makes the same of it."""
        by_thread = [judge(token.keys, self.index.look_up(token.keys)) for token in tokens]
        assert self.polled.is_open()
        self.polled.ask([self.polled.keys_of(token.keys) for token in tokens])
        assert self.verdicts_of_lane(tokens) == by_thread
        return by_thread

    def verdicts_of_lane(self, tokens: Sequence[AccessToken]) -> list[Verdict]:
        """What the lane makes of those that it was just asked about."""
        while (found := self.polled.answers()) is None:
            assert select.select([*self.polled.reads.sockets], [], [], 60)[0]
        return [judge(token.keys, answer) for token, answer in zip(tokens, found.tokens, strict=True)]


def home_of(token: AccessToken) -> int:
    """The server that has the token's shard at the start."""
    slot = key_slot(TAGS[shard_of(token.user_id, CLUSTER_SHARDS)].encode())
    return next(index for index in range(3) if slot < SLOTS * (index + 1) // 3)


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Start a cluster of three."""
    with cluster() as running:
        yield running


def client_of(three: Cluster, counted: ServerGenerations, size: int) -> CacheClient:
    """A client with *size* connections to each server."""
    topology = Topology(ClusterAddress(nodes=three.addresses), size=size, generations=counted)
    return client_over(cast("Pool", ClusterServers(topology)))


@pytest.fixture
def side(three, quick_world) -> Iterator[Side]:
    """Make a process that has compared the empty cluster once."""
    for node in range(3):
        three.ask(node, "FLUSHALL")
    counted, stores = ServerGenerations(), quick_world.stores
    with (
        closing(client_of(three, counted, 3)) as checks,
        closing(client_of(three, counted, 1)) as reconciling,
    ):
        names = Sharded(tuple(IndexKeys(KeySpace(), tag) for tag in TAGS))
        proofs = Sharded(tuple(Proof(MAX_STALENESS_S, 60.0) for _ in TAGS))
        index = replace(index_over(checks, stores.clock), key_names=names, proofs=proofs)
        servers = Servers(shards_of(names, proofs, UNHURRIED.marker), reconciling, checks)
        link: Any = checks.link
        reads = PolledFleet(
            lambda name: PolledReads(
                link.pool_to(name), clock=time.monotonic, deadlines=PATIENT, takes_refusals=True
            )
        )
        servers.lane_to = reads.at
        polled = PolledIndex(
            reads=reads,
            client=checks,
            key_names=names,
            proofs=proofs,
            owner_of=servers.owner_of,
            monotonic=time.monotonic,
        )
        reconciler = Reconciler(
            revocations=stores.log,
            index=index,
            servers=servers,
            ownership=Ownership(
                installation=partial(installation_id, stores.database), checks=checks, shards=len(TAGS)
            ),
            monotonic=time.monotonic,
            on_lag=lambda _: None,
            on_proven=lambda _: None,
        )
        assert reconciler.tick()
        yield Side(three, index, polled, reconciler)
        reads.close()


def test_every_shard_is_proven_and_says_the_same_to_thread_and_lane(side):
    """Tokens of sixty users, a third of them logged out."""
    tokens = side.issued(60)
    side.index.write([end_of(token, side.index.clock) for token in tokens[::3]])

    verdicts = side.verdicts(tokens)

    assert side.index.proven_shards() == CLUSTER_SHARDS
    assert verdicts == [Verdict.REVOKED if place % 3 == 0 else Verdict.ACTIVE for place in range(60)]


def test_shards_are_evenly_spread(side):
    """Each server has a third of them, and of the users."""
    shares = Counter(home_of(token) for token in side.issued(300))
    owned = Counter(key_slot(tag.encode()) * 3 // SLOTS for tag in TAGS)

    assert sorted(owned.values()) == [21, 21, 22]
    assert all(70 <= shares[index] <= 130 for index in range(3))


def test_an_emptied_server_is_not_believed_about_its_own_users_alone(side):
    """SQL decides about them until they are compared; the others go on."""
    tokens = side.issued(60)
    side.three.ask(1, "FLUSHALL")

    verdicts = dict(zip(tokens, side.verdicts(tokens), strict=True))

    assert {verdicts[token] for token in tokens if home_of(token) == 1} == {Verdict.UNKNOWN}
    assert {verdicts[token] for token in tokens if home_of(token) != 1} == {Verdict.ACTIVE}
    assert 40 <= side.index.proven_shards() <= 44
    assert side.reconciler.tick()
    assert side.index.proven_shards() == CLUSTER_SHARDS


@pytest.mark.parametrize(("home", "target"), [(0, 1), (1, 0)])
def test_a_server_that_got_a_slot_is_not_believed_before_it_is_compared(side, home, target):
    """Whatever it holds there; its connections are old and open, and trusted for its other slots."""
    token = next(token for token in side.issued(30) if home_of(token) == home)
    slot = key_slot(TAGS[shard_of(token.user_id, CLUSTER_SHARDS)].encode())
    assert side.verdicts([token]) == [Verdict.ACTIVE]

    side.three.move_slot(slot, home, target)
    try:
        before = judge(token.keys, side.index.look_up(token.keys))
        wait_until(partial(is_compared, side), what="the new owner compared")
        after = judge(token.keys, side.index.look_up(token.keys))
    finally:
        side.three.move_slot(slot, target, home)

    assert (before, after) == (Verdict.UNKNOWN, Verdict.ACTIVE)


def is_compared(side: Side) -> bool:
    """True if all shards are; a comparison may find that a slot has moved, and the map is read anew later."""
    try:
        return side.reconciler.tick()
    except CacheError:
        return False


def test_an_answer_of_the_lane_counts_for_the_connection_that_it_came_over(side):
    """One server answers late; meanwhile the quick one's connection is replaced, and the old not believed."""
    tokens = side.issued(30)
    quick, late = (next(token for token in tokens if home_of(token) == home) for home in (0, 1))
    assert side.verdicts([quick, late]) == [Verdict.ACTIVE, Verdict.ACTIVE]
    name = "{}:{}".format(*side.three.addresses[0])
    reads, proof = side.polled.reads.at(name), side.polled.proofs.about(quick.user_id)

    side.three.nodes[1].pause()
    try:
        side.polled.ask([side.polled.keys_of(token.keys) for token in (quick, late)])
        assert select.select([reads.socket], [], [], 60)[0]
        assert side.polled.answers() is None
        assert not reads.is_busy
        reads.renew()
        newest = side.index.client.link.connections_to(name).generation
        proof.compared(seq=0, over=newest, newest=newest, now_s=time.monotonic())
        assert side.polled.is_open()
        assert reads.generation == newest
    finally:
        side.three.nodes[1].resume()

    assert side.verdicts_of_lane([quick, late]) == [Verdict.UNKNOWN, Verdict.ACTIVE]


def test_a_server_that_does_not_tell_its_role_is_not_compared(side):
    """Servers do not share their ACLs: one that became a primary later may deny INFO, unlike at the start."""
    token = next(token for token in side.issued(30) if home_of(token) == 1)
    proof = side.polled.proofs.about(token.user_id)
    compared_at_s = proof.compared_at_s

    side.three.ask(1, "ACL", "SETUSER", "default", "-info")
    try:
        with pytest.raises(CacheError):
            side.reconciler.tick()
        assert proof.compared_at_s == compared_at_s
    finally:
        side.three.ask(1, "ACL", "SETUSER", "default", "+info")

    assert side.reconciler.tick()
    assert proof.compared_at_s > compared_at_s
