"""Is it alive, is it ready, how is it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint as PlainBlueprint
from flask import Response, jsonify, request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import public, requires

blp = Blueprint("health", __name__, url_prefix="/v1/health", description="Probes and summaries.")
alias = PlainBlueprint("health_alias", __name__)

_ANSWER: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}}
_UP_OR_DOWN = {"200": {"description": "Yes", **_ANSWER}, "503": {"description": "No", **_ANSWER}}


@blp.get("/live")
@public
@blp.doc(responses={"200": {"description": "Yes", **_ANSWER}})
def live() -> Response:
    """Answer that this process runs; depends on nothing."""
    return jsonify(status="ok")


@blp.get("/ready")
@public
@blp.doc(responses=_UP_OR_DOWN)
def ready() -> tuple[Response, int]:
    """Answer whether this process can answer token checks, and what is impaired."""
    draining = request.environ.get("authsvc.draining")
    report = services().health.readiness(is_draining=draining is not None and draining.is_set())
    return jsonify(report.body), 200 if report.is_good else 503


@blp.get("/startup")
@public
@blp.doc(responses=_UP_OR_DOWN)
def startup() -> tuple[Response, int]:
    """Answer whether this process has finished starting."""
    has_started = services().health.has_started()
    return jsonify(status="ok" if has_started else "starting"), 200 if has_started else 503


@blp.get("")
@public
@blp.doc(responses=_UP_OR_DOWN)
def summary() -> tuple[Response, int]:
    """Summarise both stores and the cache."""
    report = services().health.summary()
    return jsonify(report.body), 200 if report.is_good else 503


@blp.get("/detailed")
@requires("admin")
@blp.doc(responses=_UP_OR_DOWN)
def detailed() -> tuple[Response, int]:
    """Summarise with version, latencies, pool, breaker and key counts."""
    report = services().health.detail()
    return jsonify(report.body), 200 if report.is_good else 503


alias.add_url_rule("/health", view_func=summary)
