"""
When Redis may be believed, over all orders of events that hypothesis can think of.

The reconciler, its proof, its backlog and its scripts are the real ones; SQL is a log in memory whose writers
take numbers in one order and commit in another.  Between any two steps of a comparison anything may happen:
commits, rollbacks, a whole comparison of another process, Redis emptied or set back to what it once held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import fakeredis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.connection import BlockingConnectionPool

from authsvc.cache.errors import CacheError
from authsvc.cache.redis.client import CacheClient, Command
from authsvc.cache.redis.connections import Generations, stamped
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Position, Proof, Revocation, Sight
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.copies.index import RedisIndex
from authsvc.store.copies.marker import FreshnessMarker
from authsvc.store.copies.ownership import Ownership
from authsvc.store.copies.reconciler import Reconciler
from authsvc.store.revocations import Range, SqlRevocationLog
from tests.contract.copies.redis_side import KEYS, client_over
from tests.timings import UNHURRIED

NOW = datetime(2026, 11, 20, tzinfo=UTC)
PAGE = 1
PROCESSES = 3
EVENTS = ["begin", "commit", "complete", "roll back", "flush", "tick"]


@dataclass
class MemoryLog:
    """Numbers given, entries visible, and the writers that hold numbers and have not ended."""

    given: int = 0
    rows: dict[int, Revocation] = field(default_factory=dict)
    writers: dict[str, Revocation] = field(default_factory=dict)

    def begin(self) -> str:
        """A writer takes the lock and a number."""
        self.given += 1
        session = SessionId(f"session {self.given}")
        self.writers[f"writer {self.given}"] = Revocation(
            seq=self.given, at=NOW, reason="t", expires_at=NOW, user_id=UserId("user"), session_id=session
        )
        return f"writer {self.given}"

    def end(self, writer: str, *, commits: bool) -> int:
        """It commits or not, and its lock goes after that; the number."""
        entry = self.writers.pop(writer)
        if commits:
            self.rows[entry.seq] = entry
        return entry.seq


@dataclass
class View:
    """The log as one process follows it; *between* lets others act before and after each question."""

    log: MemoryLog
    between: Callable[[], None]

    def head(self) -> int:
        return max(self.log.rows, default=0)

    def look(self, *, settled: int | None = None, at: Collection[int] = ()) -> Sight:
        self.between()
        head = self.head()
        found = tuple(Position.of(row) for seq, row in sorted(self.log.rows.items()) if seq in {*at, head})
        if head == settled:
            return Sight(found[-1] if found else Position(), found=found)
        self.between()
        return Sight(found[-1] if found else Position(), frozenset(self.log.writers), found)

    def pages(self, ranges: Sequence[Range]) -> Iterator[list[Revocation]]:
        after = 0
        while True:
            self.between()
            rows = [
                row
                for seq, row in sorted(self.log.rows.items())
                if seq > after and any(low <= seq <= high for low, high in ranges)
            ][:PAGE]
            if not rows:
                return
            yield rows
            after = rows[-1].seq


@dataclass
class Tombstones:
    """Writes entries over the reconciler's connection."""

    client: CacheClient
    between: Callable[[], None]

    def write(self, page: Sequence[Revocation], *, then: Command, are_news: bool) -> None:
        self.between()
        commands: list[Command] = [("SET", entry.session_id or "", "ended") for entry in page]
        self.client.pipeline([*commands, then])
        self.between()


class Busy(FreshnessMarker):
    """The marker; others act before each step."""

    between: Callable[[], None]

    def __getattribute__(self, name: str) -> Any:
        if name in {"read", "claim", "step", "advance"}:
            object.__getattribute__(self, "between")()
        return super().__getattribute__(name)


class Process:
    """One service process, without requests."""

    def __init__(self, server: fakeredis.FakeServer, log: MemoryLog, between: Callable[[], None]) -> None:
        generations = Generations()
        self.checks = client_over(_pool(server, generations))
        self.reconciling = client_over(_pool(server, generations))
        self.proof = Proof(300)
        marker = Busy(self.reconciling, KEYS.marker, UNHURRIED.marker)
        marker.between = between
        self.log = log
        self.reconciler = Reconciler(
            revocations=cast("SqlRevocationLog", View(log, between)),
            index=cast("RedisIndex", Tombstones(self.reconciling, between)),
            marker=marker,
            ownership=Ownership(
                installation=lambda: "model",
                client=self.reconciling,
                checks=self.checks,
                key=KEYS.installation,
            ),
            client=self.reconciling,
            checks=self.checks,
            proof=self.proof,
            monotonic=lambda: 0.0,
            on_lag=lambda _: None,
        )
        #: What was visible in SQL before its last comparison that ended well began.
        self.compared: set[int] = set()

    def tick(self) -> bool:
        """One comparison."""
        visible = set(self.log.rows)
        with suppress(CacheError, StoreUnavailable):
            if self.reconciler.tick():
                self.compared = visible
                return True
        return False

    def believes(self) -> bool:
        """True if it takes Redis' word now."""
        (marker,), generation = self.checks.mget((KEYS.marker,))
        return self.proof.holds(marker, generation, 0.0)


def _pool(server: fakeredis.FakeServer, generations: Generations) -> Any:
    connection_class = stamped(fakeredis.FakeRedisConnection, generations=generations)
    return BlockingConnectionPool(max_connections=1, connection_class=connection_class, server=server)


class World(RuleBasedStateMachine):
    """Writers, processes, and a Redis that loses what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.server = fakeredis.FakeServer()
        self.redis = fakeredis.FakeRedis(server=self.server)
        self.log = MemoryLog()
        self.data: st.DataObject | None = None
        self.depth = 0
        #: Numbers of entries that were in SQL and Redis when that was said: 204.
        self.complete: set[int] = set()
        self.backup: dict[bytes, bytes] = {}
        self.processes = [self.new_process() for _ in range(PROCESSES)]

    def new_process(self) -> Process:
        """One that has compared nothing."""
        return Process(self.server, self.log, self.between)

    def between(self) -> None:
        """Let anything happen, or nothing, which is the simplest."""
        if self.data is None or self.depth > 2:
            return
        happen = self.data.draw(st.sampled_from(["nothing"] * 6 + EVENTS))
        if happen == "tick":
            idle = [process for process in self.processes if process not in self.at_work]
            if idle:
                self.compare(self.data.draw(st.sampled_from(idle)))
        elif happen != "nothing":
            self.depth += 1
            self.happen(happen)
            self.depth -= 1

    def happen(self, what: str) -> None:
        """One thing that takes no time."""
        if what == "begin":
            self.log.begin()
        elif what == "flush":
            self.redis.flushall()
        elif self.log.writers and self.data is not None:
            writer = self.data.draw(st.sampled_from(sorted(self.log.writers)))
            entry = self.log.writers[writer]
            self.log.end(writer, commits=what != "roll back")
            if what == "complete":
                self.redis.set(entry.session_id or "", "ended")
                self.complete.add(entry.seq)

    at_work: list[Process]

    def compare(self, process: Process) -> None:
        """A comparison, in the middle of which others act."""
        self.at_work.append(process)
        self.depth += 1
        process.tick()
        self.depth -= 1
        self.at_work.pop()

    @initialize()
    def compare_first(self) -> None:
        """Everybody has compared once."""
        for process in self.processes:
            assert process.tick()

    @rule(number=st.integers(0, PROCESSES - 1))
    def tick_undisturbed(self, number: int) -> None:
        """A process compares, and nothing happens meanwhile."""
        self.processes[number].tick()

    @rule(data=st.data(), number=st.integers(0, PROCESSES - 1))
    def tick(self, data: st.DataObject, number: int) -> None:
        """A process compares."""
        self.data, self.at_work = data, []
        self.compare(self.processes[number])
        self.data = None

    @rule()
    def begin(self) -> None:
        """A writer takes a number."""
        self.log.begin()

    @precondition(lambda self: self.log.writers)
    @rule(data=st.data(), outcome=st.sampled_from(["204", "202", "202 elsewhere", "lost"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        """A writer ends: Redis is written at once, or not, or nothing was committed."""
        writer = data.draw(st.sampled_from(sorted(self.log.writers)))
        entry = self.log.writers[writer]
        seq = self.log.end(writer, commits=outcome != "lost")
        process = data.draw(st.sampled_from(self.processes))
        if outcome != "lost":
            process.proof.saw(seq)
        if outcome == "204":
            process.checks.call("SET", entry.session_id or "", "ended")
            self.complete.add(seq)
        elif outcome == "202":
            process.proof.learned(seq)

    @rule()
    def overtake(self) -> None:
        """Of two writers the later one commits first."""
        self.log.begin()
        self.log.end(self.log.begin(), commits=True)

    @rule(
        what=st.sampled_from(["flush", "back up", "fail over", "restart"]),
        number=st.integers(0, PROCESSES - 1),
    )
    def lose(self, what: str, number: int) -> None:
        """Redis is emptied, or what it was once, over new connections; a process is a new one."""
        if what == "restart":
            self.processes[number] = self.new_process()
        elif what == "back up":
            self.backup = {key: self.redis.get(key) for key in self.redis.keys("*")}  # type: ignore[misc]
        else:
            self.redis.flushall()
        if what == "fail over":
            self.fail_over()

    def fail_over(self) -> None:
        """Redis is what it was then; connections break."""
        for key, value in self.backup.items():
            self.redis.set(key, value, px=100_000)
        for process in self.processes:
            process.checks.connections.suspect()
            process.reconciling.connections.suspect()

    @invariant()
    def what_is_believed_is_right(self) -> None:
        """A process that believes Redis finds what was in SQL before it compared, and what was a 204."""
        there = {int(key.split()[1]) for key in self.redis.keys("session *")}
        for process in self.processes:
            if process.believes():
                assert there >= self.complete
                assert there >= process.compared

    def teardown(self) -> None:
        """Nothing happens any more: whatever is still under way, whoever compares twice believes again."""
        self.log.writers.clear()
        for process in self.processes * 3:
            process.tick()
        for process in self.processes:
            assert process.believes()
            assert process.compared == set(self.log.rows)
        self.what_is_believed_is_right()


def test_whoever_believes_redis_finds_every_revocation_there():
    """Whatever happens in whatever order; nothing expires in the middle of it."""
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
