"""The pipe to whoever reads the log: what happens when nobody does."""

from __future__ import annotations

import os
import threading
import time
import warnings

import pytest

from authsvc.observability.lines import Record
from authsvc.observability.logs import LogPipe
from tests.processes import wait_until
from tests.unit.observability.piped import Reader

NOON_S = 1_795_176_000.25


@pytest.fixture
def reader():
    """Somebody who reads."""
    made = Reader()
    yield made
    made.close()


def test_a_reader_that_stops_costs_records_not_requests():
    """Beyond the queue records are dropped and counted; the count is told when somebody reads again."""
    reader = Reader()
    told: list[int] = []
    text: list[bytes] = []
    pipe = LogPipe(
        reader.fd, lambda record: record.event.encode() + b"\n" + b"." * 9000 + b"\n", capacity=100
    )
    pipe.on_drop = lambda: told.append(1)
    emit = records_into(pipe)

    begun = time.perf_counter()
    for _ in range(1000):
        emit("x.y")
    lasted_s = time.perf_counter() - begun

    assert lasted_s < 30  # else the first that finds the queue full waits for ever
    assert 850 <= pipe.dropped <= 900
    assert len(told) == pipe.dropped
    assert not pipe.flush(timeout_s=0.05)

    reading = threading.Thread(target=lambda: text.extend(iter(lambda: os.read(reader.out, 1 << 16), b"")))
    reading.start()
    wait_until(lambda: b"log.dropped\n" in b"".join(text), what="the count")
    # The thread that writes must be done with the descriptor before it is closed.
    wait_until(lambda: b"".join(text).count(b"x.y\n") == 1000 - pipe.dropped, what="the rest")
    os.close(reader.fd)
    reading.join(timeout=60)
    os.close(reader.out)
    assert b"".join(text).count(b"x.y\n") == 1000 - pipe.dropped
    assert b"".join(text).count(b"log.dropped\n") == 1


def records_into(pipe: LogPipe):
    return lambda event: pipe.put(Record(NOON_S, "info", event, ("", ""), {}))


def test_a_reader_that_goes_away_stops_nothing():
    """A closed pipe is counted, record by record, and nobody gets an error."""
    reader = Reader()
    os.close(reader.out)
    pipe = LogPipe(reader.fd, lambda _: b"line\n")
    emit = records_into(pipe)

    for _ in range(10):
        emit("x.y")

    assert pipe.flush()
    assert pipe.dropped >= 10
    os.close(reader.fd)


def test_a_forked_child_writes_its_own_records_and_not_its_parent_s(reader):
    """The queue is the parent's; the child gets a thread of its own with its first record."""
    pipe = LogPipe(reader.fd, lambda record: record.event.encode() + b"\n")
    emit = records_into(pipe)
    emit("parent.ran")
    pipe.flush()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: of forks beside threads
        child = os.fork()
    if child == 0:
        emit("child.ran")
        os._exit(0 if pipe.flush() else 1)
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert reader.text().splitlines() == ["parent.ran", "child.ran"]
