"""Unit tests reach for nothing outside the process."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Enough to turn red on what was broken before; HYPOTHESIS_EXAMPLES=1000 looks longer.  How long an example
# takes says something of the machine alone.
settings.register_profile(
    "unit",
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_sockets(socket_disabled: None) -> None:
    """Turn any use of a socket into an error."""
