"""Health: liveness, readiness, startup, summaries."""

from __future__ import annotations

from typing import Any

from flask import Blueprint as PlainBlueprint
from flask import Response, jsonify, request
from marshmallow import Schema

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import public, requires
from authsvc.api.schemas.reports import DetailedHealthView, HealthView, LifeView, ReadyView

blp = Blueprint("health", __name__, url_prefix="/v1/health", description="Probes and summaries.")
alias = PlainBlueprint("health_alias", __name__)


def _up_or_down(schema: type[Schema]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "200": {"description": "Yes", "content": content},
        "503": {"description": "No", "content": content},
    }


_ALIVE = {"200": _up_or_down(LifeView)["200"]}


@blp.get("/live")
@public
@blp.doc(responses=_ALIVE)
def live() -> Response:
    """Report that this process runs; asks no store."""
    return jsonify(status="ok")


@blp.get("/ready")
@public
@blp.doc(responses=_up_or_down(ReadyView))
def ready() -> tuple[Response, int]:
    """Report whether this process can answer token checks, and what is degraded."""
    draining = request.environ.get("authsvc.draining")
    report = services().health.readiness(is_draining=draining is not None and draining.is_set())
    return jsonify(report.body), 200 if report.is_good else 503


@blp.get("/startup")
@public
@blp.doc(responses=_up_or_down(LifeView))
def startup() -> tuple[Response, int]:
    """Report whether this process has finished starting."""
    has_started = services().health.has_started()
    return jsonify(status="ok" if has_started else "starting"), 200 if has_started else 503


@blp.get("")
@public
@blp.doc(responses=_up_or_down(HealthView))
def summary() -> tuple[Response, int]:
    """Summarise both stores and the cache."""
    report = services().health.summary()
    return jsonify(report.body), 200 if report.is_good else 503


@blp.get("/detailed")
@requires("admin")
@blp.doc(responses=_up_or_down(DetailedHealthView))
def detailed() -> tuple[Response, int]:
    """Summarise with version, latencies, pool, breaker and key counts."""
    report = services().health.detail()
    return jsonify(report.body), 200 if report.is_good else 503


alias.add_url_rule("/health", view_func=summary)
