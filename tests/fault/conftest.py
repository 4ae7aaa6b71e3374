"""One world for all faults: that it is whole again after each of them is what they promise."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.fault.world import World, open_world

if TYPE_CHECKING:
    from collections.abc import Iterator


class Worlds:
    """The current world; a new one after a test that left it broken."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._open = ExitStack()
        self._current: World | None = None

    def whole(self) -> World:
        """A world where everything works."""
        if self._current is None:
            self._current = self._open.enter_context(open_world(self._factory.mktemp("world")))
        return self._current

    def discard(self) -> None:
        """End the current world."""
        self._current = None
        self._open.close()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Iterator[Worlds]:
    """Keep the world between tests."""
    kept = Worlds(tmp_path_factory)
    yield kept
    kept.discard()


@pytest.fixture
def world(worlds: Worlds) -> Iterator[World]:
    """Give the test a world that works, and require that it works again after it."""
    current = worlds.whole()
    yield current
    try:
        current.wait_whole()
    except BaseException:
        worlds.discard()
        raise
