"""GET /v1/health and what is below it."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from tests.api.watching import Shelf
from tests.processes import wait_until


@pytest.fixture(scope="module")
def started(make_module_api):
    """Start an application as the server does."""
    api = make_module_api()
    api.services.start()
    ready = "/v1/health/ready"
    wait_until(lambda: api.call("GET", ready).status_code == 200, what="the first comparison")
    return api


@pytest.mark.parametrize("path", ["/v1/health", "/health"])
def test_the_summary_has_the_shape_that_dashboards_read(started, path):
    """Every member of the contract, and no more."""
    answer = started.call("GET", path)

    body = answer.json
    at = datetime.fromisoformat(body.pop("timestamp"))
    stats = body["cache"].pop("stats")
    assert answer.status_code == 200
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert set(stats) == {"hits", "misses", "hit_ratio"}
    assert body == {
        "status": "ok",
        "service": "authsvc",
        "redis": "connected",
        "database": "up",
        "cache": {"status": "up"},
    }


def test_hits_and_misses_are_counted(make_api):
    """The first read of a profile that is not cached is a miss, the second a hit."""
    api = make_api()
    person = api.someone()
    with closing(Shelf(api)) as shelf:
        assert shelf.drop(f"user:{person.id}") == 1
    for _ in range(4):
        person.call("GET", "/v1/me")

    stats = api.call("GET", "/v1/health").json["cache"]["stats"]

    assert stats == {"hits": 3, "misses": 1, "hit_ratio": 0.75}


def test_a_cache_that_is_switched_off_says_so(make_api):
    """``disabled``, and the status is fine."""
    body = make_api(CACHE_ENABLED="false").call("GET", "/v1/health").json

    assert (body["status"], body["cache"]["status"]) == ("ok", "disabled")


def test_probes_answer(started):
    """Live, ready and started."""
    assert started.call("GET", "/v1/health/live").json == {"status": "ok"}
    assert started.call("GET", "/v1/health/startup").json == {"status": "ok"}
    ready = started.call("GET", "/v1/health/ready")
    assert (ready.status_code, ready.json) == (200, {"status": "ok", "impaired": []})


def test_before_the_first_comparison_it_is_alive_but_not_ready(make_api):
    """A process that is still starting gets no traffic."""
    api = make_api()

    statuses = {
        name: api.call("GET", f"/v1/health/{name}").status_code for name in ("live", "startup", "ready")
    }

    assert statuses == {"live": 200, "startup": 503, "ready": 503}


def test_a_draining_process_is_not_ready_and_still_alive(started):
    """The endpoints let go of it first."""
    draining = threading.Event()
    draining.set()
    environ = {"authsvc.draining": draining}

    ready = started.call("GET", "/v1/health/ready", environ=environ)

    assert (ready.status_code, ready.json["status"]) == (503, "draining")
    assert started.call("GET", "/v1/health/live", environ=environ).status_code == 200


def test_details_are_for_admins(started):
    """The summary with version, latencies, pool, breaker and key counts."""
    admin = started.an_admin()

    body = admin.call("GET", "/v1/health/detailed").json

    assert set(started.call("GET", "/v1/health").json) < set(body)
    assert {"version", "latency_ms", "pool", "breakers", "keys"} <= set(body)
    assert set(body["latency_ms"]) == {"redis", "database"}
    assert body["breakers"] == {"redis": "closed", "database": "closed"}


def test_the_public_answers_name_no_version_and_no_address(started):
    """Callers who are not admins see only the state."""
    redis = started.env.get("REDIS_URL") or started.env["REDIS_CLUSTER_NODES"]
    urls = (started.env["DATABASE_URL"], *redis.split(","))
    for path in ("/v1/health", "/v1/health/live", "/v1/health/ready", "/v1/health/startup"):
        answer = started.call("GET", path)

        assert "version" not in answer.text
        assert not any(url in answer.text for url in urls)
