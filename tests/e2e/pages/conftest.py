"""What the tests of pages share."""

from __future__ import annotations

import os

import pytest

from tests.servers.binaries import BinaryMissing, nginx_binary


@pytest.fixture(scope="module")
def _nginx_is_here() -> None:
    """Skip where there is no nginx, but never in CI."""
    try:
        nginx_binary()
    except BinaryMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
