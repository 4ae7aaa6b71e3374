"""The user cache, for admins: counts, health, warming, clearing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Response, jsonify, request
from marshmallow import Schema

from authsvc.api.frame.bodies import Blueprint, load, read_json
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import requires
from authsvc.api.schemas.batches import ClearBody
from authsvc.api.schemas.reports import CacheMetricsView, CacheStatsView, ClearedView, WarmedView
from authsvc.cache.monitor import Snapshot
from authsvc.domain.audit import Action, Event

blp = Blueprint("cache", __name__, url_prefix="/v1/cache", description="The user cache, for admins.")


def _done(schema: type[Schema]) -> dict[str, Any]:
    return {"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}}


@blp.get("/stats")
@requires("admin")
@blp.doc(responses=_done(CacheStatsView))
@blp.refuses(503, "`unavailable`: Redis is away")
def stats() -> Response:
    """Show hits, misses and operations of all workers since the start."""
    return jsonify(asdict(services().cache.stats()))


@blp.get("/metrics")
@requires("admin")
@blp.doc(responses=_done(CacheMetricsView))
@blp.refuses(503, "`unavailable`: Redis is away")
def metrics() -> Response:
    """Show health, memory and key space of Redis; null where Redis does not permit the command."""
    return jsonify({**_described(services().cache.snapshot()), "cache": asdict(services().cache.stats())})


@blp.post("/warm")
@requires("admin")
@blp.doc(responses=_done(WarmedView))
@blp.refuses(503, "`unavailable`: Redis is away")
def warm() -> Response:
    """Fill the user cache with the users that are likely to be read next."""
    return jsonify(warmed=services().cache.warm())


@blp.post("/clear")
@requires("admin")
@blp.doc(
    responses=_done(ClearedView),
    requestBody={"required": False, "content": {"application/json": {"schema": ClearBody}}},
)
@blp.refuses(503, "`unavailable`: Redis is away")
def clear() -> Response:
    """Drop the cached data of one user, or of all; no session or token changes."""
    user_id = load(ClearBody(), read_json(request)) if request.get_data(cache=True) else None
    cleared = services().cache.clear(user_id)
    services().events.record(Event(Action.CACHE_CLEARED, user_id=user_id))
    return jsonify(cleared=cleared)


def _described(snapshot: Snapshot) -> dict[str, Any]:
    """*snapshot*, as the answer shows it."""
    health = snapshot.health
    return {
        "health": {"status": "up", "connected": health.is_connected, "latency_ms": health.latency_ms},
        "memory": asdict(snapshot.memory[0]) if snapshot.memory else {},
        "stats": asdict(snapshot.stats),
        "keyspace": asdict(snapshot.keyspace),
        "key_count": snapshot.keyspace.key_count,
    }
