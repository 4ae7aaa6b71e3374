"""
A cluster behind one link: each command goes to the server that owns its key's slot.

Topology and slot map are redis-py's (``NodesManager``); its cluster client and pipelines are not used: the
pipelines refuse scripts, and neither shows over which connection a reply came.  Here the
commands of one exchange are sent to all servers concerned before any reply is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import ClassVar, Final, TypeVar, cast

from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as DriverConnectionError

from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.cache.errors import ServerFailed, is_exhaustion
from authsvc.cache.redis.connections import Connections, Pool, Reply, Wire
from authsvc.cache.redis.link import Command, Link, Stamped
from authsvc.cache.redis.single import SingleServer
from authsvc.cache.redis.talks import Pending, Talk, converse
from authsvc.cache.redis.topology import ClusterFleet, Topology

V = TypeVar("V")

#: Commands without a key: any server can execute them.
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
#: How often one command follows redirections.
_REDIRECTIONS: Final = 3


class ClusterServers:
    """
    A link to a cluster; connects when it is first used.

    All keys of one command must share a slot, except those of MGET, which is split.  After a broken
    connection or a moved slot the map is read again. With *breaker_of*, each server has its own circuit
    breaker, made for its name: the loss of one server affects only its own keys.
    """

    name = ""
    may_change_roles = True

    def __init__(self, topology: Topology, breaker_of: Callable[[str], CircuitBreaker] | None = None) -> None:
        self._topology = topology
        self.connections = ClusterFleet(topology)
        self._breaker_of = breaker_of
        self._breakers: dict[str, CircuitBreaker] = {}
        self._owners: dict[str, _Owner] = {}
        self._making = Lock()

    @property
    def is_steady(self) -> bool:
        """False while calls of some server failed recently."""
        return all(breaker.is_steady for breaker in tuple(self._breakers.values()))

    @property
    def is_closed(self) -> bool:
        """True while no server's circuit breaker keeps calls from it."""
        return all(breaker.state is State.CLOSED for breaker in tuple(self._breakers.values()))

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """One MGET for each slot, all at once."""
        replies, generation = self.exchange([("MGET", *keys)], repeatable=True)
        return Stamped(cast("list[bytes | None]", replies[0]), generation)

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """
        Send each command to the owner of its key. A command that must not be repeated is sent again only if
        it was refused.
        """
        try:
            return self._exchange(commands)
        except RedisError as failure:
            if not self._is_worth_another(failure, repeatable=repeatable):
                raise
        return self._exchange(commands)

    def _is_worth_another(self, failure: RedisError, *, repeatable: bool) -> bool:
        """True if *failure* is a broken connection: another may work. Marks the slot map as outdated."""
        error = failure.error if isinstance(failure, ServerFailed) else failure
        is_connection = isinstance(error, DriverConnectionError) and not is_exhaustion(error)
        if is_connection or isinstance(error, ReadOnlyError):
            self._topology.doubt()
        return is_connection and repeatable and type(error) is DriverConnectionError

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """Send each command to the owner of its key; for a refused command, the reply is the error."""
        try:
            return self._exchange_each(commands)
        except RedisError as failure:
            if not self._is_worth_another(failure, repeatable=repeatable):
                raise
        return self._exchange_each(commands)

    def _exchange_each(self, commands: Sequence[Command]) -> Stamped[Reply | ResponseError]:
        pending = [self._addressed(command) for command in commands]
        flat = [part for one in pending for part in (one.parts or [one])]
        generation = self._rounds(flat)
        return Stamped([_answer(one) for one in pending], generation)

    def at(self, key: str) -> Link:
        """Return a link to the server that owns *key* now; it uses no other server."""
        name = self._topology.owner(key.encode()).name
        with self._making:
            if name not in self._owners:
                self._owners[name] = _Owner(self._topology, name)
            return cast("Link", self._owners[name])

    def connections_to(self, name: str) -> Connections:
        """Return the connections to the server that a link calls *name*."""
        return self._topology.connections_to(name)

    def pool_to(self, name: str) -> Pool:
        """Return another pool of connections to that server, counted with the others."""
        return self._topology.pool_to(name)

    def servers(self) -> list[Link]:
        """Return a link to each primary."""
        return [_Primary(self, node) for node in self._topology.primaries()]

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """True for keys in the marker's own slot: only they are lost together with it."""
        slot = key_slot(marker_key.encode())
        return all(key_slot(key.encode()) == slot for key in keys)

    def exchange_at(self, node: ClusterNode, commands: Sequence[Command]) -> Stamped[Reply]:
        """Send *commands* to *node*, whatever their keys."""
        return self._carry([Pending(command, node) for command in commands])

    def _exchange(self, commands: Sequence[Command]) -> Stamped[Reply]:
        return self._carry([self._addressed(command) for command in commands])

    def _carry(self, pending: Sequence[Pending]) -> Stamped[Reply]:
        flat = [part for one in pending for part in (one.parts or [one])]
        generation = self._rounds(flat)
        refusals = [one.refusal for one in flat if one.refusal is not None]
        if refusals:
            raise self._told(refusals[0])
        return Stamped([_joined(one) if one.parts else one.reply for one in pending], generation)

    def _rounds(self, flat: Sequence[Pending]) -> int:
        """
        Send, and follow redirections; returns the highest generation among the replies.

        A server that only redirected is left out: its generation must not vouch for values of another server.
        """
        self._round(flat)
        for _ in range(_REDIRECTIONS):
            redirected = [one for one in flat if isinstance(one.refusal, AskError)]
            if not redirected:
                break
            for one in redirected:
                self._redirect(one, cast("AskError", one.refusal))
            self._round(redirected)
        return max((one.generation for one in flat), default=0)

    def _round(self, flat: Sequence[Pending]) -> None:
        """Send everything to every server, then read every reply."""
        by_node: dict[str, list[Pending]] = {}
        for one in flat:
            by_node.setdefault(one.node.name, []).append(one)
        with ExitStack() as borrowed:
            # Always in the same order: otherwise two threads could each hold the connection that the other
            # needs.
            talks = [self._talk(borrowed, pending) for _, pending in sorted(by_node.items())]
            converse(talks)
        for talk in talks:
            if talk.error is not None:
                raise self._told(talk.error)

    def _talk(self, borrowed: ExitStack, pending: Sequence[Pending]) -> Talk:
        """Start the exchange with the server of *pending*."""
        node = pending[0].node
        talk = Talk(self._topology.connections(node), pending, self._breaker(node.name))
        talk.begin(borrowed)
        return talk

    def _breaker(self, name: str) -> CircuitBreaker | None:
        if self._breaker_of is None:
            return None
        with self._making:
            if name not in self._breakers:
                self._breakers[name] = self._breaker_of(name)
            return self._breakers[name]

    def _told(self, error: RedisError) -> RedisError:
        """Return *error* as ServerFailed if the server has its own circuit breaker."""
        return error if self._breaker_of is None else ServerFailed(error)

    def _redirect(self, one: Pending, refusal: AskError) -> None:
        one.is_asking = not isinstance(refusal, MovedError)
        one.node = self._topology.redirected(refusal)
        one.refusal = None

    def _addressed(self, command: Command) -> Pending:
        name = str(command[0]).upper()
        if name == "MGET" and len(command) > 2:  # noqa: PLR2004 one key needs no splitting
            return self._split(command)
        if name in _KEYLESS or (name in _SCRIPTS and not command[2]):
            return Pending(command, self._topology.any_primary())
        key = command[3] if name in _SCRIPTS else command[1] if len(command) > 1 else ""
        return Pending(command, self._topology.owner(_bytes(key)))

    def _split(self, command: Command) -> Pending:
        by_slot: dict[int, list[str]] = {}
        for key in command[1:]:
            by_slot.setdefault(key_slot(_bytes(key)), []).append(cast("str", key))
        parts = [Pending(("MGET", *keys), self._topology.owner(_bytes(keys[0]))) for keys in by_slot.values()]
        return Pending(command, parts[0].node, parts=parts)


@dataclass(frozen=True, slots=True)
class _Primary:
    """One primary of a cluster, for commands that are sent to each: SCAN, DBSIZE, INFO."""

    cluster: ClusterServers
    node: ClusterNode

    may_change_roles: ClassVar = True

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return str(self.node.name)

    @property
    def connections(self) -> ClusterFleet:
        """The connections of the whole cluster."""
        return self.cluster.connections

    @property
    def is_steady(self) -> bool:
        """As the cluster is."""
        return self.cluster.is_steady

    @property
    def is_closed(self) -> bool:
        """As the cluster is."""
        return self.cluster.is_closed

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """By slot, as the cluster does."""
        return self.cluster.exchange_each(commands, repeatable=repeatable)

    def at(self, key: str) -> Link:
        """As the cluster does."""
        return self.cluster.at(key)

    def connections_to(self, name: str) -> Connections:
        """As the cluster does."""
        return self.cluster.connections_to(name)

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """By slot, as the cluster does."""
        return self.cluster.mget(keys)

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:  # noqa: ARG002 a link's
        """Send commands to this server; those with a key follow redirections."""
        return self.cluster.exchange_at(self.node, commands)

    def servers(self) -> list[Link]:
        """Only this server."""
        return [self]

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """As the cluster does."""
        return self.cluster.vouches(marker_key, keys)


class _Owner(SingleServer):
    """
    The server that owns some slots now, for callers that must know which server answers: never follows
    redirections.
    """

    may_change_roles = True

    def __init__(self, topology: Topology, name: str) -> None:
        super().__init__(topology.connections_to(name))
        self.name = name
        self._topology = topology

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """As a single server does; commands for slots that it does not own any more are refused."""
        answers = super().exchange_each(commands, repeatable=repeatable)
        if any(isinstance(answer, MovedError) for answer in answers.values):
            self._topology.doubt()
        return answers

    def _attempt(self, talk: Callable[[Wire], list[V]], *, repeatable: bool) -> Stamped[V]:
        try:
            return super()._attempt(talk, repeatable=repeatable)
        except RedisError:
            self._topology.doubt()
            raise


def _joined(split: Pending) -> Reply:
    """Return the values of a split MGET, in the order of the request."""
    found: dict[object, Reply] = {}
    for part in split.parts:
        found |= dict(zip(part.command[1:], cast("list[Reply]", part.reply), strict=True))
    return [found[key] for key in split.command[1:]]


def _answer(one: Pending) -> Reply | ResponseError:
    """Return the reply, or the error of the command or of a part of it."""
    refusals = [part.refusal for part in (one.parts or [one]) if part.refusal is not None]
    if refusals:
        return refusals[0]
    return _joined(one) if one.parts else one.reply


def _bytes(key: object) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()
