"""
Timings for tests that are not about time limits, on machines that may suspend a process for seconds.

The service gives up on Redis within a quarter of a second, on SQL within a few seconds. On such a machine, a
test would then see a 202 in place of a 204, or a 503 in place of a 200.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from authsvc.cache.redis.connections import Deadlines
from authsvc.cli import main
from authsvc.domain.feed import FeedTimings
from authsvc.domain.passwords.lane import HashingTimings
from authsvc.observability.health import HealthTimings
from authsvc.observability.trail import TrailTimings
from authsvc.server import ServerTimings
from authsvc.store.copies.marker import MarkerTimings
from authsvc.store.copies.users import CopyTimings
from authsvc.store.key_folder import FolderTimings
from authsvc.store.sql import SqlTimings
from authsvc.wiring.timings import Timings

#: Longer than a busy machine suspends a process.
LONG_S = 60

#: For what runs in the process of the test; a proof lasts for minutes.
UNHURRIED = Timings(
    sql=SqlTimings(
        pool_wait_s=LONG_S,
        deadline_s=2 * LONG_S,
        connect_s=LONG_S,
        statement_s=LONG_S,
        lock_s=LONG_S,
        idle_s=LONG_S,
        log_lock_s=LONG_S,
        log_idle_s=LONG_S,
    ),
    redis=Deadlines(connect_s=LONG_S, read_s=LONG_S, wait_s=LONG_S, total_s=LONG_S),
    copies=CopyTimings(lease_s=LONG_S, note_within_s=LONG_S),
    marker=MarkerTimings(life_ms=10_000 * LONG_S, claim_ms=1_000 * LONG_S),
    keys=FolderTimings(wait_s=LONG_S),
    # Of the priority of others, hashes might get nothing at all beside another test.
    hashing=HashingTimings(deadline_s=LONG_S, niceness=0),
    health=HealthTimings(answered_s=LONG_S),
    trail=TrailTimings(wait_s=LONG_S),
    feed=FeedTimings(first_look_s=LONG_S),
)

#: Longer than a machine stands still, shorter than what a test waits for.
_BEARABLE_S = 20
#: For processes of the service; what is noticed by tests, such as the end of a marker, is as usual.
PATIENCE = Timings(
    sql=SqlTimings(
        pool_wait_s=_BEARABLE_S,
        deadline_s=2 * _BEARABLE_S,
        connect_s=_BEARABLE_S,
        statement_s=30,
        lock_s=_BEARABLE_S,
    ),
    redis=Deadlines(
        connect_s=_BEARABLE_S, read_s=_BEARABLE_S, wait_s=_BEARABLE_S, total_s=_BEARABLE_S, idle_s=_BEARABLE_S
    ),
    copies=CopyTimings(note_within_s=_BEARABLE_S),
    keys=FolderTimings(wait_s=_BEARABLE_S),
    hashing=HashingTimings(deadline_s=3 * _BEARABLE_S, niceness=0),
)
_SERVER = ServerTimings(read_s=_BEARABLE_S, worker_s=6 * _BEARABLE_S)

#: The service with short leases of mails: a slow machine must not make a relay late that is not.
SHORT_LEASES = replace(PATIENCE, mail=replace(PATIENCE.mail, lease_s=8, begun_within_s=1.0))
#: With leases, retries and pauses of seconds where they take minutes.
HASTY_MAILS = replace(
    PATIENCE,
    mail=replace(
        PATIENCE.mail, lease_s=5, begun_within_s=1.0, retry_after_s=(1,) * 1000, pause_s=0.5, delayed_s=1.0
    ),
    smtp=replace(PATIENCE.smtp, reply_s=2.0),
)


def _entry(name: str) -> tuple[str, str, str]:
    """What runs in place of ``authsvc``: the same command line, with the timings called *name*."""
    return (sys.executable, "-c", f"from tests import timings; timings.run(timings.{name})")


PATIENT, HASTY, MORTAL = _entry("PATIENCE"), _entry("HASTY_MAILS"), _entry("SHORT_LEASES")


def run(timings: Timings) -> None:
    """Run the command line of this process with *timings*."""
    sys.exit(main(timings=timings, server_timings=_SERVER))
