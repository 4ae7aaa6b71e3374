"""What happens to the service itself: stopped, restarted, its log not read, its figures deleted."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fault.asking import PATIENCE_S
from tests.fault.audit import take_stock
from tests.fault.load import load
from tests.fault.observing import feeling, figures
from tests.fault.world import START_S
from tests.processes import wait_until
from tests.rig import COMMAND, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Each test holds the world against the ledger in the end.
pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.audits]

#: A client that was not answered, or told to come back, asks the other replica; so does a load balancer.
TRIES = 4
#: docs/install.md: a stop takes 20 s at most; the rest is for a busy machine.
STOPPED_WITHIN_S = 60
#: ``authsvc`` with its standard output where ``PIPE`` says.
INTO_THE_PIPE = ("/bin/sh", "-c", 'exec "$0" "$@" >"$PIPE"', *COMMAND)
#: The smallest pipe that the system makes.
PIPE_BYTES = 4096


def test_a_rolling_restart_costs_no_request_and_no_session(world, ledger, score):
    """Each replica in turn is stopped under load and started again; whoever asks twice notices nothing."""
    score.name = "rolling-restart"
    statuses = []

    with load(ledger, world.replicas, seed=score.name, tries=TRIES) as findings:
        for service in world.replicas:
            statuses.append(service.stop(within_s=STOPPED_WITHIN_S))
            service.start(ready_within_s=START_S)
    take_stock(world, ledger, findings, score)

    assert statuses == [0, 0]
    assert findings.faults() == {}
    assert findings.refusals_s == []


@contextmanager
def unread(path: Path) -> Iterator[int]:
    """A pipe at *path* that is open, small, and never read."""
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield pipe
    finally:
        os.close(pipe)


def test_a_log_that_nobody_reads_stops_nothing(world, ledger, tmp_path, window_s, score):
    """The pipe is full from the start: everybody is answered, and the process still stops in good order."""
    score.name = "log-pipe-blocked"
    path = tmp_path / "pipe"
    env = world.ahead.env | {"LOG_LEVEL": "debug", "WEB_CONCURRENCY": "1", "PIPE": str(path)}
    muffled = Service(env, tmp_path, entry=INTO_THE_PIPE)
    with unread(path) as pipe, feeling(world) as pulse:
        fill(pipe)
        with muffled.start(ready_within_s=START_S):
            with load(ledger, [muffled], seed=score.name) as findings:
                time.sleep(max(1.0, window_s))
            status = muffled.stop(within_s=STOPPED_WITHIN_S)
    take_stock(world, ledger, findings, score)

    assert status == 0
    assert findings.faults() == {}
    assert findings.refusals_s == [] or pulse.is_late


def fill(pipe: int) -> None:
    """Leave no room in *pipe*."""
    try:
        while True:
            os.write(pipe, b"x" * PIPE_BYTES)
    except BlockingIOError:
        return


def test_a_wiped_metrics_folder_stops_nothing(world, ledger, tmp_path, window_s, score):
    """Requests go on, the scrape answers all the time, and the figures are counted on, in new files."""
    score.name = "metrics-folder-wiped"
    folder = tmp_path / "figures"
    checks = 'authsvc_token_checks_total{result="active",source="redis"}'
    with (
        feeling(world) as pulse,
        world.replica(WEB_CONCURRENCY="1", PROMETHEUS_MULTIPROC_DIR=str(folder)) as other,
        load(ledger, [other.service], seed=score.name) as findings,
    ):
        wait_until(lambda: figures(other.service).get(checks, 0) > 0, timeout_s=PATIENCE_S)
        shutil.rmtree(folder)
        figures(other.service)
        began = time.monotonic()
        wait_until(lambda: figures(other.service).get(checks, 0) > 0, timeout_s=PATIENCE_S)
        score.recovery_s = time.monotonic() - began
        time.sleep(window_s)
    take_stock(world, ledger, findings, score)

    assert findings.faults() == {}
    assert findings.refusals_s == [] or pulse.is_late
