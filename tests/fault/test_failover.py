"""A Sentinel failover: the new primary lacks what the old one was told last."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.clusters import SERVICE, watched
from tests.fault.audit import audit
from tests.fault.load import load, move_in, settle
from tests.fault.world import ADMIN, ALL_REFUSED, LIMITS, RECOVERY_S, START_S, World, everywhere
from tests.proxy import TcpProxy
from tests.rig import Service, environment, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clusters import Watched
    from tests.fault.ledger import Ledger
    from tests.servers import PostgresServer

pytestmark = [pytest.mark.fault, pytest.mark.slow]

#: The Sentinels wait for half a second, then agree, then tell the replica.
ELECTION_S = 10.0


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
    env = environment(private_postgres.create_database(), "", tmp_path, **LIMITS)
    del env["REDIS_URL"]
    env["REDIS_SENTINELS"] = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
    env["REDIS_SENTINEL_SERVICE"] = SERVICE
    migrate(env)
    with ExitStack() as stack:
        ahead, beside = (
            stack.enter_context(Service(env, tmp_path).start(ready_within_s=START_S)) for _ in range(2)
        )
        for name in ("visitor", "forgotten"):
            assert ahead.register(f"{name}@example.com").status_code == 201
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
    world, ledger = failing_over, _people(failing_over)

    with load(ledger, world.replicas, seed=score.name) as findings:
        sentinels.replica.pause()  # it misses what comes now
        world.log_out_in_vain()
        time.sleep(window_s / 2)
        sentinels.primary.kill()
        sentinels.replica.resume()
        score.recovery_s = world.wait_whole(ELECTION_S + RECOVERY_S)
    findings.add(settle(ledger, world.replicas))
    findings.add(audit(world, ledger))
    score.take(findings)

    assert findings.faults(may_lag=True) == {}
    assert not findings.answers["check 503"]
    (token,) = world.forgotten
    for service in world.replicas:
        assert everywhere(service, token) == [ALL_REFUSED]


def _people(world: World) -> Ledger:
    ledger: Ledger = []
    move_in(ledger, world.ahead)
    return ledger
