"""The threat model's table of ASVS items is whole, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest

from tests import ROOT
from tests.unit.sources import tree_of

PAGE = ROOT / "docs" / "threat-model.md"
#: ASVS 5.0.0: how many items each section of the three chapters has.
SECTIONS = {
    "6.1": 3, "6.2": 12, "6.3": 8, "6.4": 6, "6.5": 8, "6.6": 4, "6.7": 2, "6.8": 4,
    "7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 3, "7.6": 2, "9.1": 3, "9.2": 4,
}  # fmt: skip
ITEMS = [f"{section}.{number}" for section, size in SECTIONS.items() for number in range(1, size + 1)]
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


class Row(NamedTuple):
    """One item and what is said of it."""

    item: str
    asks_for: str
    answer: str
    shown_by: str


def rows() -> list[Row]:
    """Return the rows of the three tables."""
    found = (line.strip("|").split("|") for line in PAGE.read_text().splitlines() if re.match(r"\| \d", line))
    return [Row(*(cell.strip() for cell in cells)) for cells in found]


@cache
def functions_of(file: str) -> set[str]:
    """Return the names of the functions in a file below ``tests/``."""
    return {node.name for node in tree_of(ROOT / "tests" / file).body if isinstance(node, ast.FunctionDef)}


def test_every_item_of_the_three_chapters_has_its_row():
    """In order, once each."""
    assert [row.item for row in rows()] == ITEMS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.item)
def test_an_item_is_shown_by_tests_that_exist_or_says_why_not(row):
    """Met and partly met name a test; left out names a reason."""
    named = NAMED.findall(row.shown_by)
    word = re.match(r"Met|Partly: |Left out", row.answer)

    assert word, row
    assert row.shown_by == ", ".join(f"`{file}::{name}`" for file, name in named)
    assert bool(named) is (word[0] != "Left out")
    assert word[0] != "Left out" or len(row.answer) > len("Left out: ")
    assert [name for file, name in named if name not in functions_of(file)] == []
