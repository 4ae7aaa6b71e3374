"""What the workers of one service say of PostgreSQL: all the same, whichever of them is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import requests

from tests.processes import wait_until
from tests.rig import HOPELESS_S, Service, environment, migrate
from tests.servers import PostgresServer
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

POLLS = 30


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to be stopped."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def service(postgres, redis_server, tmp_path) -> Iterator[Service]:
    """A service of two workers on it."""
    env = environment(
        postgres.create_database(),
        redis_server.url,
        tmp_path,
        CACHE_KEY_PREFIX="agreeing",
        WEB_CONCURRENCY="2",
    )
    migrate(env)
    with Service(env, tmp_path, entry=PATIENT) as running:
        yield running


def ready(service: Service) -> tuple[int, str]:
    """What one worker says, over a connection of its own."""
    answer = requests.get(f"{service.url}/v1/health/ready", timeout=HOPELESS_S)
    return answer.status_code, f"{answer.json()['status']} {','.join(answer.json()['impaired'])}"


def polled(service: Service) -> set[tuple[int, str]]:
    """What is said to many who ask one after the other, four at a time: both workers are asked."""
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda _: ready(service), range(POLLS)))


def test_workers_agree_on_postgresql(service, postgres):
    """From the first that notices: 200 as long as checks can be answered, and what is impaired; and back."""
    wait_until(lambda: polled(service) == {(200, "ok ")}, what="both workers ready")

    postgres.stop()
    wait_until(lambda: ready(service) != (200, "ok "), what="the outage noticed")
    assert polled(service) == {(200, "degraded database")}

    postgres.start()
    wait_until(lambda: ready(service) == (200, "ok "), what="the end of the outage noticed")
    assert polled(service) == {(200, "ok ")}
