"""A Sentinel failover: the new primary lacks what the old one was told last."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.fault.asking import PATIENCE_S
from tests.fault.audit import assert_nothing_is_lost
from tests.fault.load import load, move_in
from tests.fault.machine_tokens import Machine, of_every_worker, verdicts, watching
from tests.fault.observing import feeling
from tests.fault.world import ADMIN, SETTINGS, WHOLE_WITHIN_S, World, sign_up, start_both
from tests.processes import wait_until
from tests.rig import Service, development, migrate
from tests.servers.clusters import SERVICE, cut_off, watched
from tests.servers.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer
    from tests.servers.clusters import Watched

pytestmark = [pytest.mark.fault, pytest.mark.slow]

#: The Sentinels wait for two seconds, then agree, then tell the replica.  One that stood still for 2 s
#: itself keeps out of it for 30 s.
ELECTION_S = 70.0


@pytest.fixture
def sentinels() -> Iterator[Watched]:
    """Start a primary and a replica that three Sentinels watch."""
    with watched() as servers:
        for server in (servers.primary, servers.replica):
            with Redis.from_url(server.url) as client:
                client.execute_command("ACL", "SETUSER", ADMIN, "on", "nopass", "~*", "&*", "+@all")
        yield servers


@pytest.fixture
def failing_over(sentinels: Watched, private_postgres: PostgresServer, tmp_path: Path) -> Iterator[World]:
    """Start two replicas of the service behind the Sentinels; its Redis is the one that will take over."""
    env = development(private_postgres.create_database(), "", tmp_path, **SETTINGS)
    del env["REDIS_URL"]
    env["REDIS_SENTINELS"] = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
    env["REDIS_SENTINEL_SERVICE"] = SERVICE
    migrate(env)
    with ExitStack() as stack:
        ahead, beside = start_both(
            stack, Service(env, tmp_path), Service(env | {"CHECK_LANE": "off"}, tmp_path)
        )
        for name in ("visitor", "forgotten"):
            sign_up(ahead, f"{name}@example.com")
        yield World(
            redis=sentinels.replica,
            postgres=private_postgres,
            redis_proxy=stack.enter_context(TcpProxy(sentinels.replica.url)),
            sql_proxy=stack.enter_context(TcpProxy(private_postgres.url)),
            ahead=ahead,
            beside=beside,
            service=ahead,
            forgotten=[],
        )


def test_a_failover_loses_nothing_that_was_acknowledged(failing_over, sentinels, window_s, score):
    """Whoever logged out stays out, at every moment, the others stay in; then all works as before."""
    score.name = "redis-sentinel-failover"
    world, ledger = failing_over, move_in(failing_over.ahead)
    member = world.log_in("forgotten")
    wait_until(lambda: world.redis_session(member) == "alive", timeout_s=PATIENCE_S, what="replica")

    with feeling(world, redis=False) as pulse, load(ledger, world.replicas, seed=score.name) as findings:
        cut_off(sentinels.replica, sentinels.primary)
        world.log_out_in_vain(member)
        time.sleep(window_s / 2)
        sentinels.primary.kill()
        sentinels.replica.resume()
        score.recovery_s = world.wait_whole(ELECTION_S + WHOLE_WITHIN_S)

    assert_nothing_is_lost(world, ledger, findings, pulse, score)
    assert len(world.forgotten) == 1


def test_a_failover_brings_no_token_of_a_machine_back(failing_over, sentinels):
    """
    Ended before it, during it or after it: refused by the next check on; the others stay good.

    The replica that takes over has missed the first two, a dropped secret and a revoked token.
    """
    world = failing_over
    one, other = Machine.made_in(world), Machine.made_in(world)
    tokens = {
        "dropped before": one.token(0),
        "revoked before": one.token(1),
        "stays": one.token(1),
        "dropped during": other.token(0),
        "dropped after": other.token(1),
    }
    good, dead = (of_every_worker(world, status) for status in (200, 401))
    assert {name: verdicts(world, shown) for name, shown in tokens.items()} == dict.fromkeys(tokens, good)

    with watching(world, tokens) as watch:
        cut_off(sentinels.replica, sentinels.primary)
        watch.end("dropped before", lambda: one.drop_secret_of(tokens["dropped before"]))
        watch.end("revoked before", lambda: one.post(1, "revoke", token=tokens["revoked before"]))
        sentinels.primary.kill()
        watch.end("dropped during", lambda: other.drop_secret_of(tokens["dropped during"]))
        sentinels.replica.resume()
        world.wait_whole(ELECTION_S + WHOLE_WITHIN_S)
        watch.end("dropped after", lambda: other.drop_secret_of(tokens["dropped after"]))

    assert watch.wrong == []
    assert {name: verdicts(world, shown) for name, shown in tokens.items()} == {
        name: good if name == "stays" else dead for name in tokens
    }
