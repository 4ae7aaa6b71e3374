"""The series that alerts and panels read are there before anything has happened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests import ROOT

OBSERVABILITY = ROOT / "k8s" / "observability"
PANELS = json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]
GROUPS = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(rule["expr"] for group in GROUPS for rule in group["rules"]),
]
SELECTOR = re.compile(r"\b((?:authsvc|cache|user|flask)_[a-z_]+)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
#: One for each route that was asked for; a quantile of no requests has no value.
BY_ROUTE = "flask_http_request_duration_seconds_bucket"

#: What two workers show that have just started, one of which is gone again.
FRESH = """
import os, sys
from flask import Flask
from authsvc.observability.figures import forget_process
from authsvc.observability.metrics import make_metrics
def start():
    metrics = make_metrics()
    metrics.instrument(Flask("fresh"))
    return metrics
child = os.fork()
if child == 0:
    start()
    os._exit(0)
os.waitpid(child, 0)
forget_process(child)
sys.stdout.buffer.write(start().exposition()[0])
"""


def selectors() -> set[tuple[str, str]]:
    """Each metric with its matchers, as an expression names them."""
    return {found for expression in EXPRESSIONS for found in SELECTOR.findall(expression)}


def accepted_values(matchers: str) -> dict[str, set[str]]:
    """The values of each label that *matchers* name; a pattern of our own is a choice of words."""
    return {label: set(text.split("|")) for label, operator, text in MATCHER.findall(matchers)}


@pytest.fixture(scope="module", params=["one process", "workers"])
def fresh(request, tmp_path_factory) -> dict[str, list[dict[str, str]]]:
    """The labels of each series of a service that has done nothing yet, all of them 0."""
    env = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    if request.param == "workers":
        env["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path_factory.mktemp("figures"))
    shown = subprocess.run(
        [sys.executable, "-c", FRESH], env=env, capture_output=True, text=True, check=True
    ).stdout
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            if sample.name.startswith(("authsvc_", "cache_", "user_", "flask_http_")):
                assert sample.value == 0 or sample.name.endswith("_created"), sample
                series.setdefault(sample.name, []).append(sample.labels)
    return series


def test_each_series_that_an_expression_asks_for_is_there(fresh):
    """Each word of each matcher: ``increase`` and ``rate`` count from a 0 that Prometheus has seen."""
    asked = selectors()

    lacking = [
        f'{name}{{{label}="{value}"}}'
        for name, matchers in sorted(asked)
        for label, values in accepted_values(matchers).items()
        for value in sorted(values)
        if value != "5.." and value not in {labels.get(label) for labels in fresh.get(name, [])}
    ]

    assert len(asked) > 30
    assert lacking == []
    assert {name for name, _ in asked} - set(fresh) == {BY_ROUTE}


def test_the_failures_of_every_method_begin_at_0(fresh):
    """The panel of errors and the alert on 500 read them by a pattern."""
    found = {(labels["method"], labels["status"]) for labels in fresh["flask_http_request_total"]}

    assert found == {
        (method, status) for method in ("GET", "POST", "PUT", "PATCH", "DELETE") for status in ("500", "503")
    }
