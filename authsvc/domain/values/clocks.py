"""Time is an argument: a wall clock for what is stored, a monotonic clock for durations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

#: Returns the current time, timezone-aware, in UTC.
Clock = Callable[[], datetime]

#: Seconds that never run backwards; only for durations.
Monotonic = Callable[[], float]


def rfc3339(moment: datetime) -> str:
    """*moment* (timezone-aware) in the format of all answers: RFC 3339 in UTC, with ``Z`` at the end."""
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
