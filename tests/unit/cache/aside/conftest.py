"""The cache beside the shelf."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.cache import Aside, Display, Records
from tests.unit.cache.aside.shelf import EMMA, SHAPE, SPACE, ULYSSES, Later, Shelf


@pytest.fixture
def shelf():
    """Return a shelf with two books."""
    return Shelf(EMMA, ULYSSES)


@pytest.fixture
def books(client, log):
    """Return the cache beside the shelf; no jitter."""
    return Aside(
        Records(
            client=client,
            space=SPACE,
            shape=SHAPE,
            lease_ms=5000,
            rng=lambda: 0.5,
        ),
        events=log.events(),
    )


@pytest.fixture
def later():
    """Return a refresher that waits."""
    return Later()


@pytest.fixture
def shown(books, later):
    """Return the same cache, marked for display: 30 s stale, an hour when the shelf fails."""
    display = Display(refresher=later, stale_s=30, on_error_s=3600, errors=(ConnectionError,))
    return replace(books, records=replace(books.records, display=display))
