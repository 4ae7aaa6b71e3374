"""Imports without what libraries load where it is installed, and nothing here uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: redis-py loads OpenTelemetry's SDK for metrics of its own, flask-smorest YAML for a command of its own.
UNUSED = ("opentelemetry", "yaml")


@contextmanager
def without_unused() -> Iterator[None]:
    """Let what is imported within find none of UNUSED; whoever imports one later gets it."""
    absent = [name for name in UNUSED if name not in sys.modules]
    # The import system's own way to say that there is no such module.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
