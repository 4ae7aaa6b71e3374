"""What a process imports: each command what it needs, and no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT

#: Prints the packages that are loaded when the command has ended.
RUN = """
import sys
from authsvc.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
HEAVY = {
    "alembic",
    "asyncio",
    "cryptography",
    "flask",
    "gunicorn",
    "opentelemetry",
    "psycopg",
    "redis",
    "sqlalchemy",
    "yaml",
}


def loaded_by(*arguments: str) -> set[str]:
    """The packages that ``authsvc`` with *arguments* has loaded."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    """They tell what there is to tell at once."""
    assert loaded_by(*arguments) & HEAVY == set()


#: Prints whether the collector runs, and whether it visits a class that was imported, and one that was not.
COLLECTED = """
import gc
from authsvc.cli import importing
with importing():
    import flask
class Later: pass
print(gc.isenabled(), *(any(found is one for found in gc.get_objects()) for one in (flask.Flask, Later)))
"""


def test_the_garbage_collector_never_visits_what_a_command_has_imported() -> None:
    """It runs, and visits what is made later alone."""
    run = subprocess.run(
        [sys.executable, "-c", COLLECTED],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.split() == ["True", "False", "True"]
