"""Time is an argument: a wall clock for what is written down, a monotonic one for durations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

#: The time now, aware, in UTC.
Clock = Callable[[], datetime]

#: Seconds that never run backwards; for durations alone.
Monotonic = Callable[[], float]
