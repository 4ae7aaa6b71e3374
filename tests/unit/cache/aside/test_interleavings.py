"""
Every order in which readers, writers, invalidations, expiry and accidents can meet, against a model.

Each actor runs in a thread of its own and stops before each thing it does, so that the schedule decides
whose step comes next.  An invalidation is sent command by command for the same reason.  A thorough run:
CACHE_SCHEDULES=10000.
"""

from __future__ import annotations

import os
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
    Display,
    Entry,
    KeySpace,
    Records,
    Shape,
    SingleFlight,
    Tagging,
    Tags,
    pattern_drop,
    stamped,
)
from tests.unit.cache.aside.turnstile import Actor, Crash, SteppedClient

SCHEDULES = int(os.environ.get("CACHE_SCHEDULES", "100"))
SPACE = KeySpace().space("row", ttl_s=1000)
TAGS = KeySpace().space("tag", ttl_s=5000)
IDENTS = ("7", "8")
KEYS = {ident: SPACE.key(ident) for ident in IDENTS}
LEASES = {ident: SPACE.lease(key) for ident, key in KEYS.items()}
STALE_MS = 500_000


@dataclass(frozen=True)
class Row:
    """One row; every commit raises its version, deletes it or brings it back."""

    id: str
    version: int
    is_there: bool = True


SHAPE = Shape(
    schema=1,
    dump=lambda row: Entry({"id": row.id}, row.version),
    load=lambda entry: Row(str(entry.fields["id"]), entry.row_version),
)


class Patience:
    """A clock that only waiting moves."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def pause(self, seconds):
        """Let *seconds* pass."""
        self.now_s += seconds


class Scene:
    """A table with two rows, its cache, actors by name, and a writer that invalidates."""

    def __init__(self):
        pool = ConnectionPool(connection_class=stamped(FakeRedisConnection), server=FakeServer())
        breaker = CircuitBreaker(clock=time.monotonic)
        self.client = CacheClient(pool, breaker=breaker, clock=time.monotonic)
        self.aside = self.cache(self.client)
        self.rows = {ident: [Row(ident, 0)] for ident in IDENTS}
        #: The versions as of the last finished invalidations: nothing below them may be seen again.
        self.floors = dict.fromkeys(IDENTS, 0)
        self.actors = {}
        self.refreshes = 0
        self.invalidation: deque[Command] = deque()
        self.rising = {}

    def cache(self, client):
        """Return the cache under test over *client*; its leases never end by time, only by the schedule."""
        patience = Patience()
        return Aside(
            Records(
                client=client,
                space=SPACE,
                shape=SHAPE,
                lease_ms=10**9,
                rng=lambda: 0.5,
                negative_ttl_s=1000,
                display=Display(refresher=self, stale_s=STALE_MS / 1000),
                tagging=Tagging(tags=Tags(client=client, space=TAGS), by=lambda _: ("all",)),
            ),
            single_flight=SingleFlight(patience_s=2, retry_s=1, clock=patience, pause=patience.pause),
        )

    def play(self, step):
        """Do one step of the schedule, then look for what must not be there."""
        verb, *words = step
        getattr(self, verb)(*words)
        for ident in IDENTS:
            cached = self.aside.get(ident)
            assert cached is MISSING or cached.version >= self.floors[ident]

    def read(self, name, ident):
        """Let a reader of one row do its next step."""
        self.act(
            name,
            lambda turnstile: {ident: self.stepped(turnstile).get_or_load(ident, self.loader(turnstile))},
        )

    def read_many(self, name):
        """Let a reader of both rows do its next step."""

        def work(turnstile):
            load = self.loader(turnstile)
            found = self.stepped(turnstile).get_or_load_many(
                IDENTS, lambda idents: {i: row for i in idents if (row := load(i)) is not MISSING}
            )
            return {ident: found.get(ident, MISSING) for ident in IDENTS}

        self.act(name, work)

    def submit(self, key, work):
        """Stand in for the threads of a Refresher: the background load is an actor like any other."""
        del key, work  # the schedule refreshes by itself: see refresh()
        return True

    def refresh(self, ident):
        """Make a cached row look stale, and let a background load of it do its next step."""
        self.client.call("PEXPIRE", KEYS[ident], STALE_MS)

        def work(turnstile):
            aside = self.stepped(turnstile)
            aside._loading._renew(ident, self.loader(turnstile))  # noqa: SLF001 what the refresher would run
            return {}

        self.act(f"refresh {ident}", work)

    def write_through(self, name, ident):
        """Let a writer that replaces the cached row do its next step."""

        def work(turnstile):
            def change():
                turnstile.wait()
                return self.commit(ident, is_there=True)

            written = self.stepped(turnstile).write_through(ident, change)
            assert written.is_coherent
            self.raise_floors({ident: written.value.version})
            return {}

        self.act(name, work)

    def write_ahead(self, name, ident):
        """Let a writer that replaces the row, and outdates older copies after that, do its next step."""

        def work(turnstile):
            def change():
                turnstile.wait()
                return self.commit(ident, is_there=True)

            aside = self.stepped(turnstile)
            row, _ = aside.write_ahead(ident, change, lambda row: row)
            aside.client.call(*aside.outdate_command(ident, row.version))
            self.raise_floors({ident: row.version})
            return {}

        self.act(name, work)

    def replay(self, ident, behind):
        """Repeat the invalidation of a version that was the last one a while ago, or is now."""
        rows = self.rows[ident]
        self.client.call(*self.aside.outdate_command(ident, rows[max(0, len(rows) - 1 - behind)].version))

    def act(self, name, work):
        """Let *name* do its next step; no answer is older than what was invalidated before it asked."""
        if name not in self.actors:
            self.actors[name] = Actor(work), dict(self.floors)
        actor, floors = self.actors[name]
        actor.turnstile.step()
        if actor.turnstile.done:
            del self.actors[name]
            assert isinstance(actor.answer, dict)
            for ident, answer in actor.answer.items():
                assert self.is_good(ident, answer, floors[ident])

    def is_good(self, ident, answer, floor):
        """True where the row was as *answer* says at some time since *floor*."""
        if answer is MISSING:
            return any(not row.is_there for row in self.rows[ident] if row.version >= floor)
        return answer.version >= floor

    def stepped(self, turnstile):
        """Return the cache of another process, that stops before each command."""
        return self.cache(SteppedClient(self.client, turnstile))

    def loader(self, turnstile):
        """Return a loader that stops before it reads."""

        def load(ident):
            turnstile.wait()
            row = self.rows[ident][-1]
            return row if row.is_there else MISSING

        return load

    def commit(self, ident, *, is_there):
        """Change a row."""
        row = Row(ident, len(self.rows[ident]), is_there)
        self.rows[ident].append(row)
        return row

    def invalidate(self, how, is_there):
        """Let the writer do its next step: the commit, then each command of the invalidation."""
        if not self.invalidation:
            idents = IDENTS if how in {"tag", "pattern"} else (how.removeprefix("outdate "),)
            self.rising = {ident: self.commit(ident, is_there=is_there).version for ident in idents}
            self.invalidation.extend(self.commands(how))
            return
        command = self.invalidation.popleft()
        if command == ("pattern",):
            pattern_drop(self.client, SPACE)
        else:
            self.client.call(*command)
        if not self.invalidation:
            self.raise_floors(self.rising)

    def commands(self, how):
        """Return the steps of an invalidation of one row, of the tag, or of all by pattern."""
        if how == "tag":
            return Tags(client=self.client, space=TAGS).drop_commands(["all"])
        if how.startswith("outdate "):
            ident = how.removeprefix("outdate ")
            return [self.aside.outdate_command(ident, self.rising[ident])]
        return [("pattern",)] if how == "pattern" else self.aside.drop_commands([how])

    def raise_floors(self, versions):
        """Note that all up to *versions* is invalidated."""
        self.floors |= {ident: max(self.floors[ident], version) for ident, version in versions.items()}

    def lose(self, *keys):
        """A record, a lease or a tag ends, or an operator clears the cache."""
        self.client.call("DEL", *keys)

    def crash(self, name):
        """Let an actor die where it stands."""
        if name in self.actors:
            actor, _ = self.actors.pop(name)
            actor.turnstile.step(crash=True)
            assert actor.answer is Crash

    def end(self):
        """No thread outlives its example."""
        for name in tuple(self.actors):
            self.crash(name)


LOST = [*KEYS.values(), *LEASES.values(), TAGS.key("all")]
ACCIDENTS = st.one_of(
    st.tuples(st.just("lose"), st.sampled_from(LOST)),
    st.just(("lose", LEASES["7"], KEYS["7"])),
    st.tuples(st.just("replay"), st.just("7"), st.integers(0, 2)),
    st.tuples(st.just("crash"), st.sampled_from(["ann", "bob", "cat", "dan", "eve"])),
)
READS = st.sampled_from([("read", "bob", "7"), ("read_many", "cat"), ("refresh", "7")])
WRITES = st.sampled_from(
    [
        ("invalidate", "7", True),
        ("invalidate", "7", False),
        ("invalidate", "tag", True),
        ("invalidate", "pattern", True),
        ("invalidate", "outdate 7", True),
        ("invalidate", "outdate 7", False),
        ("write_through", "dan", "7"),
        ("write_ahead", "eve", "7"),
    ]
)


@st.composite
def schedules(draw):
    """Draw one order of two readers' steps, one or two kinds of writing, and a few accidents."""
    one, other = draw(WRITES), draw(WRITES)
    steps = [("read", "ann", "7")] * 7 + [draw(READS)] * 5 + [one] * 5 + [other] * 3
    return draw(st.permutations(steps + draw(st.lists(ACCIDENTS, max_size=3))))


@settings(max_examples=SCHEDULES, deadline=None)
@given(schedules())
def test_no_order_of_steps_brings_an_invalidated_row_back(schedule):
    """What was invalidated is never in the cache again, and never the answer to who asks afterwards."""
    scene = Scene()

    try:
        for step in schedule:
            scene.play(step)
    finally:
        scene.end()
