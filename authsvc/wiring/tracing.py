"""Traces as the settings ask for them."""

from __future__ import annotations

import time

from authsvc import __version__
from authsvc.observability.tracing import Tracing, otlp_tracing
from authsvc.settings import TracingMode, TracingSettings


def open_tracing(settings: TracingSettings) -> Tracing:
    """Spans to a collector, or none; raises TracingMissing."""
    if settings.mode is TracingMode.OFF:
        return Tracing()
    return otlp_tracing(version=__version__, sample_percent=settings.sample_percent, now_ns=time.time_ns)
