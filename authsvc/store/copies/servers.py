"""The shards of Redis, and the servers that own them now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from authsvc.cache.errors import CacheError, CacheUnavailable, Reason
from authsvc.cache.redis.client import CacheClient, Command
from authsvc.cache.redis.connections import Reply
from authsvc.cache.redis.link import Fleet
from authsvc.cache.redis.polled import PolledReads
from authsvc.domain.revocations import Position, Proof, whole_number
from authsvc.domain.values.shards import Sharded
from authsvc.store.copies.backlog import Backlog
from authsvc.store.copies.index import IndexKeys
from authsvc.store.copies.marker import FreshnessMarker, MarkerTimings, Reading
from authsvc.store.revocations import Range

#: Comparisons between two reads of the eviction policy.
POLICY_EVERY: Final = 5


@dataclass(slots=True, kw_only=True)
class Shard:
    """One shard: its marker, and what this process knows of it."""

    number: int
    marker: FreshnessMarker
    proof: Proof
    backlog: Backlog = field(default_factory=Backlog)


def shards_of(
    names: Sharded[IndexKeys], proofs: Sharded[Proof], timings: MarkerTimings | None = None
) -> list[Shard]:
    """The shards with the key names *names*."""
    return [
        Shard(number=number, marker=FreshnessMarker(name.marker, name.installation, timings), proof=proof)
        for number, (name, proof) in enumerate(zip(names.each, proofs.each, strict=True))
    ]


@dataclass(slots=True)
class Server:
    """
    One server as the reconciler sees it.

    *client* has a single connection, which leads only to this server: if it lasts for a whole comparison,
    there was no failover between its steps. *checks* are the connections of token checks to the same server;
    their generations are counted together.
    """

    client: CacheClient
    checks: Fleet
    lane: PolledReads | None = None
    over: int = -1
    newest: int = -1
    ticks: int = 0
    is_evicting: bool = False
    #: Changes when the server becomes a primary.
    lineage: str | None = None

    def wants_new_connection(self) -> bool:
        """True if checks made, or need, connections that no comparison has covered."""
        is_wanted = self.lane is not None and self.lane.wants_renewal()
        return self.checks.generation != self.newest or is_wanted

    def watch_role(self) -> None:
        """
        Distrust connections from before this server was a replica: a change of role need not close them.

        What was written to it as a primary may be lost, and its data now comes from another server. Raises
        CacheError, also if the server does not report its role.
        """
        if not self.client.link.may_change_roles:
            return
        found = (self.client.info("replication") or {}).get("master_replid")
        if found is None:
            raise CacheUnavailable(Reason.DENIED)
        before, self.lineage = self.lineage, found
        if before != self.lineage:
            self.client.connections.suspect()
            self.checks.suspect()

    def renew_connections(self, over: int) -> None:
        """
        Record the newest generation, before anything is compared. If the reconciler's own connection was
        remade, older ones may lead to another server: remake all.
        """
        if over != self.over:
            self.checks.suspect()
            self.checks.fill()
            if self.lane is not None:
                self.lane.renew()
            self.over = over
        self.newest = self.checks.generation

    def policy(self) -> str | None:
        """The eviction policy; None if it is denied, or not read this time."""
        self.ticks += 1
        if self.ticks % POLICY_EVERY != 1:
            return None
        return (self.client.info("memory") or {}).get("maxmemory_policy", "noeviction")


class Servers:
    """
    Finds the servers that own *shards*; *client* is the reconciler's own, *checks* that of the token checks.

    *lanes* are the connections of the check lane, by the server's name.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        client: CacheClient,
        checks: CacheClient,
        lane_to: Callable[[str], PolledReads | None] = lambda _: None,
    ) -> None:
        self.shards = shards
        self.checks = checks
        self._client = client
        self.lane_to = lane_to
        self._known: dict[str, Server] = {}
        self._owners: dict[int, str] = {}

    @property
    def proofs(self) -> Sharded[Proof]:
        """The proofs of the shards."""
        return Sharded(tuple(shard.proof for shard in self.shards))

    def owner_of(self, shard: int) -> str | None:
        """The name of the server that owned *shard* at the last comparison; never blocks."""
        return self._owners.get(shard)

    def now(self, errors: list[CacheError]) -> list[tuple[Server, list[Shard]]]:
        """Each server with the shards that it owns now; errors of the other shards go to *errors*."""
        found: dict[str, tuple[Server, list[Shard]]] = {}
        for shard in self.shards:
            try:
                client = self._client.at(shard.marker.key)
            except CacheError as error:
                errors.append(error)
                self._owners.pop(shard.number, None)
            else:
                server = self._known_as(client)
                self._owners[shard.number] = client.link.name
                found.setdefault(client.link.name, (server, []))[1].append(shard)
        return list(found.values())

    def _known_as(self, client: CacheClient) -> Server:
        name = client.link.name
        if name not in self._known:
            self._known[name] = Server(client, self.checks.link.connections_to(name), self.lane_to(name))
        return self._known[name]


@dataclass(slots=True)
class Visit:
    """One shard in one comparison; *start* is the marker, or a claim, from which the replay begins."""

    shard: Shard
    server: Server
    reading: Reading
    start: bytes = b""
    backlog: Backlog = field(default_factory=Backlog)
    ranges: tuple[Range, ...] = ()
    error: CacheError | None = None
    #: Set if the marker or a sealed write was lost meanwhile: the shard is not proven this time.
    is_lost: bool = False

    @property
    def reached(self) -> int | None:
        """The number that the marker was read with."""
        return whole_number(self.reading.value)

    @property
    def is_going_on(self) -> bool:
        """True unless it failed."""
        return self.error is None and not self.is_lost

    @property
    def is_refill(self) -> bool:
        """True if everything is rewritten, under a claim."""
        return not self.start.isdigit()

    def begin(self, head: int) -> None:
        """Determine what to write up to *head*; earlier knowledge is kept only if everything succeeds."""
        self.backlog, self.shard.backlog = self.shard.backlog, self.shard.backlog.anew()
        ranges = self.backlog.begin(
            marker=whole_number(self.start) or 0,
            head=head,
            over=self.reading.over,
            is_sealed=self.reading.is_sealed and not self.is_refill,
        )
        self.ranges = tuple(ranges)

    def end(self, settled: Position, began_s: float) -> None:
        """Mark Redis as proven: it has every entry up to *settled*."""
        self.shard.backlog = self.backlog
        # Redis also has entries above the marker, but only the marker counts.
        self.shard.proof.compared(
            seq=settled.seq, over=self.reading.over, newest=self.server.newest, now_s=began_s
        )


class Answer(NamedTuple):
    """The replies to the commands about one shard, and the generation that they came over."""

    replies: list[Reply]
    over: int


def ask_about(visits: Iterable[tuple[Visit, Sequence[Command]]]) -> dict[int, Answer]:
    """
    Send each server the commands about its shards, one round trip each; returns the answers by shard.  A
    visit gets the error if a command was refused or its server failed.
    """
    by_server: dict[int, list[tuple[Visit, Sequence[Command]]]] = {}
    for visit, commands in visits:
        if commands:
            by_server.setdefault(id(visit.server), []).append((visit, commands))
    answers: dict[int, Answer] = {}
    for batch in by_server.values():
        try:
            answers |= _exchange(batch)
        except CacheError as error:
            for visit, _ in batch:
                visit.error = error
    return answers


def _exchange(batch: Sequence[tuple[Visit, Sequence[Command]]]) -> dict[int, Answer]:
    commands = [command for _, some in batch for command in some]
    replies, over = batch[0][0].server.client.pipeline_each(commands)
    answers: dict[int, Answer] = {}
    left = iter(replies)
    for visit, some in batch:
        mine = [next(left) for _ in some]
        errors = [reply for reply in mine if isinstance(reply, CacheError)]
        if errors:
            visit.error = errors[0]
        else:
            answers[visit.shard.number] = Answer(
                [reply for reply in mine if not isinstance(reply, CacheError)], over
            )
    return answers


def unread() -> CacheUnavailable:
    """The error of a comparison that did not reach all shards."""
    return CacheUnavailable(Reason.CLUSTERDOWN)
