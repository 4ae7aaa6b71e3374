"""One world for all faults: that it is whole again after each of them is what they promise."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.fault.ledger import Ledger
from tests.fault.opening import open_world
from tests.fault.people import move_in
from tests.fault.report import Score, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.world import World

HAS_PASSED = pytest.StashKey[bool]()
#: How long an outage lasts at least, in the long run and in the short one.
LONG_S, SHORT_S = 6.0, 0.3


def pytest_addoption(parser) -> None:
    """Choose between the two sizes."""
    parser.addoption(
        "--faults", choices=["some", "all"], default="some", help="how many faults, and for how long"
    )


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is for the long run alone."""
    if config.getoption("faults", "some") == "all":
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let a fixture know how its test ended."""
    report = yield
    if call.when == "call":
        item.stash[HAS_PASSED] = report.passed
    return report


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what the faults came to."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    passed = {r.nodeid for r in reports if getattr(r, "when", "") == "call" and r.passed}
    scores = [
        Score(**value | {"survived": report.nodeid in passed})
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, value in report.user_properties
        if name == "score"
    ]
    if scores:
        terminalreporter.section("faults")
        for line in table(scores):
            terminalreporter.write_line(line)


class Worlds:
    """The current world and its ledger; new ones after a test that left them broken."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._open = ExitStack()
        self._current: World | None = None
        self.ledger: Ledger = []

    def whole(self) -> World:
        """A world where everything works."""
        if self._current is None:
            self._current = self._open.enter_context(open_world(self._factory.mktemp("world")))
            self.ledger = []
            move_in(self.ledger, self._current.ahead)
        return self._current

    def discard(self) -> None:
        """End the current world."""
        self._current = None
        self._open.close()


WORLDS = pytest.StashKey[Worlds]()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem) -> None:
    """End the world with the last test here: its threads and processes are no neighbours for other tests."""
    kept = item.config.stash.get(WORLDS, None)
    if kept is not None and (nextitem is None or nextitem.path.parent != item.path.parent):
        kept.discard()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, request) -> Iterator[Worlds]:
    """Keep the world between tests."""
    kept = request.config.stash[WORLDS] = Worlds(tmp_path_factory)
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


@pytest.fixture
def audited(worlds: Worlds, request) -> Iterator[World]:
    """Give the test a world that works, and leave it to the test to see that it does again."""
    yield worlds.whole()
    if not request.node.stash.get(HAS_PASSED, False):
        worlds.discard()


@pytest.fixture
def ledger(world: World, worlds: Worlds) -> Ledger:
    """The people of the world."""
    return worlds.ledger


@pytest.fixture
def window_s(request) -> float:
    """Return how long an outage lasts at least (seconds)."""
    return LONG_S if request.config.getoption("faults", "some") == "all" else SHORT_S


@pytest.fixture
def score(record_property) -> Iterator[Score]:
    """A row of the table at the end."""
    row = Score()
    yield row
    record_property("score", row.plain())
