"""Commands for the audit trail: prune."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta

from authsvc.cli.admin import migrated
from authsvc.domain.audit import AuditTrail
from authsvc.domain.values.clocks import rfc3339
from authsvc.store.audit import SqlAuditTrail
from authsvc.wiring import now
from authsvc.wiring.stores import open_database

#: Rows deleted per transaction, which takes a fraction of a second; no request waits for these rows.
STEP = 1000
#: A line of progress after this many steps.
TELL_EVERY = 10


def add_audit(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``audit``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pruning = actions.add_parser("prune", help="delete old security events, in small steps")
    pruning.add_argument("--older-than", type=_days, required=True, metavar="DAYS", help="such as 90d")
    pruning.set_defaults(run=run_prune)


def run_prune(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Delete older events in small steps; progress on stderr."""
    before = now() - options.older_than
    with closing(open_database(migrated(options, env), options.timings)) as database:
        deleted = prune(SqlAuditTrail(database), before=before)
    print(json.dumps({"deleted": deleted, "before": rfc3339(before)}))
    return 0


def prune(trail: AuditTrail, *, before: datetime, step: int = STEP) -> int:
    """Delete every entry from before *before*; raises StoreUnavailable, finished steps stay deleted."""
    deleted = steps = 0
    while found := trail.prune(before=before, most=step):
        deleted, steps = deleted + found, steps + 1
        if steps % TELL_EVERY == 0:
            print(f"{deleted} deleted", file=sys.stderr)
    return deleted


def _days(text: str) -> timedelta:
    if re.fullmatch("[1-9][0-9]{0,3}d", text) is None:
        raise argparse.ArgumentTypeError("must be a number of days such as 90d")
    return timedelta(days=int(text[:-1]))
