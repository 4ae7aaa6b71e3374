"""
Every order in which readers, writers and accidents can meet, against a model.

Each reader runs in a thread of its own and stops before each thing it does, so that the schedule decides
which one does its next step.  A writer's invalidation is sent command by command for the same reason.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from fakeredis import FakeRedisConnection, FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import ConnectionPool

from authsvc.cache import (
    MISSING,
    Aside,
    CacheClient,
    CircuitBreaker,
    Command,
    Entry,
    KeySpace,
    Shape,
    stamped,
)

SPACE = KeySpace().space("row", ttl_s=1000)
KEY = SPACE.key("7")
LEASE = SPACE.lease(KEY)


@dataclass(frozen=True)
class Row:
    """The one row; every commit raises its version."""

    version: int


SHAPE = Shape(
    schema=1, dump=lambda row: Entry({"id": "7"}, row.version), load=lambda entry: Row(entry.row_version)
)


class Crash(BaseException):
    """The reader's process dies."""


class Turnstile:
    """Lets one thread through, one step at a time, when told."""

    def __init__(self):
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._crashing = False
        self.done = False

    def wait(self):
        """Stop before a step, in the reader's thread."""
        self._stopped.release()
        self._go.acquire()
        if self._crashing:
            raise Crash

    def finish(self):
        """Say that there are no more steps, in the reader's thread."""
        self.done = True
        self._stopped.release()

    def await_stop(self):
        """Wait until the reader stands before a step, or is done."""
        assert self._stopped.acquire(timeout=10)

    def step(self, *, crash=False):
        """Let the reader do one step, or die instead."""
        self._crashing = crash
        self._go.release()
        self.await_stop()


class SteppedClient:
    """The real client, with a stop before each command."""

    def __init__(self, client, turnstile):
        self._client, self._turnstile = client, turnstile

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def stepped(*args):
            self._turnstile.wait()
            return method(*args)

        return stepped


class Reader:
    """One call of get_or_load, in steps."""

    def __init__(self, client, scene, floor):
        self.floor = floor
        self.turnstile = Turnstile()
        self.answer = MISSING
        self._scene = scene
        self._aside = aside(SteppedClient(client, self.turnstile))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.turnstile.await_stop()

    def _run(self):
        try:
            self.answer = self._aside.get_or_load("7", self._load)
        except Crash:
            self.answer = MISSING
        self.turnstile.finish()

    def _load(self, _ident):
        self.turnstile.wait()
        return self._scene.row


def aside(client):
    """Return the cache under test over *client*; its leases never end by time, only by the schedule."""
    return Aside(client=client, space=SPACE, shape=SHAPE, lease_ms=10**9, rng=lambda: 0.5)


class Scene:
    """A table with one row, its cache, readers by name, and one writer."""

    def __init__(self):
        pool = ConnectionPool(connection_class=stamped(FakeRedisConnection), server=FakeServer())
        breaker = CircuitBreaker(clock=time.monotonic)
        self.client = CacheClient(pool, breaker=breaker, clock=time.monotonic)
        self.aside = aside(self.client)
        self.row = Row(1)
        #: The version as of the last finished invalidation: nothing below it may be seen again.
        self.floor = 0
        self.readers = {}
        self.invalidation: deque[Command] = deque()

    def play(self, step):
        """Do one step of the schedule, then look for what must not be there."""
        actor, *names = step
        getattr(self, actor)(*names)
        cached = self.aside.get("7")
        assert cached is MISSING or cached.version >= self.floor

    def read(self, name):
        """Let a reader do its next step; no answer is older than what was invalidated before it asked."""
        if name not in self.readers:
            self.readers[name] = Reader(self.client, self, self.floor)
        reader = self.readers[name]
        reader.turnstile.step()
        if reader.turnstile.done:
            del self.readers[name]
            assert reader.answer.version >= reader.floor

    def write(self):
        """Let the writer do its next step: the commit, then each command of the invalidation."""
        if self.invalidation:
            self.client.call(*self.invalidation.popleft())
            self.floor = self.floor if self.invalidation else self.row.version
        else:
            self.row = Row(self.row.version + 1)
            self.invalidation.extend(self.aside.drop_commands(["7"]))

    def lose(self, *names):
        """A record or a lease ends, or an operator clears the cache."""
        self.client.call("DEL", *names)

    def crash(self, name):
        """Let a reader die where it stands."""
        if name in self.readers:
            self.readers.pop(name).turnstile.step(crash=True)


ACCIDENTS = st.sampled_from(
    [("lose", KEY), ("lose", LEASE), ("lose", LEASE, KEY), ("crash", "ann"), ("crash", "bob")]
)
STEPS = [("read", "ann")] * 5 + [("read", "bob")] * 5 + [("write",)] * 6
SCHEDULES = st.lists(ACCIDENTS, max_size=3).flatmap(lambda accidents: st.permutations(STEPS + accidents))


@settings(max_examples=200, deadline=None)
@given(SCHEDULES)
def test_no_order_of_steps_brings_an_invalidated_row_back(schedule):
    """What was invalidated is never in the cache again, and never the answer to who asks afterwards."""
    scene = Scene()

    try:
        for step in schedule:
            scene.play(step)
    finally:  # no thread outlives its example
        for name in tuple(scene.readers):
            scene.crash(name)
