"""A secret that is dropped takes its tokens along in every worker and replica, whatever becomes of Redis."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import wait_until
from tests.rig import run_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

CHECKS = 20
CHECK = "/v1/auth/verify-machine?scope=orders:read"


def clients(world: World, *arguments: str) -> Any:
    """What ``authsvc clients`` prints, with the service's own settings."""
    folder = world.service.log.parent
    done = run_command("clients", *arguments, env=world.service.env, folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def token(world: World, client_id: str, secret: str) -> str:
    """A token for that secret."""
    answer = world.service.call(
        "POST", "/v1/oauth2/token", data={"grant_type": "client_credentials"}, auth=(client_id, secret)
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def verdicts(world: World, shown: str) -> Counter[int]:
    """Of 20 checks by each worker of each replica."""

    def by_one_worker() -> Counter[int]:
        return Counter(world_at.ask("GET", CHECK, token=shown).status for _ in range(CHECKS))

    found: Counter[int] = Counter()
    for replica in world.replicas:
        world_at = world.at(replica)
        for counts in replica.from_each_worker(by_one_worker):
            found += counts
    return found


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
    made = clients(world, "create", "billing", "--scope", "orders:read")
    client_id = made["client_id"]
    second = clients(world, "rotate", client_id)
    (listed,) = [one for one in clients(world, "list")["clients"] if one["client_id"] == client_id]
    old, new = (token(world, client_id, one["client_secret"]) for one in (made, second))
    every = CHECKS * sum(len(replica.workers()) for replica in world.replicas)
    expected = [Counter({401: every}), Counter({200: every})]
    assert [verdicts(world, shown) for shown in (old, new)] == [Counter({200: every})] * 2
    dump = world.redis.save_dump()

    clients(world, "drop-secret", client_id, listed["secrets"][0]["id"])
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
