"""The service on a cluster: one server is lost, emptied, set back or replaced, or its slots move."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from tests import ROOT
from tests.fault.asking import PATIENCE_S, answered
from tests.fault.audit import assert_nothing_is_lost
from tests.fault.cluster_world import TAGS, ClusterWorld, open_cluster_world
from tests.fault.load import claim, load, move_in, show_up
from tests.fault.observing import feeling
from tests.fault.world import WHOLE_WITHIN_S
from tests.processes import wait_until
from tests.servers.clusters import cut_off

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.fault.asking import Answer
    from tests.fault.ledger import Ledger

pytestmark = [pytest.mark.fault, pytest.mark.slow]

PAGE = ROOT / "docs" / "failure-modes.md"
#: A node is missed for 5 s, then the others agree; then the map is read.
ELECTION_S = 40.0
#: Longer than an election takes.
PARTITION_S = 12.0


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Iterator[ClusterWorld]:
    """Start a service on three primaries without replicas."""
    with open_cluster_world(tmp_path_factory.mktemp("cluster")) as world:
        yield world


@pytest.fixture(scope="module")
def ledger(three: ClusterWorld) -> Ledger:
    """Let people in."""
    return move_in(three.ahead)


@pytest.fixture
def six(tmp_path) -> Iterator[ClusterWorld]:
    """Start a service on three primaries, each with a replica."""
    with open_cluster_world(tmp_path, has_replicas=True) as world:
        yield world


@contextmanager
def flushed(world: ClusterWorld, _: float) -> Iterator[None]:
    """One server loses everything; its connections stay."""
    world.nodes.ask(1, "FLUSHALL")
    yield


@contextmanager
def killed(world: ClusterWorld, window_s: float) -> Iterator[None]:
    """One server is gone, with no replica, and comes back empty."""
    node = world.nodes.nodes[1]
    node.kill()
    time.sleep(window_s)
    try:
        yield
    finally:
        node.start()


@contextmanager
def restarted_empty(world: ClusterWorld, _: float) -> Iterator[None]:
    """All servers lose everything."""
    for node in world.nodes.nodes:
        node.kill()
        node.start()
    yield


@contextmanager
def restored(world: ClusterWorld, _: float) -> Iterator[None]:
    """One server is set back to what it held a moment ago, its markers still fresh."""
    member = world.log_in("forgotten")
    node = world.nodes.nodes[world.home_of(claim(member.access, "sub"))]
    dump = node.save_dump()
    world.log_out_in_vain(member)
    node.restore(dump)
    yield


@contextmanager
def resharded(world: ClusterWorld, window_s: float) -> Iterator[None]:
    """The slots of a third of the shards move to another server and back, key by key."""
    slots = [key_slot(tag.encode()) for tag in TAGS[:21]]
    ends = time.monotonic() + window_s
    while True:
        for origin, target in ((0, 1), (1, 0)):
            for slot in slots:
                world.nodes.move_slot(slot, origin, target)
        if time.monotonic() > ends:
            break
    yield


FAULTS = {
    "cluster-flushed-one": flushed,
    "cluster-killed-one": killed,
    "cluster-restored-one": restored,
    "cluster-resharded": resharded,
    "cluster-restarted-empty": restarted_empty,
}
SHORT = {"cluster-flushed-one", "cluster-restored-one"}


@pytest.mark.parametrize(
    ("name", "breaking"),
    [
        pytest.param(name, breaking, id=name, marks=() if name in SHORT else (pytest.mark.long,))
        for name, breaking in FAULTS.items()
    ],
)
def test_a_fault_of_one_server_loses_nothing_that_was_acknowledged(
    three: ClusterWorld,
    ledger: Ledger,
    name: str,
    breaking: Callable[[ClusterWorld, float], AbstractContextManager[None]],
    window_s: float,
    score,
):
    """Whoever logged out stays out, at every moment, the others stay in; then all works as before."""
    score.name = name
    three.forgotten.clear()
    with feeling(three, redis=False) as pulse, load(ledger, three.replicas, seed=name) as findings:
        with breaking(three, window_s):
            time.sleep(window_s)
        score.recovery_s = three.wait_whole(ELECTION_S + WHOLE_WITHIN_S)

    assert_nothing_is_lost(three, ledger, findings, pulse, score)


def test_every_fault_has_its_row_on_the_page():
    """An operator finds each fault by its name, and no name that is not tried."""
    rows = re.findall(r"^\| \*\*.*$", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(cluster-[a-z-]+)`", row)}

    assert named == {*FAULTS, "cluster-failover", "cluster-partition"}


@pytest.mark.long
def test_a_lost_server_costs_its_own_users_alone(three, ledger, window_s):
    """Its users are asked of SQL, the others of Redis: the probes say how many shards are proven."""
    show_up(three, ledger)
    tokens = [held.access[-1] for account in ledger for held in account.sessions]
    three.nodes.nodes[2].kill()
    try:
        wait_until(lambda: _impaired(three) == ["redis_proof"], timeout_s=PATIENCE_S, what="impaired")
        assert {answered(partial(_check, three, token)).status for token in tokens} == {200}
    finally:
        three.nodes.nodes[2].start()
    three.wait_whole(ELECTION_S + WHOLE_WITHIN_S)


def _check(world: ClusterWorld, token: str) -> Answer:
    return world.ask("GET", "/v1/auth/verify", token=token)


def _impaired(world: ClusterWorld) -> list[str]:
    ready = world.ask("GET", "/v1/health/ready")
    assert ready.status == 200
    impaired: list[str] = ready.body["impaired"]
    return impaired


@pytest.mark.long
def test_a_failover_loses_nothing_that_was_acknowledged(six, window_s, score):
    """The replica that takes over missed the last writes: it stood still and its link was cut."""
    score.name = "cluster-failover"
    world, people = six, move_in(six.ahead)
    member = world.log_in("forgotten")
    home = world.home_of(claim(member.access, "sub"))
    primary, replica = world.nodes.nodes[home], world.nodes.replicas[home]
    wait_until(lambda: world.redis_session(member) == "alive", timeout_s=PATIENCE_S, what="copy")

    with feeling(world, redis=False) as pulse, load(people, world.replicas, seed=score.name) as findings:
        cut_off(replica, world.nodes.nodes[home])
        world.log_out_in_vain(member)
        time.sleep(window_s / 2)
        primary.kill()
        replica.resume()
        score.recovery_s = world.wait_whole(ELECTION_S + WHOLE_WITHIN_S)

    assert_nothing_is_lost(world, people, findings, pulse, score)
    assert len(world.forgotten) == 1


@pytest.mark.long
def test_a_node_that_is_cut_off_and_comes_back_is_not_believed(six, window_s, score):
    """It stands still until its replica has taken over, and wakes with what it held then."""
    score.name = "cluster-partition"
    world, people = six, move_in(six.ahead)
    member = world.log_in("forgotten")
    primary = world.nodes.nodes[world.home_of(claim(member.access, "sub"))]

    with feeling(world, redis=False) as pulse, load(people, world.replicas, seed=score.name) as findings:
        primary.pause()
        world.log_out_in_vain(member)
        time.sleep(PARTITION_S)
        primary.resume()
        score.recovery_s = world.wait_whole(ELECTION_S + WHOLE_WITHIN_S)

    assert_nothing_is_lost(world, people, findings, pulse, score)
    assert len(world.forgotten) == 1
