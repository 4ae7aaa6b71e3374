"""
What the service counts: prometheus_client behind small verbs.

With ``PROMETHEUS_MULTIPROC_DIR`` set (the server sets it) every worker keeps its figures in files there
and any of them answers for all; without it there is one process and its memory.
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

#: How the gauges of the living workers become one number.
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
    """Makes metrics of one registry and gives back the verb alone."""

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
    """A field of :class:`Metrics` whose value one of the maker's methods, *make*, makes of the rest."""
    return field(metadata={"make": lambda maker: make(maker, *args, **options)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """
    One verb for each thing that is counted or measured; labels are words of the code, never input.

    Each is declared by its field alone.  A verb costs 1 to 3 µs, never blocks and never fails, whatever
    becomes of the files.
    """

    registry: CollectorRegistry
    #: None where the figures are in memory: one process alone.
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
    #: ``ok``, or the code of the refusal.
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
    #: Seconds one password took, and how many wait for their turn now.
    password_hash: Callable[[float], None] = _made(
        _Maker.histogram, "authsvc_password_hash_seconds", "Time one password took to hash.", HASH_BUCKETS_S
    )
    password_hash_queue: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_password_hash_queue", "Passwords that wait to be hashed.", "livesum"
    )
    #: Seconds from the SQL commit of a revocation to its being in Redis.
    revocation_propagation: Callable[[float], None] = _made(
        _Maker.histogram,
        "authsvc_revocation_propagation_seconds",
        "From the commit of a revocation to its copy in Redis.",
        PROPAGATION_BUCKETS_S,
    )
    #: Entries of the revocation log that Redis lacks, as this process knows it.
    revocation_lag: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_revocation_lag", "Entries of the revocation log that Redis lacks.", "livemax"
    )
    #: Parts of Redis that this process believes: one of one, or of the shards of a cluster.
    redis_shards_proven: Callable[[float], None] = _made(
        _Maker.gauge,
        "authsvc_redis_shards_proven",
        "Shards of Redis that the last comparison proved: 1 is all of one server, 64 all of a cluster.",
        "livemin",
    )
    #: How many were found, how many were not, in one call of the user cache.
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
    #: Connections to SQL that this worker uses now, and the breaker in front of them as above.
    sql_connections: Callable[[int], None] = _made(
        _Maker.gauge,
        "authsvc_sql_connections_in_use",
        "Connections to SQL in use, over all workers.",
        "livesum",
    )
    sql_breaker_state: Callable[[int], None] = _made(_Maker.breaker, "authsvc_sql_circuit_breaker_state")
    #: Template and result (``sent``, ``retried``, ``failed``, ``void``); how many wait, and the oldest's age.
    mail: Callable[[str, str], None] = _made(
        _Maker.counts, "authsvc_mails", "Mails by result.", "template", "result", known=_MAILS
    )
    mail_queue: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_mail_queue", "Mails that wait in the outbox.", "livemax"
    )
    mail_oldest: Callable[[float], None] = _made(
        _Maker.gauge, "authsvc_mail_oldest_seconds", "How long the oldest of them has waited.", "livemax"
    )
    #: Purpose and result (``used``, or the code of the refusal).
    ticket: Callable[[str, str], None] = _made(
        _Maker.counts, "authsvc_tickets", "Uses of tickets.", "purpose", "result", known=_TICKETS
    )
    #: Kind of answer (``totp``, ``passkey``, ``recovery_code``) and result (``ok``, or a refusal's code).
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
    #: Security events that the log has and the audit trail has not.
    audit_unwritten: Callable[[int], None] = _made(
        _Maker.counter, "authsvc_audit_unwritten", "Security events that never became a row."
    )

    def exposition(self) -> tuple[bytes, str]:
        """Return the figures of all processes and their media type; an answer whatever the folder is like."""
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
        """All processes; this one alone where there is no room for files that others could read."""
        return self.registry if self.shared is None or self.shared.is_in_memory else self.shared

    def mails_waiting(self, count: int, oldest_s: float) -> None:
        """How many mails wait in the outbox, and how many seconds the oldest has."""
        self.mail_queue(count)
        self.mail_oldest(oldest_s)

    def heal(self) -> bool:
        """Bring back files that were deleted; to be called now and then.  True if all is well now."""
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
        """What counts a request that is answered without the instrumented application, as it would."""
        total = cast("Counter", _exported(self.registry, "flask_http_request_total"))
        duration = cast("Histogram", _exported(self.registry, "flask_http_request_duration_seconds"))
        of_these = duration.labels(method=method, url_rule=rule, status=str(status))
        all_of_status = total.labels(method, str(status))

        def count(seconds: float) -> None:
            of_these.observe(seconds)
            all_of_status.inc()

        return count


def make_metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Register every metric; to be called once in each process, after the fork."""
    folder = os.environ.get(FOLDER_VARIABLE)
    shared = shared_figures(Path(folder)) if folder else None
    maker = _Maker(registry if registry is not None else CollectorRegistry())
    made = {one.name: one.metadata["make"](maker) for one in fields(Metrics) if one.metadata}
    return Metrics(registry=maker.registry, shared=shared, **made)


def _begin_failures(registry: CollectorRegistry) -> None:
    """Have the exporter's counter of requests begin at 0 where the service fails."""
    requests = cast("Counter", _exported(registry, "flask_http_request_total"))
    for values in _FAILURES:
        requests.labels(*values)


def _exported(registry: CollectorRegistry, name: str) -> Collector:
    """A metric of the exporter, which keeps them in closures; the registry alone knows them by name."""
    return registry._names_to_collectors[name]  # noqa: SLF001


def _text(source: MetricSource) -> bytes:
    """What *source* collects, as Prometheus reads it."""
    if isinstance(source, CollectorRegistry):
        return generate_latest(source)
    together = CollectorRegistry()
    together.register(source)
    return generate_latest(together)
