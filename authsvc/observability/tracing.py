"""
Traces: the trace of a request (W3C Trace Context), and spans for a collector (OTLP).

Without a collector only the trace id of the caller is read, for the log.  With one (``TRACING=otlp``, and
the extra ``otel`` installed) requests, calls to Redis and SQL statements become spans: names of routes,
commands and statements with placeholders, never a key, a value or a token.  OpenTelemetry's own variables,
``OTEL_EXPORTER_OTLP_*``, name the collector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from authsvc import __version__
from authsvc.cache.events import CacheEvents, ignore
from authsvc.settings import Problem, TracingMode, TracingSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from flask import Flask

C = TypeVar("C")

_NEEDED = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.instrumentation")

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.{0,200})?"
)


def is_installed() -> bool:
    """True if OpenTelemetry is installed with all packages that spans need."""
    return all(find_spec(name) for name in _NEEDED)


def tracing_problems(settings: TracingSettings) -> Iterator[Problem]:
    """Problems: packages that the settings need and that are not installed."""
    if settings.mode is TracingMode.OTLP and not is_installed():
        yield Problem(name="TRACING", message="otlp needs OpenTelemetry: install requirements/otel.txt")


def caller_trace_id(environ: Mapping[str, Any]) -> str:
    """The trace id in the request's ``traceparent``; "" if it is missing or invalid."""
    found = _TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
    return found["trace"] if found else ""


def _same_application(application: WSGIApplication, _route: str) -> WSGIApplication:
    return application


def _same_connection(connection: C) -> C:
    return connection


def _never(_traceparent: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """The hooks for tracing; by default they do nothing."""

    #: The trace id of a request (by its WSGI environ), in hex; "" for none.
    trace_id: Callable[[Mapping[str, Any]], str] = caller_trace_id
    #: Decide, by its ``traceparent``, whether a request is traced that need not come to WSGI.  If it comes
    #: there after all, the environ has the decision as ``authsvc.is_sampled``.
    sample: Callable[[str], bool] = _never
    #: Make each request of a Flask application a span.
    instrument: Callable[[Flask], None] = ignore
    #: The same for an application before Flask, with the name of its route.
    around: Callable[[WSGIApplication, str], WSGIApplication] = _same_application
    #: Make each statement on a connection of psycopg a span.
    connection: Callable[[Any], Any] = _same_connection
    #: Make each call to Redis a span.
    redis: CacheEvents = field(default_factory=CacheEvents)
    #: Begin to send spans; once per process, after the fork.
    start: Callable[[], None] = ignore
    #: Send the remaining spans.
    close: Callable[[], None] = ignore

    @property
    def is_on(self) -> bool:
        """True where requests of the Flask application are made spans."""
        return self.instrument is not ignore


def open_tracing(settings: TracingSettings, *, now_ns: Callable[[], int]) -> Tracing:
    """
    Tracing over HTTP to a collector, on a separate thread that :attr:`Tracing.start` starts, or none.

    Of requests whose caller has not decided, the configured share is traced; *now_ns* is the wall clock in
    nanoseconds.
    """
    if settings.mode is TracingMode.OFF:
        return Tracing()
    from authsvc.observability.spans import Spans

    spans = Spans(version=__version__, sample_percent=settings.sample_percent)
    return Tracing(
        trace_id=spans.trace_id,
        sample=spans.sample,
        instrument=spans.instrument,
        around=spans.around,
        connection=spans.connection,
        redis=CacheEvents(on_operation=spans.redis_call(now_ns)),
        start=spans.start,
        close=spans.close,
    )
