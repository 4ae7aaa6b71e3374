"""One running service with its stores for all fault tests: after each fault it must work fully again."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import pytest

from tests.fault.ledger import WRONGS, Ledger
from tests.fault.load import move_in
from tests.fault.world import open_world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fault.ledger import Findings
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
            self.ledger = move_in(self._current.ahead)
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
def world(worlds: Worlds, request) -> Iterator[World]:
    """
    Give the test a world that works, and require that it works again after it.

    A test that is marked ``audits`` sees to that by itself.
    """
    current = worlds.whole()
    yield current
    is_whole = False
    try:
        if request.node.get_closest_marker("audits") is None:
            current.wait_whole()
            is_whole = True
        else:
            is_whole = request.node.stash.get(HAS_PASSED, False)
    finally:
        if not is_whole:
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


HEADINGS = (
    *("fault", "answers", "lost", "doubled", "let in", "foreign", "500s"),
    *("503s", "their p99", "whole in", "machine"),
)


@dataclass(slots=True)
class Score:
    """One fault."""

    name: str = ""
    answers: int = 0
    wrongs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WRONGS, 0))
    refusals_s: list[float] = field(default_factory=list)
    recovery_s: float = 0.0
    #: The longest bare round trip to a store that was not broken: long ones are laid to the machine.
    pulse_s: float = 0.0
    survived: bool = False

    def take(self, findings: Findings) -> None:
        """Count what was found."""
        self.answers += findings.answers.total()
        for name in WRONGS:
            self.wrongs[name] += len(getattr(findings, name))
        self.refusals_s += [round(seconds, 3) for seconds in findings.refusals_s]

    def line(self) -> tuple[str, ...]:
        """The row of the table."""
        name = self.name if self.survived else f"{self.name} FAILED"
        wrongs = (str(self.wrongs[wrong]) for wrong in WRONGS)
        refused = (str(len(self.refusals_s)), f"{p99(self.refusals_s):.2f} s" if self.refusals_s else "-")
        return (
            name,
            str(self.answers),
            *wrongs,
            *refused,
            f"{self.recovery_s:.1f} s",
            f"{self.pulse_s:.2f} s",
        )

    def plain(self) -> dict[str, Any]:
        """What goes from one process of the test run to another."""
        return asdict(self)


def p99(seconds: list[float]) -> float:
    """The 99th of a hundred."""
    return quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else sum(seconds)


def table(scores: Sequence[Score]) -> list[str]:
    """The table, and its sum."""
    rows = [score.line() for score in scores]
    total = Score(
        name=f"{sum(score.survived for score in scores)}/{len(scores)} survived",
        answers=sum(score.answers for score in scores),
        wrongs={wrong: sum(score.wrongs[wrong] for score in scores) for wrong in WRONGS},
        refusals_s=[seconds for score in scores for seconds in score.refusals_s],
        recovery_s=max((score.recovery_s for score in scores), default=0),
        pulse_s=max((score.pulse_s for score in scores), default=0),
        survived=True,
    )
    lines = [HEADINGS, *rows, total.line()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
