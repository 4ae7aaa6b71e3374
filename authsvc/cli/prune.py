"""The command that deletes data that is no longer needed: ``db prune``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from authsvc.cli.admin import migrated
from authsvc.domain.values.clocks import rfc3339
from authsvc.store.pruning import MAILS_KEPT, MARGIN, SqlPruning
from authsvc.wiring import now
from authsvc.wiring.stores import open_database

#: A line of progress after this many deleted rows.
TELL_EVERY = 10_000


def add_action(database: Any) -> None:
    """Add this module's action to those of ``db``."""
    pruning = database.add_parser(
        "prune",
        help="delete expired sessions, old entries of the revocation log, dead tickets, old mails and what is"
        " left of second factors",
    )
    pruning.set_defaults(run=run_prune)


def run_prune(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """
    Delete what expired longer ago than the margin. Raises StoreUnavailable; finished steps stay deleted.
    """
    before = now() - MARGIN
    with closing(open_database(migrated(options, env), options.timings)) as database:
        pruning = SqlPruning(database)
        deleted = {
            "sessions": _total("sessions", pruning.sessions(before=before)),
            "revocations": _total("revocations", pruning.revocations(before=before)),
            "mails": _total("mails", pruning.mails(before=now() - MAILS_KEPT)),
            "tickets": _total("tickets", pruning.tickets(before=before)),
            "spent": _total("spent", pruning.spent(before=before)),
            "enrolments": _total("enrolments", pruning.enrolments(before=before)),
        }
    print(json.dumps({"deleted": deleted, "before": rfc3339(before)}))
    return 0


def _total(table: str, steps: Iterable[int]) -> int:
    """The sum of *steps*; prints progress on stderr."""
    deleted = told = 0
    for step in steps:
        deleted += step
        if deleted >= told + TELL_EVERY:
            print(f"{table}: {deleted} deleted", file=sys.stderr)
            told = deleted
    return deleted
