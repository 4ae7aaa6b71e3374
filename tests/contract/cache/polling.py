"""An event loop of one connection, for tests of reads that a poller watches."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from authsvc.cache.redis.connections import Deadlines, Pool
from authsvc.cache.redis.polled import PolledReads

#: Longer than a machine stands still.
PATIENT = Deadlines(connect_s=20, read_s=20, wait_s=20, total_s=20)


def mget(*keys: str) -> bytes:
    """The command, as it is sent."""
    words = [b"MGET", *(key.encode() for key in keys)]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def reads_over(pool: Pool) -> PolledReads:
    """Reads over a connection that was made and is trusted."""
    reads = PolledReads(pool, clock=time.monotonic, deadlines=PATIENT)
    reads.renew()
    assert reads.adopt(lambda _generation: True)
    return reads


def answer_to(reads: PolledReads, *keys: str) -> Sequence[bytes | None]:
    """Ask for *keys*, and wait as a loop does."""
    reads.send(mget(*keys), len(keys))
    return answered(reads)


def answered(reads: PolledReads) -> Sequence[bytes | None]:
    """Rounds of the loop until all values are there."""
    ends_s = time.monotonic() + PATIENT.total_s
    while time.monotonic() < ends_s:
        values = wait_once(reads)
        if values is not None:
            return values
    raise AssertionError("no answer")


def wait_once(reads: PolledReads) -> Sequence[bytes | None] | None:
    """One round of the loop."""
    sock = reads.socket
    assert sock is not None
    readable, writable, _ = select.select([sock], [sock] if reads.has_unsent else [], [], 60)
    assert readable or writable
    return reads.receive()
