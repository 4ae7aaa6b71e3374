"""The tests, in folders by kind; below each kind the folders are those of ``authsvc``."""

from __future__ import annotations

import os
from pathlib import Path

#: The folder of the project.
ROOT = Path(__file__).parent.parent


def times(name: str, briefly: int) -> int:
    """How many examples a test tries: the number in the environment variable *name*, else *briefly*."""
    return int(os.environ.get(name, briefly))
