"""
``authsvc`` with time, in a process of its own: what ends a call to a store, or a wait for a hash, is late.

For tests that are about something else, on machines that may stand still for seconds: there the usual
250 ms make a 202 of a 204, and a 503 of a 200, as they must.  Run in its place as ``PATIENT``.
"""

from __future__ import annotations

import sys
from typing import Any

from authsvc.cache.redis.connections import Deadlines
from authsvc.cli import main
from authsvc.domain.passwords import lane
from authsvc.server import parking, process
from authsvc.settings.postgresql import SERVER_SETTINGS
from authsvc.store import key_folder, sql
from authsvc.store.copies import users

PATIENT = (sys.executable, "-c", "from tests.patient import run; run()")
#: Longer than a machine stands still, shorter than what a test waits for.
LONG_S = 20.0
#: What is longer than usual, by the module that reads it when it is needed.
CONSTANTS: dict[Any, dict[str, float]] = {
    # Of the priority of others, hashes might get nothing at all beside another test.
    lane: {"DEADLINE_S": 3 * LONG_S, "NICENESS": 0},
    sql: {"POOL_WAIT_S": LONG_S, "DEADLINE_S": 2 * LONG_S, "CONNECT_S": LONG_S},
    users: {"NOTE_WITHIN_S": LONG_S},
    key_folder: {"PATIENCE_S": LONG_S},
    parking: {"READ_DEADLINE_S": LONG_S},
    process: {"TIMEOUT_S": 6 * LONG_S},
}
#: The server's own.
STATEMENTS = {"statement_timeout": "30s", "lock_timeout": "20s"}


def run() -> None:
    """Run the command line, patiently."""
    for module, constants in CONSTANTS.items():
        for name, value in constants.items():
            setattr(module, name, type(getattr(module, name))(value))
    vars(sql)["SERVER_SETTINGS"] = {**SERVER_SETTINGS, **STATEMENTS}
    defaults = Deadlines.__init__.__kwdefaults__
    assert defaults
    defaults.update(dict.fromkeys(defaults, LONG_S))
    sys.exit(main())
