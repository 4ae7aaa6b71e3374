"""A Sentinel failover: the new primary may lack what the old one was told last."""

from __future__ import annotations

import time

import pytest

from tests.clusters import SERVICE, watched
from tests.processes import wait_until
from tests.rig import Service, environment, migrate

pytestmark = pytest.mark.fault

USERS = 6


@pytest.fixture
def failing_over(private_postgres, tmp_path):
    """The service behind three Sentinels, with a primary to kill."""
    with watched() as servers:
        env = environment(private_postgres.create_database(), "", tmp_path)
        del env["REDIS_URL"]
        env["REDIS_SENTINELS"] = ",".join(f"{host}:{port}" for host, port in servers.addresses)
        env["REDIS_SENTINEL_SERVICE"] = SERVICE
        migrate(env)
        with Service(env, tmp_path) as service:
            yield service, servers


def test_a_failover_logs_nobody_in_or_out(failing_over):
    """Whoever logged out stays out, at every moment; the others stay in; then all works as before."""
    service, servers = failing_over
    emails = [f"user{number}@example.com" for number in range(USERS)]
    assert {service.register(email).status_code for email in emails} == {201}
    pairs = [service.log_in(email) for email in emails]
    before, during, staying = pairs[0], pairs[1], pairs[2:]
    assert service.call("POST", "/v1/auth/logout", token=before["access_token"]).status_code == 204
    servers.replica.pause()  # the replica misses what comes now
    assert service.call("POST", "/v1/auth/logout", token=during["access_token"]).status_code == 204

    servers.primary.kill()
    servers.replica.resume()
    ends = time.monotonic() + 4
    verdicts = set()
    while time.monotonic() < ends:
        verdicts |= {("gone", service.verify(pair["access_token"])) for pair in (before, during)}
        verdicts |= {("staying", service.verify(pair["access_token"])) for pair in staying}

    assert verdicts == {("gone", 401), ("staying", 200)}
    wait_until(lambda: _logs_out_in_full(service, emails[2]), what="the new primary", timeout_s=10)
    assert [service.verify(pair["access_token"]) for pair in (before, during)] == [401, 401]
    assert {service.verify(pair["access_token"]) for pair in staying} == {200}


def _logs_out_in_full(service: Service, email: str) -> bool:
    """A session of its own begins, and ends in SQL and in Redis."""
    token = service.log_in(email)["access_token"]
    return service.call("POST", "/v1/auth/logout", token=token).status_code == 204
