"""The verifier is tried against a service on this machine; nothing else is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.verifier.fake_service import FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def service(socket_enabled: None) -> Iterator[FakeService]:
    """A fake of the service: no revocations, one key, every token inactive."""
    with FakeService() as running:
        yield running
