"""Redis is away, hung, read-only, full, emptied or old: who is logged in stays so, who is not stays out."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.fault.watch import watching
from tests.fault.world import (
    ALL_ACCEPTED,
    ALL_REFUSED,
    WHOLE,
    WITHOUT_REDIS,
    everywhere,
    later_than,
    refused_within,
    statuses,
    without_retry_after,
)
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

#: docs/failure-modes.md: where Redis is the cause.
ANSWER_S = 1.0
#: docs/failure-modes.md: a 202 holds in every worker so long after it, unless one is cut off.
ACCEPTED_FOR_S = 2.0


@contextmanager
def killed(world: World) -> Iterator[None]:
    """SIGKILL, and later an empty one on the same port."""
    world.redis.kill()
    try:
        yield
    finally:
        world.redis.start()


@contextmanager
def hung(world: World) -> Iterator[None]:
    """Connections are accepted, nothing is answered."""
    world.redis.pause()
    try:
        yield
    finally:
        world.redis.resume()


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """A replica of nobody: reads are answered, writes are READONLY."""
    with Redis.from_url(world.redis.url) as client:
        client.execute_command("REPLICAOF", world.redis.host, "1")
        try:
            yield
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def full(world: World) -> Iterator[None]:
    """Reads are answered, whatever takes memory is OOM."""
    with Redis.from_url(world.redis.url) as client:
        client.config_set("maxmemory", "1")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    ("fault", "impaired", "shown"),
    [
        pytest.param(killed, {"redis"}, ("degraded", "disconnected"), id="killed"),
        pytest.param(hung, {"redis"}, ("degraded", "disconnected"), id="hung"),
        # READONLY opens the breaker, which is then seen half open now and again.
        pytest.param(read_only, {"redis", "redis_proof"}, None, id="read-only"),
        pytest.param(full, {"redis_proof"}, None, id="full"),
    ],
)
def test_without_redis_sql_answers_and_a_logout_holds(world, fault, impaired, shown):
    """The row of the matrix within a second; what 202 ended is refused at once or soon, and for good."""
    cast = world.cast()
    ended = [cast.leaving, cast.leaves.access, cast.ended.access]

    with watching(world.service, good=[cast.stays.access], bad=[cast.gone.access]) as watch:
        with fault(world):
            answers = world.ask_everything(cast)
            for token in ended:
                refused_within(world.service, token, ACCEPTED_FOR_S)
            watch.bad.extend(ended)
            wait_until(lambda: is_impaired(world, impaired), timeout_s=2)
            health = world.ask("GET", "/v1/health")
            live = world.ask("GET", "/v1/health/live")
            during = everywhere(world.service, cast.gone.access, *ended)
            began = time.monotonic()
            kept = everywhere(world.service, cast.stays.access)
            forty_checks_s = time.monotonic() - began
        world.wait_whole()
        after = everywhere(world.service, cast.gone.access, *ended)

    assert statuses(answers) == WITHOUT_REDIS
    assert later_than(answers, ANSWER_S) == {}
    assert without_retry_after(answers) == []
    assert (health.status, live.status, live.body) == (200, 200, {"status": "ok"})
    assert health.body["database"] == "up"
    assert shown in (None, (health.body["status"], health.body["redis"]))
    assert during == after == [ALL_REFUSED] * 4
    assert kept == everywhere(world.service, cast.stays.access) == [ALL_ACCEPTED]
    assert forty_checks_s < 2
    assert world.service.verify(answers["refresh"].body["access_token"]) == 200
    assert world.preferences(cast.writes) == answers["write"].body
    wait_until(lambda: {world.redis_session(m) for m in (cast.gone, cast.leaves, cast.ended)} == {"ended"})


def is_impaired(world: World, by: set[str]) -> bool:
    """Each worker is ready, and says in the body that Redis is impaired in one of the ways *by*."""
    answers = world.service.from_each_worker(lambda: world.ask("GET", "/v1/health/ready"))
    assert {answer.status for answer in answers} == {200}
    return all(answer.body["impaired"] and by.issuperset(answer.body["impaired"]) for answer in answers)


def flush(world: World, _dump: Path) -> None:
    """Everything goes; the connections stay."""
    with Redis.from_url(world.redis.url) as client:
        client.flushall()


def restart_empty(world: World, _dump: Path) -> None:
    """Killed, and back at once with nothing."""
    world.redis.kill()
    world.redis.start()


def restore(world: World, dump: Path) -> None:
    """Killed, and back with what it held before the logout, its marker still fresh."""
    world.redis.restore(dump)


@pytest.mark.parametrize("lose", [flush, restart_empty, restore])
def test_a_redis_that_forgot_is_right_at_once(world, lose):
    """Nobody is logged out, nobody comes back in, and Redis learns again who is out."""
    cast = world.cast()
    dump = world.redis.save_dump()
    assert world.log_out(cast.leaves).status == 204
    out = [cast.gone.access, cast.leaving, cast.leaves.access]

    with watching(world.service, good=[cast.stays.access], bad=out):
        lose(world, dump)
        refused = everywhere(world.service, *out)
        kept = everywhere(world.service, cast.stays.access)
        wait_until(lambda: world.in_redis("auth:revocations:seq") is not None, timeout_s=2)
        wait_until(lambda: world.redis_session(cast.leaves) == "ended", timeout_s=2)
        if lose is not flush:
            world.wait_whole()  # attempts are counted again when the breaker closes, 2 s later
        answers = world.ask_everything(cast)

    assert refused == [ALL_REFUSED] * 3
    assert kept == [ALL_ACCEPTED]
    assert statuses(answers) == WHOLE
    assert later_than(answers, ANSWER_S) == {}


@pytest.mark.parametrize("fault", [killed, read_only, full])
def test_a_202_of_one_worker_holds_in_the_other_and_is_finished_later(world, fault):
    """Also where the other one can still read an old Redis; the tombstone follows, nobody asks for it."""
    older = world.log_in("leaves")
    member = world.refreshed(older)
    tokens = (older.access, member.access)
    assert everywhere(world.service, *tokens) == [ALL_ACCEPTED] * 2

    with fault(world):
        accepted = world.service.from_worker(0, lambda: world.log_out(member))
        for token in tokens:
            refused_within(world.service, token, ACCEPTED_FOR_S)
        meanwhile = everywhere(world.service, *tokens)

    with watching(world.service, bad=tokens):
        wait_until(lambda: world.redis_session(member) == "ended", timeout_s=10)
    assert accepted.status == 202
    assert meanwhile == everywhere(world.service, *tokens) == [ALL_REFUSED] * 2


def test_with_limits_off_redis_is_not_needed_to_come_in(world):
    """There is nothing to count: login and register are answered from SQL."""
    off = dict.fromkeys(
        ("RATE_LIMIT_LOGIN_IP", "RATE_LIMIT_LOGIN_ACCOUNT", "RATE_LIMIT_REGISTER_IP", "RATE_LIMIT_REFRESH"),
        "off",
    )
    with world.replica(**off) as other, killed(world):
        registered = other.register("uncounted@example.com")
        login = other.try_login("uncounted@example.com")

        assert (registered.status, login.status) == (201, 200)
        assert everywhere(other.service, login.body["access_token"]) == [ALL_ACCEPTED]


def test_the_marker_is_there_as_soon_as_the_service_is(world):
    """A new key prefix is an empty Redis: the first comparison fills it; a marker lives for 10 s."""
    with world.replica(CACHE_KEY_PREFIX="other"), Redis.from_url(world.redis.url) as client:
        wait_until(lambda: client.exists("other:v1:auth:revocations:seq") == 1, timeout_s=2)

        assert 0 < client.ttl("other:v1:auth:revocations:seq") <= 10
