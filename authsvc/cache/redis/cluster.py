"""
A cluster behind one link: each command goes to the server that owns its key's slot.

Topology and slot map are redis-py's (``NodesManager``); its cluster client and pipelines are not used:
a pipeline of theirs refuses scripts, and neither tells over which connection an answer came.  Here the
commands of one exchange are sent to all servers concerned before any reply is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, cast

from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as DriverConnectionError

from authsvc.cache.errors import is_exhaustion
from authsvc.cache.redis.connections import Connections, Reply, Wire
from authsvc.cache.redis.link import Command, Link, Stamped
from authsvc.cache.redis.topology import ClusterFleet, Topology

#: Commands without a key: any server will do.
_KEYLESS: Final = frozenset(
    {
        "PING",
        "ECHO",
        "INFO",
        "DBSIZE",
        "SCAN",
        "PUBLISH",
        "CLIENT",
        "CONFIG",
        "ACL",
        "TIME",
        "SCRIPT",
        "CLUSTER",
    }
)
_SCRIPTS: Final = frozenset({"EVAL", "EVAL_RO", "EVALSHA", "FCALL", "FCALL_RO"})
#: How often one command is sent on to where its slot has moved.
_REDIRECTIONS: Final = 3


@dataclass(slots=True)
class _Pending:
    """One command on its way; *asked* is set where a migrating slot sends it elsewhere just this once."""

    command: Command
    node: ClusterNode
    is_asking: bool = False
    reply: Reply = None
    refusal: ResponseError | None = None
    parts: list[_Pending] = field(default_factory=list)


class ClusterServers:
    """
    A link to a cluster; connects when it is first used.

    All keys of one command must share a slot, except those of MGET, which is split.  After a broken
    connection or a moved slot the map is read anew.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self.connections = ClusterFleet(topology)

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """One MGET for each slot, all at once."""
        replies, generation = self.exchange([("MGET", *keys)], repeatable=True)
        return Stamped(cast("list[bytes | None]", replies[0]), generation)

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """Send each command where its key lives; what must not be repeated is sent again only if refused."""
        try:
            return self._exchange(commands)
        except ReadOnlyError:
            self._topology.doubt()
            raise
        except DriverConnectionError as error:
            if is_exhaustion(error):
                raise
            self._topology.doubt()
            if not repeatable or type(error) is not DriverConnectionError:
                raise
        return self._exchange(commands)

    def servers(self) -> list[Link]:
        """Return a link to each primary."""
        return [_Primary(self, node) for node in self._topology.primaries()]

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """Only the keys in the marker's own slot are lost together with it."""
        slot = key_slot(marker_key.encode())
        return all(key_slot(key.encode()) == slot for key in keys)

    def exchange_at(self, node: ClusterNode, commands: Sequence[Command]) -> Stamped[Reply]:
        """Send *commands* to *node* whatever their keys are."""
        return self._carry([_Pending(command, node) for command in commands])

    def _exchange(self, commands: Sequence[Command]) -> Stamped[Reply]:
        return self._carry([self._addressed(command) for command in commands])

    def _carry(self, pending: Sequence[_Pending]) -> Stamped[Reply]:
        flat = [part for one in pending for part in (one.parts or [one])]
        generation = self._rounds(flat)
        refusals = [one.refusal for one in flat if one.refusal is not None]
        if refusals:
            raise refusals[0]
        return Stamped([_joined(one) if one.parts else one.reply for one in pending], generation)

    def _rounds(self, flat: Sequence[_Pending]) -> int:
        """Send, and send on what was redirected; returns the generation of the youngest connection."""
        generation = _round(self._topology.connections, flat)
        for _ in range(_REDIRECTIONS):
            redirected = [one for one in flat if isinstance(one.refusal, AskError)]
            if not redirected:
                break
            for one in redirected:
                self._redirect(one, cast("AskError", one.refusal))
            generation = max(generation, _round(self._topology.connections, redirected))
        return generation

    def _redirect(self, one: _Pending, refusal: AskError) -> None:
        one.is_asking = not isinstance(refusal, MovedError)
        one.node = self._topology.redirected(refusal)
        one.refusal = None

    def _addressed(self, command: Command) -> _Pending:
        name = str(command[0]).upper()
        if name == "MGET" and len(command) > 2:  # noqa: PLR2004 one key needs no splitting
            return self._split(command)
        if name in _KEYLESS or (name in _SCRIPTS and not command[2]):
            return _Pending(command, self._topology.any_primary())
        key = command[3] if name in _SCRIPTS else command[1] if len(command) > 1 else ""
        return _Pending(command, self._topology.owner(_bytes(key)))

    def _split(self, command: Command) -> _Pending:
        by_slot: dict[int, list[str]] = {}
        for key in command[1:]:
            by_slot.setdefault(key_slot(_bytes(key)), []).append(cast("str", key))
        parts = [
            _Pending(("MGET", *keys), self._topology.owner(_bytes(keys[0]))) for keys in by_slot.values()
        ]
        return _Pending(command, parts[0].node, parts=parts)


@dataclass(frozen=True, slots=True)
class _Primary:
    """One primary of a cluster, for what is asked of each: SCAN, DBSIZE, INFO."""

    cluster: ClusterServers
    node: ClusterNode

    @property
    def connections(self) -> ClusterFleet:
        """Those of the whole cluster."""
        return self.cluster.connections

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """By slot, as the cluster does."""
        return self.cluster.mget(keys)

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:  # noqa: ARG002 a link's
        """Without a key: here; with one: here too, or where the slot has moved."""
        return self.cluster.exchange_at(self.node, commands)

    def servers(self) -> list[Link]:
        """This one."""
        return [self]

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """As the cluster does."""
        return self.cluster.vouches(marker_key, keys)


def _round(connections: Callable[[ClusterNode], Connections], flat: Sequence[_Pending]) -> int:
    """Send everything to every server, then read every reply; returns the youngest generation."""
    by_node: dict[str, list[_Pending]] = {}
    for one in flat:
        by_node.setdefault(one.node.name, []).append(one)
    with ExitStack() as borrowed:
        talks: list[_Talk] = []
        # Always in the same order: else two threads could each hold the last connection that the other needs.
        for _, pending in sorted(by_node.items()):
            pool = connections(pending[0].node)
            wire = pool.acquire()
            borrowed.callback(pool.release, wire)
            talks.append(_Talk(pool, wire, pending))
        return _converse(talks)


def _converse(talks: Sequence[_Talk]) -> int:
    try:
        for step in (_send, _read):
            for talk in talks:
                talk.go_on(step)
    except BaseException:
        for talk in talks:
            talk.wire.disconnect()
        raise
    for talk in talks:
        if talk.error is not None:
            raise talk.error
    return max((talk.wire.generation for talk in talks), default=0)


@dataclass(slots=True)
class _Talk:
    """With one server: its error waits until the replies of the others are read to their end."""

    pool: Connections
    wire: Wire
    pending: Sequence[_Pending]
    error: RedisError | None = None

    def go_on(self, step: Callable[[Wire, Sequence[_Pending]], None]) -> None:
        """Do *step* unless an earlier one failed."""
        if self.error is not None:
            return
        try:
            step(self.wire, self.pending)
        except RedisError as error:
            self.wire.disconnect()
            if type(error) is DriverConnectionError:  # as with one server: what closed this closed its others
                self.pool.suspect()
            self.error = error


def _send(wire: Wire, pending: Sequence[_Pending]) -> None:
    commands: list[Command] = []
    for one in pending:
        commands += [("ASKING",), one.command] if one.is_asking else [one.command]
    wire.send_packed_command(wire.pack_commands(commands))


def _read(wire: Wire, pending: Sequence[_Pending]) -> None:
    for one in pending:
        if one.is_asking:
            wire.read_response()
        try:
            one.reply = wire.read_response()
        except ResponseError as error:
            one.refusal = error


def _joined(split: _Pending) -> Reply:
    """Return the values of an MGET that was split, in the order it was asked in."""
    found: dict[object, Reply] = {}
    for part in split.parts:
        found |= dict(zip(part.command[1:], cast("list[Reply]", part.reply), strict=True))
    return [found[key] for key in split.command[1:]]


def _bytes(key: object) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()
