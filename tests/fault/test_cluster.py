"""The library on a cluster: slots move, a primary is lost; for the service see test_redis_cluster.py."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from authsvc.cache import (
    CacheClient,
    CacheUnavailable,
    CircuitBreaker,
    ClusterAddress,
    ClusterServers,
    Topology,
)
from tests.fault.ledger import Findings, Tally
from tests.fault.world import WHOLE_WITHIN_S
from tests.processes import wait_until
from tests.servers.clusters import SLOTS, Cluster, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.long]

#: docs/failure-modes.md: where Redis is the cause.
ANSWER_S = 1.0
THREADS = 4
KEYS = [f"key-{number}" for number in range(24)]
#: Slots that move, with the keys in them.
MOVING = sorted({key_slot(name.encode()) for name in KEYS})[:8]


@dataclass(slots=True)
class Counting:
    """Counts under names of its own, and writes down what was answered."""

    client: CacheClient
    owner: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    #: Seconds that each refusal took, by key.
    refusals: list[tuple[str, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def go(self, over: threading.Event) -> None:
        """Go round until it is over."""
        while not over.is_set():
            for name in KEYS:
                self.count(name)

    def count(self, name: str) -> None:
        """Count once, and read a record that must be its own."""
        key = f"{{{name}}}:{self.owner}"
        tally = self.tallies.setdefault(key, Tally())
        began = time.monotonic()
        try:
            tally.unanswered += 1
            self.client.pipeline([("INCR", key), ("SET", f"{key}:record", self.owner)])
            tally.unanswered -= 1
            tally.acknowledged += 1
            (record,) = self.client.mget([f"{key}:record"]).values
        except CacheUnavailable:
            self.refusals.append((name, time.monotonic() - began))
            return
        if record not in (self.owner.encode(), None):
            self.wrong.append(f"{record!r} is not of {self.owner}")


@contextmanager
def counting(three: Cluster, name: str) -> Iterator[list[Counting]]:
    """Threads that count on the whole cluster while the block runs; a breaker would stop all for one."""
    topology = Topology(ClusterAddress(nodes=three.addresses), size=THREADS)
    breaker = CircuitBreaker(1_000_000, clock=time.monotonic)
    client = CacheClient(ClusterServers(topology), breaker=breaker, clock=time.monotonic)
    everybody = [Counting(client, f"{name}-{number}") for number in range(THREADS)]
    over = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(one.go, over) for one in everybody]
        try:
            yield everybody
        finally:
            over.set()
    for done in running:
        done.result()
    client.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Start a cluster of three primaries, each of which serves its slots without the others."""
    with cluster() as running:
        for index in range(3):
            running.ask(index, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield running


def test_slots_that_move_under_load_lose_and_double_nothing(three, window_s, score):
    """There and back, key by key: every count that was acknowledged is there, once."""
    score.name = "library-cluster-resharded"
    with counting(three, score.name) as everybody:
        ends = time.monotonic() + max(1.0, window_s)
        while time.monotonic() < ends:
            for slot in MOVING:
                three.move_slot(slot, home(slot), (home(slot) + 1) % 3)
            for slot in MOVING:
                three.move_slot(slot, (home(slot) + 1) % 3, home(slot))

    findings = held_against(three, everybody, lost_node=None)
    score.take(findings)
    assert findings.faults() == {}


def test_a_lost_primary_costs_its_own_keys_alone(three, window_s, score):
    """Killed: its keys are refused within a second, the others go on; back, empty, all is served again."""
    score.name = "library-cluster-primary-lost"
    with counting(three, score.name) as everybody:
        three.nodes[2].kill()
        for one in everybody:
            one.refusals.clear()
        time.sleep(max(1.0, window_s))
        refusals = [refusal for one in everybody for refusal in tuple(one.refusals)]
        three.nodes[2].start()
        began = time.monotonic()
        wait_until(lambda: all(is_served(one) for one in everybody), timeout_s=WHOLE_WITHIN_S)
        score.recovery_s = time.monotonic() - began

    findings = held_against(three, everybody, lost_node=2)
    findings.refusals_s = [seconds for _, seconds in refusals]
    score.take(findings)
    assert findings.faults() == {}
    assert {home(key_slot(name.encode())) for name, _ in refusals} == {2}
    assert max(seconds for _, seconds in refusals) < ANSWER_S


def home(slot: int) -> int:
    """The node that a slot belongs to."""
    return next(index for index in range(3) if slot < SLOTS * (index + 1) // 3)


def is_served(one: Counting) -> bool:
    """No key is refused any more."""
    one.refusals.clear()
    time.sleep(0.2)
    return not one.refusals


def held_against(three: Cluster, everybody: list[Counting], *, lost_node: int | None) -> Findings:
    """Compare what was acknowledged with what is there; a node that was killed has lost what it had."""
    findings = Findings()
    for one in everybody:
        findings.foreign += one.wrong
        for key, tally in one.tallies.items():
            node = home(key_slot(key.encode()))
            count = int(three.ask(node, "GET", key) or 0)
            findings.answers["counted"] += tally.acknowledged
            if count > tally.acknowledged + tally.unanswered:
                findings.doubled.append(f"{key}: {count} for {tally}")
            elif count < tally.acknowledged and node != lost_node:
                findings.lost.append(f"{key}: {count} of {tally}")
    return findings
