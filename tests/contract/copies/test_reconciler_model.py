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
import pytest
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
from redis.exceptions import ResponseError

from authsvc.cache import CacheError, Command, KeySpace, Stamped
from authsvc.cache.redis.connections import Connections, Generations, Pool, Reply, stamped
from authsvc.cache.redis.single import SingleServer
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Position, Proof, Revocation, Sight
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.domain.values.shards import Sharded, shard_of
from authsvc.store.copies.index import IndexKeys, RedisIndex
from authsvc.store.copies.ownership import Ownership
from authsvc.store.copies.reconciler import Reconciler
from authsvc.store.copies.servers import Servers, shards_of
from authsvc.store.revocations import Range, SqlRevocationLog
from tests.contract.copies.reconciling import nothing
from tests.contract.copies.redis_side import client_over
from tests.timings import UNHURRIED

NOW = datetime(2026, 11, 20, tzinfo=UTC)
PAGE = 1
PROCESSES = 3
#: Nobody is believed whom nobody has looked at for so long; an election takes longer (seconds).
UNWATCHED_S, ELECTION_S = 5.0, 6.0
SERVER = st.integers(0, 2)
#: Numbers that are taken in the middle of comparisons. A refill writes each entry by itself, and more may be
#: taken behind each: without a bound a few examples would take all the time, and find no more.
MOST = 12
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
            seq=self.given,
            at=NOW,
            reason="t",
            expires_at=NOW,
            user_id=UserId(f"user {self.given}"),
            session_id=session,
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
    """What entries mean for each shard."""

    names: Sharded[IndexKeys]

    def parts(self, page: Sequence[Revocation]) -> dict[int, list[Command]]:
        found: dict[int, list[Command]] = {}
        for entry in page:
            shard = shard_of(entry.user_id, len(self.names.each))
            found.setdefault(shard, []).append(("SET", tombstone(self.names, entry), "ended"))
        return found

    def wrote(self, *_: object) -> None:
        """Nobody is told."""


def tombstone(names: Sharded[IndexKeys], entry: Revocation) -> str:
    """The key of it, in its user's shard."""
    return names.about(entry.user_id).session(f"session {entry.seq}")


class Busy(SingleServer):
    """One server; others act before and behind each exchange."""

    may_change_roles = True

    def __init__(self, pool: Any, name: str, world: Cluster, between: Callable[[], None]) -> None:
        super().__init__(pool)
        self.name = name
        self._world = world
        self._between = between

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        self._between()
        owned = [self._world.owner_of(str(_key(command))) == int(self.name) for command in commands]
        if not all(owned):
            return Stamped([ResponseError("MOVED")] * len(commands), self.connections.generation)
        answers = super().exchange_each(commands, repeatable=repeatable)
        self._between()
        return answers

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        if commands[0] == ("INFO", "replication"):
            wire = self.connections.acquire()
            self.connections.release(wire)
            told = f"master_replid:{self._world.lineages[int(self.name)]}\r\n"
            return Stamped([told.encode()], wire.generation)
        return super().exchange(commands, repeatable=repeatable)


def _key(command: Command) -> object:
    return command[3] if command[0] == "EVAL" else command[1]


class Links:
    """The servers of the model, as one process reaches them."""

    is_steady = is_closed = True

    def __init__(self, links: Sequence[SingleServer], world: Cluster) -> None:
        self._links = links
        self._world = world
        self.connections = links[0].connections

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        raise NotImplementedError

    def at(self, key: str) -> SingleServer:
        return self._links[self._world.owner_of(key)]

    def connections_to(self, name: str) -> Connections:
        return self._links[int(name)].connections


@dataclass
class Cluster:
    """Servers, and which of them owns each shard."""

    names: Sharded[IndexKeys]
    servers: list[fakeredis.FakeServer]
    owners: list[int]
    #: Changes when a server becomes a primary.
    lineages: list[int]
    now_s: float = 1000.0

    @classmethod
    def of(cls, servers: int, tags: Sequence[str]) -> Cluster:
        """With *tags* for the shards, dealt to that many servers."""
        names = Sharded(tuple(IndexKeys(KeySpace(), tag) for tag in tags))
        owners = [number % servers for number in range(len(tags))]
        return cls(names, [fakeredis.FakeServer() for _ in range(servers)], owners, [0] * servers)

    def owner_of(self, key: str) -> int:
        """The server that has *key* now."""
        for shard, name in enumerate(self.names.each):
            if name.tag and f"{{{name.tag}}}" in key:
                return self.owners[shard]
        return self.owners[0]

    def at(self, server: int) -> fakeredis.FakeRedis:
        """Somebody who does as they like there."""
        return fakeredis.FakeRedis(server=self.servers[server])

    def of_shard(self, shard: int) -> fakeredis.FakeRedis:
        """The same, where that shard is now."""
        return self.at(self.owners[shard])

    def read(self, shard: int, server: int) -> dict[bytes, bytes]:
        """What *server* holds of the shard."""
        tag, client = self.names.each[shard].tag, self.at(server)
        keys = client.keys(f"*{{{tag}}}*" if tag else "*")
        return {key: client.get(key) for key in keys}  # type: ignore[misc]

    def put(self, shard: int, server: int, values: dict[bytes, bytes]) -> None:
        """Have *server* hold exactly *values* of the shard."""
        client = self.at(server)
        for key in self.read(shard, server):
            client.delete(key)
        for key, value in values.items():
            client.set(key, value, px=100_000)


class Process:
    """One service process, without requests."""

    def __init__(self, cluster: Cluster, log: MemoryLog, between: Callable[[], None]) -> None:
        self.cluster = cluster
        counted = [Generations(number << 20) for number in range(len(cluster.servers))]
        self.checks_at, reconciling = (
            [
                Busy(_pool(server, counted[number]), str(number), cluster, act)
                for number, server in enumerate(cluster.servers)
            ]
            for act in (nothing, between)
        )
        self.checks = client_over(cast("Pool", Links(self.checks_at, cluster)))
        self.reconciling_at = reconciling
        self.proofs = Sharded(tuple(Proof(300, UNWATCHED_S) for _ in cluster.names.each))
        self.log = log
        self.reconciler = Reconciler(
            revocations=cast("SqlRevocationLog", View(log, between)),
            index=cast("RedisIndex", Tombstones(cluster.names)),
            servers=Servers(
                shards_of(cluster.names, self.proofs, UNHURRIED.marker),
                client_over(cast("Pool", Links(reconciling, cluster))),
                self.checks,
            ),
            ownership=Ownership(
                installation=lambda: "model", checks=self.checks, shards=len(cluster.names.each)
            ),
            monotonic=lambda: cluster.now_s,
            on_lag=lambda _: None,
            on_proven=lambda _: None,
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

    def believes(self, shard: int) -> bool:
        """True if it takes the word of the shard's server now."""
        key = self.cluster.names.each[shard].marker
        (marker,), generation = self.checks.at(key).mget((key,))
        return self.proofs.each[shard].holds(marker, generation, self.cluster.now_s)

    def lose_connections(self, server: int) -> None:
        """All to that server break."""
        self.checks_at[server].connections.suspect()
        self.reconciling_at[server].connections.suspect()


def _pool(server: fakeredis.FakeServer, generations: Generations) -> Any:
    connection_class = stamped(fakeredis.FakeRedisConnection, generations=generations)
    return BlockingConnectionPool(max_connections=1, connection_class=connection_class, server=server)


class World(RuleBasedStateMachine):
    """Writers, processes, and a Redis that loses what it holds."""

    tags: Sequence[str] = ("",)
    servers = 1

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster.of(self.servers, self.tags)
        self.log = MemoryLog()
        self.data: st.DataObject | None = None
        self.depth = 0
        #: Numbers of entries that were in SQL and Redis when that was said: 204.
        self.complete: set[int] = set()
        self.backups: list[dict[bytes, bytes]] = [{} for _ in self.tags]
        self.processes = [self.new_process() for _ in range(PROCESSES)]

    def new_process(self) -> Process:
        """One that has compared nothing."""
        return Process(self.cluster, self.log, self.between)

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
            self.happen(happen, self.data)
            self.depth -= 1

    def happen(self, what: str, data: st.DataObject) -> None:
        """One thing that takes no time."""
        if what == "begin":
            if self.log.given < MOST:
                self.log.begin()
        elif what == "flush":
            self.cluster.at(data.draw(SERVER) % self.servers).flushall()
        elif self.log.writers:
            writer = data.draw(st.sampled_from(sorted(self.log.writers)))
            entry = self.log.writers[writer]
            self.log.end(writer, commits=what != "roll back")
            if what == "complete":
                self.write(entry)

    def write(self, entry: Revocation) -> None:
        """As a request does behind its commit."""
        shard = shard_of(entry.user_id, len(self.tags))
        self.cluster.of_shard(shard).set(tombstone(self.cluster.names, entry), "ended")
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
        proof = data.draw(st.sampled_from(self.processes)).proofs.about(entry.user_id)
        if outcome != "lost":
            proof.saw(seq)
        if outcome == "204":
            self.write(entry)
        elif outcome == "202":
            proof.learned(seq)

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
        """A server is emptied, or what it was once, over new connections; a process is a new one."""
        server = number % self.servers
        if what == "restart":
            self.processes[number] = self.new_process()
        elif what == "back up":
            self.backups = [
                self.cluster.read(shard, self.cluster.owners[shard]) for shard in range(len(self.tags))
            ]
        else:
            self.cluster.at(server).flushall()
        if what == "fail over":
            self.fail_over(server)

    def fail_over(self, server: int) -> None:
        """The server is what it was then; its connections break."""
        for shard, owner in enumerate(self.cluster.owners):
            if owner == server:
                self.cluster.put(shard, server, self.backups[shard])
        for process in self.processes:
            process.lose_connections(server)

    @invariant()
    def what_is_believed_is_right(self) -> None:
        """A process that believes a shard finds what was in SQL before it compared, and what was a 204."""
        for shard in range(len(self.tags)):
            ours = {
                seq for seq, row in self.log.rows.items() if shard_of(row.user_id, len(self.tags)) == shard
            }
            keys = self.cluster.of_shard(shard).keys("*session *")
            there = {int(key.split()[1]) for key in keys}
            for process in self.processes:
                if process.believes(shard):
                    assert there >= self.complete & ours
                    assert there >= process.compared & ours

    def teardown(self) -> None:
        """Nothing happens any more: whatever is still under way, whoever compares twice believes again."""
        self.log.writers.clear()
        for process in self.processes * 3:
            process.tick()
        for process in self.processes:
            assert all(process.believes(shard) for shard in range(len(self.tags)))
            assert process.compared == set(self.log.rows)
        self.what_is_believed_is_right()


class ClusterWorld(World):
    """The same on two servers, whose shards go from one to another while all connections stay open."""

    tags = ("0", "1", "2")
    servers = 2

    @rule(shard=st.integers(0, 2), server=st.integers(0, 1))
    def move(self, shard: int, server: int) -> None:
        """A shard is moved with all that is in it."""
        before = self.cluster.owners[shard]
        if server == before:
            return
        values = self.cluster.read(shard, before)
        self.cluster.put(shard, before, {})
        self.cluster.put(shard, server, values)
        self.cluster.owners[shard] = server

    @rule(shard=st.integers(0, 2), server=st.integers(0, 1))
    def seize(self, shard: int, server: int) -> None:
        """A server takes over that was a replica, and has what it was told then."""
        if server == self.cluster.owners[shard]:
            return
        self.cluster.now_s += ELECTION_S
        self.cluster.put(shard, server, self.backups[shard])
        self.cluster.owners[shard] = server
        self.cluster.lineages[server] += 1


@pytest.mark.parametrize(
    ("machine", "examples"),
    [
        pytest.param(World, 60, id="one server"),
        pytest.param(ClusterWorld, 15, id="cluster"),
        pytest.param(ClusterWorld, 100, id="cluster, long", marks=[pytest.mark.fault, pytest.mark.long]),
    ],
)
def test_whoever_believes_redis_finds_every_revocation_there(machine, examples):
    """Whatever happens in whatever order; nothing expires in the middle of it."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
