"""What is wrong with the settings, all of it at once and without a secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of a wrong value that a message repeats; more helps nobody and floods the log.
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to mend: the variable's *name*, and what is wrong and expected in *message*."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} {self.message}"


class SettingsError(Exception):
    """The service must not start; ``problems`` names every reason, ``str()`` one to a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = (f"{len(self.problems)} {noun} in the settings:", *map(str, self.problems))
        super().__init__("\n  ".join(lines))


def shown(text: str) -> str:
    """*text* in quotes, cut, with what a terminal or log might act upon replaced by ``?``."""
    cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
    return "'" + "".join(c if c.isprintable() else "?" for c in cut) + "'"
