"""What the tests of the OAuth endpoints share: a client, and somebody with tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.gateway import Gateway

if TYPE_CHECKING:
    from tests.api.driver import Api, Person


@pytest.fixture
def gateway(pg_api: Api) -> Gateway:
    """Register a client."""
    return Gateway.of(pg_api)


@pytest.fixture
def person(pg_api: Api) -> Person:
    """Log somebody in."""
    return pg_api.someone()
