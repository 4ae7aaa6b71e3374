"""The trace id that a caller sends (W3C Trace Context), and what a trace begins with."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanKind

from authsvc.observability.spans import RequestsAlone
from authsvc.observability.tracing import caller_trace_id

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01-later"]
)
def test_a_trace_is_read(header):
    """Sampled or not, also of a version to come."""
    assert caller_trace_id({"HTTP_TRACEPARENT": header}) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-{'x' * 300}",
    ],
)
def test_what_is_broken_is_no_trace(header):
    """It never reaches the log."""
    assert caller_trace_id({"HTTP_TRACEPARENT": header}) == ""


def test_who_sends_none_has_none():
    """As most callers."""
    assert caller_trace_id({}) == ""


@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.INTERNAL, SpanKind.PRODUCER, SpanKind.CONSUMER])
def test_a_trace_begins_with_a_request_alone(kind):
    """Not with a statement of the comparison that runs every second, however many requests are traced."""
    all_requests = RequestsAlone(1.0)

    assert all_requests.should_sample(None, 1, "SELECT", kind).decision is Decision.DROP
    assert all_requests.should_sample(None, 1, "SELECT", kind=kind).decision is Decision.DROP
    sampled = all_requests.should_sample(None, 1, "GET /v1/me", kind=SpanKind.SERVER)
    assert sampled.decision is Decision.RECORD_AND_SAMPLE
    refused = RequestsAlone(0.0).should_sample(None, 1, "GET /v1/me", kind=SpanKind.SERVER)
    assert refused.decision is Decision.DROP
