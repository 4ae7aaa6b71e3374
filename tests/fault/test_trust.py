"""How long Redis is believed, by whom, and what is done without it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.fault import breaking_redis, breaking_sql
from tests.fault.asking import ALL_ACCEPTED, ALL_REFUSED, PATIENCE_S, answered, everywhere, refused_within
from tests.fault.ledger import ACCEPTED_FOR_S
from tests.fault.observing import watching
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

OFF = dict.fromkeys(
    ("RATE_LIMIT_LOGIN_IP", "RATE_LIMIT_LOGIN_ACCOUNT", "RATE_LIMIT_REGISTER_IP", "RATE_LIMIT_REFRESH"), "off"
)


@pytest.mark.parametrize(
    "breaking",
    [
        pytest.param(breaking_redis.killed, id="killed"),
        pytest.param(breaking_redis.read_only, id="read-only"),
        pytest.param(breaking_redis.configured("maxmemory", "1", "0"), id="full"),
    ],
)
def test_a_202_of_one_worker_holds_in_the_other_and_is_finished_later(
    world: World, breaking: Callable[[World], AbstractContextManager[None]]
):
    """Also where the other one can still read an old Redis; the tombstone follows, nobody asks for it."""
    older = world.log_in("leaves")
    member = world.refreshed(older)
    tokens = (older.access, member.access)
    assert everywhere(world.service, *tokens) == [ALL_ACCEPTED] * 2

    with breaking(world):
        accepted = world.service.from_worker(0, lambda: answered(partial(world.log_out, member)))
        for token in tokens:
            refused_within(world.service, token, ACCEPTED_FOR_S)
        meanwhile = everywhere(world.service, *tokens)

    with watching(world.service, bad=tokens):
        wait_until(lambda: world.redis_session(member) == "ended", timeout_s=PATIENCE_S)
    assert accepted.status == 202
    assert meanwhile == everywhere(world.service, *tokens) == [ALL_REFUSED] * 2


def test_with_limits_off_redis_is_not_needed_to_come_in(world):
    """There is nothing to count: login and register are answered from SQL."""
    with world.replica(**OFF) as other, breaking_redis.killed(world):
        registered = other.register("uncounted@example.com")
        login = answered(partial(other.try_login, "uncounted@example.com"))

        assert (registered.status, login.status) == (201, 200)
        assert everywhere(other.service, login.body["access_token"]) == [ALL_ACCEPTED]


def test_the_marker_is_there_as_soon_as_the_service_is(world):
    """A new key prefix is an empty Redis: the first comparison fills it; a marker lives for 10 s."""
    with world.replica(CACHE_KEY_PREFIX="other"), world.redis_admin() as client:
        wait_until(lambda: client.exists("other:v1:auth:revocations:seq") == 1, timeout_s=PATIENCE_S)

        assert 0 < client.ttl("other:v1:auth:revocations:seq") <= 10


def test_trust_in_redis_alone_ends_at_its_limit(world):
    """Cut off from SQL a process goes on for REVOCATION_MAX_STALENESS, no longer; it recovers alone."""
    with world.replica(REVOCATION_MAX_STALENESS="2") as other:
        member = world.log_in("stays")
        before = everywhere(other.service, member.access)
        with breaking_sql.killed(world):
            wait_until(
                lambda: set(other.service.verify_everywhere(member.access, times=1)) == {503},
                timeout_s=PATIENCE_S,
            )
            ready = other.service.from_each_worker(lambda: other.ask("GET", "/v1/health/ready").status)
        other.wait_whole()

        assert before == everywhere(other.service, member.access) == [ALL_ACCEPTED]
        assert ready == [503, 503]
