"""A worker is killed with -9: another takes its place and knows no less."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.fault.asking import ALL_ACCEPTED, ALL_REFUSED, PATIENCE_S, answered, everywhere, verdict
from tests.fault.observing import watching
from tests.fault.world import START_S
from tests.processes import kill_tree, wait_until

if TYPE_CHECKING:
    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_a_killed_worker_is_replaced_and_the_revoked_stay_out(world):
    """The other worker goes on meanwhile; the new one is told by the stores, not by its predecessor."""
    cast = world.cast()

    with watching(world.service, good=[cast.stays.access], bad=[cast.gone.access]):
        killed = kill_workers(world, 1)
        during = {verdict(world.service, cast.gone.access) for _ in range(20)}
        wait_replaced(world, killed)

    assert during == {401}
    assert everywhere(world.service, cast.gone.access, cast.stays.access) == [ALL_REFUSED, ALL_ACCEPTED]


def test_what_was_accepted_is_finished_by_workers_that_never_heard_of_it(world):
    """202 means that SQL has it: all who knew are killed, and it is carried over all the same."""
    member = world.log_in("leaves")
    world.redis.kill()
    accepted = answered(partial(world.log_out, member))
    killed = kill_workers(world, 2)
    world.redis.start()

    wait_replaced(world, killed)
    refused = everywhere(world.service, member.access)

    assert accepted.status == 202
    assert refused == [ALL_REFUSED]
    wait_until(lambda: world.redis_session(member) == "ended", timeout_s=PATIENCE_S)


def kill_workers(world: World, count: int) -> set[int]:
    """SIGKILL to *count* workers; their pids, when they are gone."""
    pids = world.service.workers()[:count]
    for pid in pids:
        kill_tree(psutil.Process(pid))
    return set(pids)


def wait_replaced(world: World, killed: set[int]) -> None:
    """Wait until two workers serve again, none of them *killed*."""
    wait_until(lambda: len(set(world.service.workers()) - killed) == 2, timeout_s=START_S)
    world.service.wait_ready(START_S)
    wait_until(lambda: all(world.service.from_each_worker(lambda: is_ready(world))), timeout_s=START_S)


def is_ready(world: World) -> bool:
    """True if the worker that is not frozen answers, soon: frozen for long the other would be killed."""
    return world.ask("GET", "/v1/health/ready", patience_s=3).status == 200
