"""PostgreSQL is killed or hung: checks go on, what must be written is refused, nothing is half done."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import pytest

from tests.fault.watch import watching
from tests.fault.world import (
    ALL_ACCEPTED,
    ALL_REFUSED,
    WITHOUT_BOTH,
    WITHOUT_SQL,
    everywhere,
    later_than,
    statuses,
    without_retry_after,
)
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.world import Answer, Cast, World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

#: docs/failure-modes.md: where SQL hangs.
ANSWER_S = 3.0
#: "At once", with room for a busy machine.
AT_ONCE_S = 0.5
#: More requests than open the breakers of both workers, however they are dealt.
CROWD = 16


@contextmanager
def killed(world: World) -> Iterator[None]:
    """SIGKILL, and later a recovery from its log."""
    world.postgres.kill()
    try:
        yield
    finally:
        world.postgres.start()


@contextmanager
def hung(world: World) -> Iterator[None]:
    """Connections are accepted, nothing is answered."""
    world.postgres.pause()
    try:
        yield
    finally:
        world.postgres.resume()


@pytest.mark.parametrize("fault", [killed, hung])
def test_without_sql_redis_answers_checks_and_nothing_is_written(world, fault):
    """The row of the matrix within 3 s, at once behind the breaker; what was refused has not happened."""
    cast = world.cast()
    preferences = world.preferences(cast.writes)
    alive = [cast.stays.access, cast.leaving, cast.leaves.access, cast.ended.access, cast.reads.access]

    with watching(world.service, good=alive, bad=[cast.gone.access]):
        with fault(world):
            answers = ask_in_a_crowd(world, cast)
            refused_s = world.service.from_each_worker(lambda: refusal_s(world, cast))
            ready = world.ask("GET", "/v1/health/ready")
            health = world.ask("GET", "/v1/health")
            live = world.ask("GET", "/v1/health/live")
            began = time.monotonic()
            kept = everywhere(world.service, *alive)
            checks_s = time.monotonic() - began
            out = everywhere(world.service, cast.gone.access)
        world.wait_whole()

    assert statuses(answers) == WITHOUT_SQL
    assert later_than(answers, ANSWER_S) == {}
    assert without_retry_after(answers) == []
    assert max(refused_s) < AT_ONCE_S
    assert (ready.status, ready.body["impaired"], live.status) == (200, ["database"], 200)
    assert (health.status, health.body["status"]) == (200, "degraded")
    assert (health.body["redis"], health.body["database"]) == ("connected", "down")
    assert kept == everywhere(world.service, *alive) == [ALL_ACCEPTED] * len(alive)
    assert checks_s < 2
    assert out == everywhere(world.service, cast.gone.access) == [ALL_REFUSED]
    assert world.refresh(cast.refreshes).status == 200
    assert world.preferences(cast.writes) == preferences


def ask_in_a_crowd(world: World, cast: Cast) -> dict[str, Answer]:
    """One request of each kind among so many others that the breaker of each worker is open afterwards."""
    with ThreadPoolExecutor(CROWD) as pool:
        crowd = [pool.submit(world.refresh, cast.refreshes) for _ in range(CROWD)]
        answers = world.ask_everything(cast)
        assert {other.result().status for other in crowd} == {503}
    return answers


def refusal_s(world: World, cast: Cast) -> float:
    """How long a refusal takes; a probe of the breaker may be among them."""
    return median(world.refresh(cast.refreshes).seconds for _ in range(5))


def test_trust_in_redis_alone_ends_at_its_limit(world):
    """Cut off from SQL a process goes on for REVOCATION_MAX_STALENESS, no longer; it recovers alone."""
    with world.replica(REVOCATION_MAX_STALENESS="2") as other:
        member = world.log_in("stays")
        before = everywhere(other.service, member.access)
        with killed(world):
            wait_until(
                lambda: set(other.service.verify_everywhere(member.access, times=1)) == {503}, timeout_s=5
            )
            ready = other.service.from_each_worker(lambda: other.ask("GET", "/v1/health/ready").status)
        other.wait_whole()

        assert before == everywhere(other.service, member.access) == [ALL_ACCEPTED]
        assert ready == [503, 503]


def test_without_both_nobody_is_let_in(world):
    """503 for everything but liveness; afterwards all is as it was."""
    cast = world.cast()
    tokens = (cast.stays.access, cast.gone.access)

    with watching(world.service, good=[cast.stays.access], bad=[cast.gone.access], allowed=(200, 503)):
        with killed(world):
            world.redis.kill()
            answers = world.ask_everything(cast)
            checks = everywhere(world.service, *tokens)
            ready = world.service.from_each_worker(lambda: world.ask("GET", "/v1/health/ready").status)
            health = world.ask("GET", "/v1/health")
            live = world.ask("GET", "/v1/health/live")
        world.redis.start()
        world.wait_whole()

    assert statuses(answers) == WITHOUT_BOTH
    assert later_than(answers, ANSWER_S) == {}
    assert without_retry_after(answers) == []
    assert checks == [{503: 40}, {503: 40}]
    assert (ready, health.status, live.status) == ([503, 503], 503, 200)
    assert (health.body["status"], health.body["redis"], health.body["database"]) == (
        "down",
        "disconnected",
        "down",
    )
    assert everywhere(world.service, *tokens) == [ALL_ACCEPTED, ALL_REFUSED]
