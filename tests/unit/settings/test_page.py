"""The settings page, and the samples that the documentation prints."""

from __future__ import annotations

import re

import pytest

from authsvc.settings import VARIABLES
from authsvc.settings.model import settings_page
from tests import ROOT
from tests.unit.settings.env import problems, production

SAMPLE = re.compile(r"\b(TOKEN_SECRET|PASSWORD_PEPPER)(?:=|: )[\"']?([^\s\"'$<{`(]{8,})")


def samples() -> list[tuple[str, str, str]]:
    """Return file, name and value of each secret that a reader could copy."""
    files = [
        ROOT / "README.md",
        ROOT / "compose.yaml",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("k8s/**/*.y*ml"),
    ]
    return [
        (str(file.relative_to(ROOT)), name, value)
        for file in files
        if file.exists()
        for name, value in SAMPLE.findall(file.read_text())
    ]


def test_the_page_in_the_documentation_is_up_to_date():
    """`authsvc config docs > docs/settings.md` was run after the last change of a setting."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_the_page_names_every_variable_once():
    """A variable that is read is documented, in one row of four cells."""
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]

    assert [row.split("`")[1] for row in rows] == list(VARIABLES)
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}


@pytest.mark.parametrize(
    ("file", "name", "value"), samples() or [("this test", "TOKEN_SECRET", "change-me" * 5)]
)
def test_no_secret_that_the_documentation_prints_is_accepted(tmp_path, file, name, value):
    """What everybody can read is no secret."""
    found = problems(production(tmp_path, **{name: value}))

    assert [problem.name for problem in found] == [name], file
