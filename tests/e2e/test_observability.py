"""The dashboard and the alerts, as a real Prometheus sees the running service."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from tests import ROOT
from tests.processes import wait_until
from tests.rig import HOPELESS_S, PASSWORD, Service, environment, migrate, run_command
from tests.servers import RedisServer, drop_database
from tests.servers.binaries import BinaryMissing, prometheus_binary
from tests.servers.prometheus import OBSERVABILITY, PrometheusServer
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DASHBOARD = json.loads((OBSERVABILITY / "dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
METRIC = re.compile(r"\b(?:authsvc|cache|user|flask)_[a-z_]+\b")
ADMIN = "admin@example.com"
ACCOUNT_QUOTA = 3
#: In place of Grafana's word for "since the last scrapes".
RATE_INTERVAL = "60s"


def expressions() -> list[str]:
    """Every query of the dashboard and of the alerts."""
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in RULES)]


def shown_now(expression: str) -> str:
    """*expression* as Grafana sends it."""
    return expression.replace("$__rate_interval", RATE_INTERVAL)


def metrics_in(expression: str) -> set[str]:
    """The metrics that *expression* names."""
    return set(METRIC.findall(expression))


class Watched:
    """A service on a Redis of its own, and the Prometheus that watches it."""

    def __init__(
        self, service: Service, redis: RedisServer, prometheus: PrometheusServer, admin_id: str
    ) -> None:
        self.service = service
        self.redis = redis
        self.prometheus = prometheus
        self.admin_id = admin_id

    def state(self, alert: str) -> str:
        """``inactive``, ``pending`` or ``firing``."""
        return str(self.prometheus.alerts()[alert]["state"])


@pytest.fixture(scope="module")
def watched(postgres_server, tmp_path_factory) -> Iterator[Watched]:
    """One of each for all tests here."""
    require_prometheus()
    folder = tmp_path_factory.mktemp("watched")
    with RedisServer() as redis:
        limit = f"{ACCOUNT_QUOTA}/hour"
        env = environment(
            postgres_server.create_database(), redis.url, folder, RATE_LIMIT_LOGIN_ACCOUNT=limit
        )
        migrate(env)
        made = run_command(
            "users", "create", ADMIN, "--role", "admin", "--password-stdin",
            env=env, folder=folder, stdin=PASSWORD, entry=PATIENT,
        )  # fmt: skip
        with Service(env, folder, entry=PATIENT) as service, PrometheusServer(service) as prometheus:
            yield Watched(service, redis, prometheus, json.loads(made.stdout)["id"])
    drop_database(postgres_server.url, env["DATABASE_URL"])


def require_prometheus() -> None:
    """Skip where there is none; the project's own CI has one, or fails."""
    try:
        prometheus_binary()
    except BinaryMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


def be_used(watched: Watched) -> None:
    """Have requests of several kinds counted."""
    service = watched.service
    pair = logged_in(service, "ada@example.com")
    service.verify(pair["access_token"])
    body = {"refresh_token": pair["refresh_token"]}
    pair = service.call("POST", "/v1/auth/refresh", json=body).json()
    service.call("POST", "/v1/auth/logout", token=pair["access_token"])
    for _ in range(ACCOUNT_QUOTA + 1):
        service.call("POST", "/v1/auth/login", json={"email": "nobody@example.com", "password": "wrong"})


def scraped(watched: Watched) -> str:
    """What Prometheus reads."""
    return requests.get(watched.service.metrics_url, timeout=HOPELESS_S).text


def logged_in(service: Service, email: str) -> dict[str, Any]:
    """The tokens of a user, who is registered if need be; not before Redis is believed again."""
    body = {"email": email, "password": PASSWORD}
    wait_until(lambda: service.register(email).status_code in {201, 409})
    wait_until(lambda: service.call("POST", "/v1/auth/login", json=body).status_code == 200)
    return service.log_in(email)


def test_every_metric_that_is_shown_exists(watched):
    """In a scrape of the running service: a renamed metric leaves no empty panel behind."""
    named = set().union(*(metrics_in(expression) for expression in expressions()))
    suffixes = ("", "_total", "_bucket", "_sum", "_count")
    be_used(watched)

    def missing() -> set[str]:
        known = re.findall(r"^# TYPE (\S+)", scraped(watched), re.MULTILINE)
        return named - {name.removesuffix("_total") + suffix for name in known for suffix in suffixes}

    assert len(named) > 15
    # Some are counted behind the answer.
    wait_until(lambda: missing() == set(), what=f"none of {missing()} missing")


def test_every_query_is_understood(watched):
    """By Prometheus, with its own grammar; those about what has just happened yield something."""
    used = {
        "authsvc_logins_total",
        "authsvc_token_checks_total",
        "authsvc_revocation_lag",
        "authsvc_sql_connections_in_use",
        "user_cache_hit_ratio",
    }
    be_used(watched)

    def answered() -> set[str]:
        return {
            metric
            for expression in expressions()
            if watched.prometheus.ask(shown_now(expression))
            for metric in metrics_in(expression)
        }

    assert len(set(expressions())) > 30
    # A rate needs two scrapes.
    wait_until(lambda: used <= answered(), what=f"answers about {used}")


def test_every_rule_is_healthy_and_quiet(watched):
    """All that are shipped are evaluated without an error, and a service in order raises none."""
    wait_until(lambda: all(rule["health"] == "ok" for rule in watched.prometheus.alerts().values()))

    alerts = watched.prometheus.alerts()

    assert set(alerts) == {rule["alert"] for rule in RULES}
    assert {name for name, rule in alerts.items() if rule["state"] == "firing"} == set()


def test_an_outage_of_redis_raises_its_alerts(watched):
    """The breaker's, and that SQL decides; they end with the outage."""
    pair = logged_in(watched.service, "grace@example.com")
    alerts = ("AuthsvcRedisBreakerOpen", "AuthsvcChecksFromSql")
    watched.redis.kill()

    def are_raised() -> bool:
        assert watched.service.verify(pair["access_token"]) == 200
        return all(watched.state(alert) != "inactive" for alert in alerts)

    try:
        wait_until(are_raised, what=f"{alerts} raised")
    finally:
        watched.redis.start()

    def is_over() -> bool:
        assert watched.service.verify(pair["access_token"]) == 200
        return bool(watched.state("AuthsvcRedisBreakerOpen") == "inactive")

    wait_until(is_over, what="the breaker's alert over")


def test_the_first_reuse_of_a_refresh_token_raises_its_alert(watched):
    """The first in the life of a process: its counter was there before, as 0."""
    counter = 'sum(authsvc_security_events_total{event="refresh.reused"})'
    wait_until(lambda: watched.prometheus.ask(counter) != [], what="the counter in Prometheus")
    assert watched.prometheus.ask(counter)[0]["value"][1] == "0"
    tokens = [logged_in(watched.service, "mary@example.com")["refresh_token"]]
    for _ in range(2):
        answer = watched.service.call("POST", "/v1/auth/refresh", json={"refresh_token": tokens[-1]})
        tokens.append(answer.json()["refresh_token"])

    answer = watched.service.call("POST", "/v1/auth/refresh", json={"refresh_token": tokens[0]})

    assert answer.json()["code"] == "refresh_reused"
    wait_until(lambda: watched.state("AuthsvcRefreshReuse") == "firing", what="the alert")


def test_every_alert_says_where_to_read_on():
    """Its section in the documentation is there."""
    headings = re.findall(r"^## (\S+)$", Path(ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)

    assert [rule["annotations"]["runbook"] for rule in RULES] == [
        f"docs/alerts.md#{rule['alert'].lower()}" for rule in RULES
    ]
    assert sorted(headings) == sorted(rule["alert"] for rule in RULES)
