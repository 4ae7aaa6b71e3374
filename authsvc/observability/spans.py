"""Spans by OpenTelemetry; imported only if it is installed and enabled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

#: Left out: frequent probes would hide all other requests.
UNTRACED = "/v1/health/.*,/health,/metrics"
NS_PER_S = 1_000_000_000
#: Context key of the sampling decision that was made before there was a span.
_SAMPLED = create_key("authsvc-sampled")


class RequestsAlone(Sampler):
    """Starts traces only with requests, not with background work such as the comparison every second."""

    def __init__(self, ratio: float) -> None:
        self._ratio = TraceIdRatioBased(ratio)

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        """Decide about a span without a parent, unless this was decided already."""
        decided = get_value(_SAMPLED, args[0] if args else kwargs.get("parent_context"))
        if decided is not None:
            return SamplingResult(Decision.RECORD_AND_SAMPLE if decided else Decision.DROP)
        kind = kwargs.get("kind", args[3] if len(args) > 3 else None)  # noqa: PLR2004 - the fourth is the kind
        if kind is not SpanKind.SERVER:
            return SamplingResult(Decision.DROP)
        return self._ratio.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        """Its name."""
        return f"RequestsAlone({self._ratio.get_description()})"


class Spans:
    """The tracer provider of this process, and its instrumentation."""

    def __init__(self, *, version: str, sample_percent: int) -> None:
        self._ratio, self._ids = sample_percent / 100, SystemRandom()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "authsvc", "service.version": version}),
            sampler=ParentBased(root=RequestsAlone(self._ratio)),
            shutdown_on_exit=False,
        )
        self._tracer = self._provider.get_tracer("authsvc", version)

    def start(self) -> None:
        """Start the thread that sends the spans; after the fork."""
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

    def trace_id(self, _environ: Mapping[str, Any]) -> str:
        """The trace id of the request that this thread handles, in hex; "" if there is none."""
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def sample(self, traceparent: str) -> bool:
        """Whether to trace a request: as its caller has decided, else the configured share."""
        context = _extracted({"traceparent": traceparent})
        caller = trace.get_current_span(context).get_span_context()
        if caller.is_valid:
            return caller.trace_flags.sampled
        return self._ids.random() < self._ratio

    def instrument(self, app: Flask) -> None:
        """Make each request a span, named by its route."""
        FlaskInstrumentor().instrument_app(  # type: ignore[no-untyped-call]
            app, tracer_provider=self._provider, excluded_urls=UNTRACED
        )

    def around(self, application: WSGIApplication, route: str) -> WSGIApplication:
        """Make each request of *application* a span named *route*, without sub-path and query string."""

        def traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            method = environ["REQUEST_METHOD"]
            with self._tracer.start_as_current_span(
                f"{method} {route}",
                context=_context_of(environ),
                kind=SpanKind.SERVER,
                attributes={"http.request.method": method, "http.route": route},
            ) as span:

                def started(
                    status: str, headers: list[tuple[str, str]], *rest: Any
                ) -> Callable[[bytes], object]:
                    span.set_attribute("http.response.status_code", int(status[:3]))
                    return start_response(status, headers, *rest)

                return application(environ, started)

        return traced

    def connection(self, connection: Any) -> Any:
        """Make each statement on *connection* a span; parameters stay out of it."""
        return PsycopgInstrumentor.instrument_connection(connection, tracer_provider=self._provider)

    def redis_call(self, now_ns: Callable[[], int]) -> Callable[[str, float, str], None]:
        """Make a call to Redis a span, from its command, seconds and outcome."""

        def on_operation(name: str, seconds: float, outcome: str) -> None:
            if not trace.get_current_span().get_span_context().is_valid:
                return
            ended_ns = now_ns()
            span = self._tracer.start_span(
                name,
                kind=SpanKind.CLIENT,
                attributes={"db.system": "redis", "db.operation": name},
                start_time=ended_ns - int(seconds * NS_PER_S),
            )
            if outcome != "ok":
                span.set_status(Status(StatusCode.ERROR, outcome))
            span.end(ended_ns)

        return on_operation

    def close(self) -> None:
        """Send what is left, within the exporter's own time-out, and stop the thread."""
        self._provider.shutdown()


def _context_of(environ: Mapping[str, Any]) -> Context:
    """The trace context that the caller sent."""
    names = {"traceparent": "HTTP_TRACEPARENT", "tracestate": "HTTP_TRACESTATE"}
    given = {name: environ[key] for name, key in names.items() if key in environ}
    context = _extracted(given)
    decided = environ.get("authsvc.is_sampled")
    return context if decided is None else set_value(_SAMPLED, decided, context)


def _extracted(given: dict[str, str]) -> Context:
    return TraceContextTextMapPropagator().extract(given)
