"""Unit tests reach for nothing outside the process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_sockets(socket_disabled: None) -> None:
    """Turn any use of a socket into an error."""
