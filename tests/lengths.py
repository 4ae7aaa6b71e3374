"""How long tests look that could look for ever: briefly, or as the environment says."""

from __future__ import annotations

import os


def times(name: str, briefly: int) -> int:
    """The number in the environment variable *name*, else *briefly*."""
    return int(os.environ.get(name, briefly))
