"""The README's tour, word for word, against a service in development mode."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.processes import free_port
from tests.rig import HOPELESS_S, Service
from tests.servers.binaries import tool
from tests.timings import PATIENT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def toured(port: int, shell: str, folder: Path) -> str:
    """What somebody sees who pastes the tour into *shell*; curl is all it needs."""
    tool("curl", "curl")
    section = (ROOT / "README.md").read_text().split("\n## Five minutes\n")[1].split("\n## ")[0]
    script = f"PORT={port}\n" + "".join(BLOCK.findall(section))
    done = subprocess.run(
        [shell, "-c", script],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HOPELESS_S,
        check=False,
    )
    return done.stdout


def test_the_tour_works_twice_on_any_port(tmp_path):
    """First with a new user, then with a 409 that the page explains; in both usual shells."""
    with Service({"BCRYPT_COST": "4"}, tmp_path, command="dev", entry=PATIENT) as service:
        first, second = (toured(service.port, shell, tmp_path) for shell in ("sh", "bash"))

    assert '"email":"ada@example.com"' in first
    assert "email_taken" in second
    for seen in (first, second):
        assert "HTTP/1.1 200 OK" in seen
        assert '{"theme":"dark"}' in seen
        assert seen.endswith("204\n401\n")
        assert "the login failed" not in seen
    assert "email_taken" in (ROOT / "README.md").read_text()


def test_the_tour_says_what_is_wrong_where_nobody_listens(tmp_path):
    """curl's own message and no traceback."""
    seen = toured(free_port(), "sh", tmp_path)

    assert "curl: (7)" in seen
    assert "the login failed" in seen
    assert "Traceback" not in seen
