"""Every guarantee and every attacker has tests, and each test that a page names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import starmap

from tests import ROOT
from tests.unit.sources import tree_of

GUARANTEES = ROOT / "docs" / "guarantees.md"
THREATS = ROOT / "docs" / "threat-model.md"
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
FILE = re.compile(r"`((?:\w+/)+test_\w+\.py)(?:::(test_\w+))?`")
#: Nobody is kept out there: the row says so, and says what an operator does instead.
UNDEFENDED = "**no defence in the service**"


@cache
def functions_in(file: str) -> set[str]:
    """Return the names of the tests in a file below ``tests/``, those in classes too."""
    path = ROOT / "tests" / file
    nodes = ast.walk(tree_of(path)) if path.exists() else ()
    return {
        node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows_of(text: str, *, heading: str) -> list[list[str]]:
    """Return the cells of each row of the tables in *text* that begin with *heading*."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_guarantee_names_tests_that_exist():
    """One at least for each; the column holds nothing else."""
    rows = rows_of(GUARANTEES.read_text(), heading="Guarantee")
    named = {words: TEST.findall(tests) for words, tests in rows}

    assert len(named) == len(rows) > 40
    assert [
        tests for words, tests in rows if ", ".join(starmap("`{}::{}`".format, named[words])) != tests
    ] == []
    assert [words for words, tests in named.items() if not tests] == []
    assert [test for tests in named.values() for test in tests if test[1] not in functions_in(test[0])] == []


def test_a_defence_names_tests_that_exist():
    """Files with tests, or single tests of them, unless the row says that there is no defence."""
    rows = rows_of(THREATS.read_text(), heading="Attacker")
    named = [(row[2].startswith(UNDEFENDED), FILE.findall(row[3])) for row in rows]
    tests = [test for _, found in named for test in found]

    assert len(rows) > 30
    assert [
        row for row, (undefended, found) in zip(rows, named, strict=True) if undefended is bool(found)
    ] == []
    assert [file for file, _ in tests if not functions_in(file)] == []
    assert [name for file, name in tests if name and name not in functions_in(file)] == []
