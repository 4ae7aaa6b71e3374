"""What the machine offers this process."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores() -> int:
    """The cores that this process may keep busy: its affinity, within a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
