"""Schemas of health and of the user cache, for the description."""

from __future__ import annotations

from marshmallow import fields, validate

from authsvc.api.schemas.kinds import Time, View


def _one_of(*words: str) -> fields.String:
    return fields.String(validate=validate.OneOf(words))


class LifeView(View):
    """Whether the process runs, or has started."""

    status = _one_of("ok", "starting")


class ReadyView(View):
    """Whether the process can answer token checks, and what is degraded."""

    sometimes = frozenset({"impaired"})

    status = _one_of("ok", "degraded", "down", "starting", "draining")
    impaired = fields.List(_one_of("redis", "redis_proof", "database", "signing_keys"))


class CacheCounts(View):
    """Reads and hits of the user cache."""

    hits = fields.Integer()
    misses = fields.Integer()
    hit_ratio = fields.Float()


class CacheHealth(View):
    """The user cache."""

    status = _one_of("up", "down", "disabled")
    stats = fields.Nested(CacheCounts)


class HealthView(View):
    """State of both stores and of the cache."""

    status = _one_of("ok", "degraded", "down")
    service = fields.String()
    timestamp = Time()
    redis = _one_of("connected", "disconnected", "in-memory")
    database = _one_of("up", "down")
    cache = fields.Nested(CacheHealth)


class DetailedHealthView(HealthView):
    """The same, with details for operators."""

    version = fields.String()
    latency_ms = fields.Dict(keys=fields.String(), values=fields.Float())
    redis_proven = fields.Boolean()
    redis_shards = fields.Dict(keys=fields.String(), values=fields.Integer())
    breakers = fields.Dict(keys=fields.String(), values=fields.String())
    pool = fields.Dict(keys=fields.String())
    keys = fields.Integer(allow_none=True)
    revocations = fields.Dict(keys=fields.String())
    hashing_queue = fields.Integer()
    mail = fields.String(validate=validate.OneOf(("up", "delayed", "off")), allow_none=True)


class CacheStatsView(CacheCounts):
    """Counts of all workers since the start."""

    operations = fields.Integer()
    average_latency_ms = fields.Float()
    breaker = _one_of("closed", "half_open", "open")
    active_locks = fields.Integer()


class CacheMetricsView(View):
    """What Redis reports about itself; null where it does not permit the command."""

    health = fields.Dict(keys=fields.String())
    memory = fields.Dict(keys=fields.String())
    stats = fields.Dict(keys=fields.String())
    keyspace = fields.Dict(keys=fields.String())
    key_count = fields.Integer(allow_none=True)
    cache = fields.Nested(CacheStatsView)


class WarmedView(View):
    """How many records each warmer has in the cache now."""

    warmed = fields.Dict(keys=fields.String(), values=fields.Integer())


class ClearedView(View):
    """How many records were dropped."""

    cleared = fields.Integer()
