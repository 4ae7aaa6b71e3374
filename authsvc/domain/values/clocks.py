"""Time is an argument: a wall clock for what is written down, a monotonic one for durations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

#: The time now, aware, in UTC.
Clock = Callable[[], datetime]

#: Seconds that never run backwards; for durations alone.
Monotonic = Callable[[], float]


def rfc3339(moment: datetime) -> str:
    """*moment*, which is aware, as every answer writes it: RFC 3339 in UTC, with ``Z`` at its end."""
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
