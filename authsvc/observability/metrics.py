"""
The metrics of the service: prometheus_client behind one callable per metric.

With ``PROMETHEUS_MULTIPROC_DIR`` set (the server sets it) every worker stores its values in files there, and
any of them answers for all; without it, the values are in the memory of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from flask import Flask
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_flask_exporter import PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from authsvc.cache.breaker import State
from authsvc.cache.errors import Reason
from authsvc.domain import errors
from authsvc.domain.accounts.factors import AnswerKind
from authsvc.domain.accounts.mails import Template
from authsvc.domain.accounts.tickets import Purpose
from authsvc.domain.audit import Action
from authsvc.domain.ratelimits import Rule
from authsvc.domain.tokens.checks import Source
from authsvc.observability.figures import FOLDER_VARIABLE, SharedFigures, shared_figures
from authsvc.observability.totals import CacheTotals, MetricSource, Ratios, cache_totals

BREAKER_NUMBERS = {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 2}
CACHE_BUCKETS_S = (0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
HASH_BUCKETS_S = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5)
PROPAGATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300)

#: Label values that exist from the start, as 0: ``increase()`` does not see an event that begins its series.
_ALWAYS = ("ok", "malformed", errors.Invalid.code, errors.RateLimited.code, errors.StoreUnavailable.code)
_LOGINS = (
    *_ALWAYS,
    *(errors.InvalidCredentials.code, errors.HashingBusy.code),
    *(errors.SecondFactorRequired.code, errors.CodeInvalid.code, errors.EmailUnverified.code),
)
_REGISTRATIONS = (*_ALWAYS, errors.EmailTaken.code, errors.HashingBusy.code)
_REFRESHES = (*_ALWAYS, errors.RefreshInvalid.code, errors.RefreshReused.code, errors.SessionOver.code)
_MACHINE_TOKENS = (
    *("ok", "malformed", errors.ClientRefused.code, errors.RightMissing.code, errors.GrantUnsupported.code),
    *(errors.InvalidScope.code, errors.RateLimited.code, errors.StoreUnavailable.code),
)
_CHECKS = (
    *((result, source) for result in ("active", "revoked") for source in (Source.REDIS, Source.SQL)),
    *((result, Source.NONE) for result in ("invalid", "unavailable")),
)
_MAILS = tuple(
    (template, result) for template in Template for result in ("sent", "retried", "failed", "void")
)
_TICKETS = tuple((purpose, result) for purpose in Purpose for result in ("used", errors.CodeInvalid.code))
_SECOND_FACTORS = tuple(
    (kind, result)
    for kind in AnswerKind
    for result in (
        *("ok", errors.CodeInvalid.code, errors.RateLimited.code),
        errors.StoreUnavailable.code,
    )
)
_STEP_UPS = (
    *(*_ALWAYS, errors.CodeInvalid.code, errors.WrongPassword.code, errors.TokenInvalid.code),
    *(errors.Forbidden.code, errors.HashingBusy.code),
)
_READS = ("get", "get_many", "page")
_BATCHES = ("create", "lookup", "last_login")
_FAILURES = tuple(
    (method, str(status)) for method in ("GET", "POST", "PUT", "PATCH", "DELETE") for status in (500, 503)
)

#: How the gauges of live workers are combined.
_Mode: TypeAlias = Literal["livesum", "livemax"]


class _Children(dict[tuple[str, ...], Counter]):
    """The children of a counter by label values: looking one up here is 5 times faster than ``labels()``."""

    def __init__(self, parent: Counter) -> None:
        super().__init__()
        self.parent = parent

    def __missing__(self, key: tuple[str, ...]) -> Counter:
        child = self[key] = self.parent.labels(*key)
        return child


class _Maker:
    """Makes metrics of one registry; returns only the callable of each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def counter(self, name: str, about: str) -> Callable[..., None]:
        return Counter(name, about, registry=self.registry).inc

    def counts(
        self, name: str, about: str, *labels: str, known: Iterable[str | tuple[str, ...]]
    ) -> Callable[..., None]:
        children = _Children(Counter(name, about, labels, registry=self.registry))
        for values in known:
            children[(values,) if isinstance(values, str) else values]

        def count(*values: str, times: int = 1) -> None:
            children[values].inc(times)

        return count

    def histogram(self, name: str, about: str, buckets_s: Sequence[float]) -> Callable[[float], None]:
        return Histogram(name, about, registry=self.registry, buckets=buckets_s).observe

    def durations(
        self, name: str, about: str, buckets_s: Sequence[float], known: Iterable[str]
    ) -> Callable[[str, float], None]:
        histogram = Histogram(name, about, ["operation"], registry=self.registry, buckets=buckets_s)
        for operation in known:
            histogram.labels(operation)
        return lambda operation, seconds: histogram.labels(operation).observe(seconds)

    def batches(self) -> Callable[[str, float], None]:
        count = self.counts("user_batch_operations", "Batches by operation.", "operation", known=_BATCHES)
        name, about = "user_batch_operation_duration_seconds", "Time of one batch."
        observe = self.durations(name, about, HASH_BUCKETS_S, _BATCHES)

        def note(operation: str, seconds: float) -> None:
            count(operation)
            observe(operation, seconds)

        return note

    def breaker(self, name: str) -> Callable[[float], None]:
        return self.gauge(name, "0 closed, 1 open, 2 half-open; the worst of the workers.", "livemax")

    def gauge(self, name: str, about: str, mode: _Mode) -> Callable[[float], None]:
        return Gauge(name, about, registry=self.registry, multiprocess_mode=mode).set


def _made(make: Callable[..., Callable[..., None]], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - a field
    """
    A field of :class:`Metrics`; *make* is the method of the maker that creates it from the other arguments.
    """
    return field(metadata={"make": lambda maker: make(maker, *args, **options)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """
    One callable for each metric; labels are fixed words, never input.

    Its field is the only declaration. A call takes 1 to 3 µs, never blocks and never fails, even if the files
    are deleted.
    """

    registry: CollectorRegistry
    #: None if the values are in the memory of a single process.
    shared: SharedFigures | None

    login: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_logins", "Logins by result.", "result", known=_LOGINS
    )
    registration: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_registrations", "Registrations by result.", "result", known=_REGISTRATIONS
    )
    refresh: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_refreshes", "Refreshes by result.", "result", known=_REFRESHES
    )
    #: ``ok``, or the error code.
    machine_token: Callable[[str], None] = _made(
        _Maker.counts,
        "authsvc_machine_tokens",
        "Tokens that clients asked for.",
        "result",
        known=_MACHINE_TOKENS,
    )
    logout: Callable[[], None] = _made(_Maker.counter, "authsvc_logouts", "Sessions ended by their users.")
    #: Result and source: ``("active", "redis")``; *times* for many at once.
    token_check: Callable[..., None] = _made(
        _Maker.counts, "authsvc_token_checks", "Token checks.", "result", "source", known=_CHECKS
    )
    rate_limited: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_rate_limited", "Requests refused by a limit.", "rule", known=Rule
    )
    #: The name of the event, ``session.ended``.
    security_event: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_security_events", "Security events by name.", "event", known=Action
    )
    #: Seconds that one password took, and the number of waiting passwords.
    password_hash: Callable[[float], None] = _made(
        _Maker.histogram, "authsvc_password_hash_seconds", "Time one password took to hash.", HASH_BUCKETS_S
    )
    password_hash_queue: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_password_hash_queue", "Passwords that wait to be hashed.", "livesum"
    )
    #: Seconds from the SQL commit of a revocation until it is in Redis.
    revocation_propagation: Callable[[float], None] = _made(
        _Maker.histogram,
        "authsvc_revocation_propagation_seconds",
        "From the commit of a revocation to its copy in Redis.",
        PROPAGATION_BUCKETS_S,
    )
    #: Entries of the revocation log that Redis lacks, as far as this process knows.
    revocation_lag: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_revocation_lag", "Entries of the revocation log that Redis lacks.", "livemax"
    )
    #: Shards of Redis that are proven in this process; a single server is one shard.
    redis_shards_proven: Callable[[float], None] = _made(
        _Maker.gauge,
        "authsvc_redis_shards_proven",
        "Shards of Redis that the last comparison proved: 1 is all of one server, 64 all of a cluster.",
        "livemin",
    )
    #: Users found, and users not found, in one call of the user cache.
    user_cache_hits: Callable[[int], None] = _made(
        _Maker.counter, "user_cache_hits", "Users found in the cache."
    )
    user_cache_misses: Callable[[int], None] = _made(
        _Maker.counter, "user_cache_misses", "Users not found in the cache."
    )
    #: ``get``, ``get_many`` or ``page``, and seconds.
    user_cache_operation: Callable[[str, float], None] = _made(
        _Maker.durations,
        "user_cache_operation_duration_seconds",
        "Time of one read of users.",
        CACHE_BUCKETS_S,
        _READS,
    )
    #: ``create``, ``lookup`` or ``last_login``, and seconds; each is counted, too.
    user_batch: Callable[[str, float], None] = _made(_Maker.batches)
    #: Seconds.
    cache_operation: Callable[[float], None] = _made(
        _Maker.histogram, "cache_operation_latency_seconds", "Time of one call to Redis.", CACHE_BUCKETS_S
    )
    cache_error: Callable[[str], None] = _made(
        _Maker.counts, "cache_errors", "Calls to Redis that failed.", "reason", known=Reason
    )
    #: One of BREAKER_NUMBERS.
    breaker_state: Callable[[int], None] = _made(_Maker.breaker, "cache_circuit_breaker_state")
    active_locks: Callable[[int], None] = _made(
        _Maker.gauge, "cache_active_locks", "Locks that the workers hold.", "livesum"
    )
    #: Connections to SQL in use by this worker, and the state of its breaker as above.
    sql_connections: Callable[[int], None] = _made(
        _Maker.gauge,
        "authsvc_sql_connections_in_use",
        "Connections to SQL in use, over all workers.",
        "livesum",
    )
    sql_breaker_state: Callable[[int], None] = _made(_Maker.breaker, "authsvc_sql_circuit_breaker_state")
    #: Template and result (``sent``, ``retried``, ``failed``, ``void``); number of waiting mails; age of the
    #: oldest.
    mail: Callable[[str, str], None] = _made(
        _Maker.counts, "authsvc_mails", "Mails by result.", "template", "result", known=_MAILS
    )
    mail_queue: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_mail_queue", "Mails that wait in the outbox.", "livemax"
    )
    mail_oldest: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_mail_oldest_seconds", "How long the oldest of them has waited.", "livemax"
    )
    #: Purpose and result (``used``, or the error code).
    ticket: Callable[[str, str], None] = _made(
        _Maker.counts, "authsvc_tickets", "Uses of tickets.", "purpose", "result", known=_TICKETS
    )
    #: Kind of answer (``totp``, ``passkey``, ``recovery_code``) and result (``ok``, or the error code).
    second_factor: Callable[[str, str], None] = _made(
        _Maker.counts,
        "authsvc_second_factors",
        "Second factors judged.",
        "method",
        "result",
        known=_SECOND_FACTORS,
    )
    step_up: Callable[[str], None] = _made(
        _Maker.counts, "authsvc_step_ups", "Step-ups by result.", "result", known=_STEP_UPS
    )
    log_dropped: Callable[[], None] = _made(
        _Maker.counter, "authsvc_log_records_dropped", "Log records that nobody read in time."
    )
    #: Security events that are in the log but not in the audit trail.
    audit_unwritten: Callable[[int], None] = _made(
        _Maker.counter, "authsvc_audit_unwritten", "Security events that never became a row."
    )

    def start(self) -> None:
        """Store the values in files of this process from now on; once per process, after the fork."""
        if self.shared is not None:
            self.shared.start()

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics of all processes and their media type, even if the folder is damaged."""
        self.heal()
        source = self._source
        ratios = CollectorRegistry()
        ratios.register(Ratios(source))
        return _text(source) + generate_latest(ratios), CONTENT_TYPE_PLAIN_0_0_4

    def cache_totals(self) -> CacheTotals:
        """The cache's counts over all processes."""
        return cache_totals(self._source)

    @property
    def _source(self) -> MetricSource:
        """The values of all processes; only this one if it has no files that others could read."""
        return self.registry if self.shared is None or self.shared.is_in_memory else self.shared

    def mails_waiting(self, count: int, oldest_s: float) -> None:
        """How many mails wait in the outbox, and how many seconds the oldest has."""
        self.mail_queue(count)
        self.mail_oldest(oldest_s)

    def heal(self) -> bool:
        """Restore deleted files; call it periodically. True if all files exist now."""
        return self.shared is None or self.shared.heal()

    def instrument(self, app: Flask, *, excluded_paths: Sequence[str] = ()) -> None:
        """Time every request of *app* by its route template, unless its path matches an exclusion."""
        options = {"path": None, "group_by": "url_rule", "excluded_paths": list(excluded_paths)}
        if self.shared is None:
            exporter = PrometheusMetrics(None, registry=self.registry, **options)
        else:
            exporter = GunicornInternalPrometheusMetrics(None, registry=self.registry, **options)
        exporter.init_app(app)
        _begin_failures(self.registry)

    def count_of(self, method: str, rule: str, status: int) -> Callable[[float], None]:
        """Returns a function that counts a request that is answered without the instrumented application."""
        total = cast("Counter", _exported(self.registry, "flask_http_request_total"))
        duration = cast("Histogram", _exported(self.registry, "flask_http_request_duration_seconds"))
        of_these = duration.labels(method=method, url_rule=rule, status=str(status))
        all_of_status = total.labels(method, str(status))

        def count(seconds: float) -> None:
            of_these.observe(seconds)
            all_of_status.inc()

        return count


def make_metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Register every metric; a process that is forked later calls its ``start``."""
    folder = os.environ.get(FOLDER_VARIABLE)
    shared = shared_figures(Path(folder)) if folder else None
    maker = _Maker(registry if registry is not None else CollectorRegistry())
    made = {one.name: one.metadata["make"](maker) for one in fields(Metrics) if one.metadata}
    return Metrics(registry=maker.registry, shared=shared, **made)


def _begin_failures(registry: CollectorRegistry) -> None:
    """Start the exporter's counter of failed requests at 0."""
    requests = cast("Counter", _exported(registry, "flask_http_request_total"))
    for values in _FAILURES:
        requests.labels(*values)


def _exported(registry: CollectorRegistry, name: str) -> Collector:
    """
    A metric of the exporter, by name from the registry: the exporter itself does not expose its metrics.
    """
    return registry._names_to_collectors[name]  # noqa: SLF001


def _text(source: MetricSource) -> bytes:
    """The metrics of *source* in Prometheus' text format."""
    if isinstance(source, CollectorRegistry):
        return generate_latest(source)
    together = CollectorRegistry()
    together.register(source)
    return generate_latest(together)
