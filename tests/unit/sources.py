"""The project's own modules, read as syntax trees, each of them once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests import ROOT


@cache
def tree_of(path: Path) -> ast.Module:
    """The tree of a module, which several tests share and nobody changes."""
    return ast.parse(path.read_text())


def modules_below(folder: str) -> list[Path]:
    """The modules below a folder of the project, in order."""
    return sorted((ROOT / folder).rglob("*.py"))
