"""The whole service behind PgBouncer, in the two ways in which it is usually run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.estate import create_root
from tests.rig import Service, environment, run_command
from tests.servers import drop_database
from tests.servers.binaries import is_here, pgbouncer_binary
from tests.servers.pgbouncer import PgBouncer
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PEOPLE = 12


@pytest.fixture(params=["session", "transaction"])
def service(request, postgres_server, redis_server, tmp_path) -> Iterator[Service]:
    """A service with two workers whose every way to PostgreSQL is a pooler, the upgrade's included."""
    if not is_here(pgbouncer_binary):
        pytest.skip("no pgbouncer here")
    url = postgres_server.create_database()
    with PgBouncer(postgres_server, mode=request.param) as pooler:
        env = environment(
            pooler.url_for(url), redis_server.url, tmp_path, CACHE_KEY_PREFIX=f"pooled-{request.param}"
        )
        assert run_command("db", "upgrade", env=env, folder=tmp_path, entry=PATIENT).returncode == 0
        create_root(env, tmp_path)
        with Service(env, tmp_path, entry=PATIENT) as running:
            yield running
    drop_database(postgres_server.url, url)


def test_people_come_and_go_through_a_pooler(service):
    """Register, log in, refresh, log out, be checked: all at once, in every worker."""

    def live(number: int) -> list[int]:
        email = f"p{number}@example.com"
        registered = service.register(email).status_code
        pairs = [service.log_in(email) for _ in range(3)]
        refreshed = service.call(
            "POST", "/v1/auth/refresh", json={"refresh_token": pairs[0]["refresh_token"]}
        )
        ended = service.call("POST", "/v1/auth/logout", token=pairs[1]["access_token"])
        checks = [service.verify(pair["access_token"]) for pair in pairs[1:]]
        return [registered, refreshed.status_code, ended.status_code, *checks]

    with ThreadPoolExecutor(PEOPLE) as pool:
        lives = list(pool.map(live, range(PEOPLE)))

    assert lives == [[201, 200, 204, 401, 200]] * PEOPLE
    admin = service.log_in("root@example.com")
    page = service.call("GET", "/v1/users?limit=100", token=admin["access_token"]).json()
    assert len(page["items"]) == PEOPLE + 1
    assert "prepared statement" not in service.log.read_text()
