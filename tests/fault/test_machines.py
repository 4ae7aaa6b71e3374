"""A secret that is dropped takes its tokens along in every worker and replica, whatever becomes of Redis."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.fault.machine_tokens import Machine, of_every_worker, verdicts
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def flushed(world: World, _dump: Any) -> None:
    """Everything goes, the connections stay."""
    with world.redis_admin() as redis:
        redis.flushall()


def restarted_empty(world: World, _dump: Any) -> None:
    """SIGKILL, and an empty one on the same port."""
    world.redis.kill()
    world.redis.start()


def restored(world: World, dump: Any) -> None:
    """It is back with what it held before the secret was dropped: the session of each token alive."""
    world.redis.restore(dump)


@pytest.mark.parametrize("becomes", [flushed, restarted_empty, restored])
def test_a_dropped_secret_stays_dropped_and_the_other_one_good(
    world: World, becomes: Callable[[World, Any], None]
):
    """20 of 20 in each worker: after the drop, right after the fault, and when everything is whole again."""
    machine = Machine.made_in(world)
    old, new = machine.token(0), machine.token(1)
    expected = [of_every_worker(world, status) for status in (401, 200)]
    assert [verdicts(world, shown) for shown in (old, new)] == [expected[1]] * 2
    dump = world.redis.save_dump()

    machine.drop_secret_of(old)
    world.wait_replayed()  # else a busy machine could have been late with the drop itself
    dropped = [verdicts(world, shown) for shown in (old, new)]
    becomes(world, dump)
    wait_until(partial(answers, world), what="the service after the fault")
    broken = [verdicts(world, shown) for shown in (old, new)]
    world.wait_whole()
    whole = [verdicts(world, shown) for shown in (old, new)]

    assert (dropped, broken, whole) == (expected, expected, expected)


def answers(world: World) -> bool:
    """Each replica says something of tokens: 503 is honest, and is no verdict."""
    return all(world.at(one).ask("GET", "/v1/health/ready").status == 200 for one in world.replicas)
