"""What each fault came to, for the table at the end of the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from tests.fault.ledger import WRONGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fault.ledger import Findings

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
