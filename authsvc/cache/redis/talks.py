"""One exchange with the servers of a cluster: all requests are sent before any reply is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from redis.cluster import ClusterNode
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import RedisError, ResponseError

from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.errors import ServerAvoided, is_exhaustion
from authsvc.cache.redis.connections import Connections, Reply, Wire
from authsvc.cache.redis.link import Command


@dataclass(slots=True)
class Pending:
    """
    One pending command; *asked* is set after an ASK redirection of a migrating slot, for this attempt only.
    """

    command: Command
    node: ClusterNode
    is_asking: bool = False
    reply: Reply = None
    refusal: ResponseError | None = None
    #: The generation of the connection of the last reply.
    generation: int = 0
    parts: list[Pending] = field(default_factory=list)


def converse(talks: Sequence[Talk]) -> None:
    """Send all requests to all servers, then read all replies; each talk keeps its error."""
    try:
        for step in (_send, _read):
            for talk in talks:
                talk.go_on(step)
    except BaseException:
        for talk in talks:
            talk.break_off()
        raise
    for talk in talks:
        talk.end()


@dataclass(slots=True)
class Talk:
    """An exchange with one server; its error is kept until the replies of the others are read completely."""

    pool: Connections
    pending: Sequence[Pending]
    breaker: CircuitBreaker | None
    wire: Wire | None = None
    error: RedisError | None = None
    _permit: Permit | None = None

    def begin(self, borrowed: ExitStack) -> None:
        """Take a connection, unless the server's breaker is open."""
        if self.breaker is not None:
            self._permit = self.breaker.permit()
            if self._permit is None:
                self.error = ServerAvoided()
                return
        try:
            self.wire = self.pool.acquire()
        except RedisError as error:
            self.error = error
        else:
            borrowed.callback(self.pool.release, self.wire)

    def go_on(self, step: Callable[[Wire, Sequence[Pending]], None]) -> None:
        """Do *step* unless an earlier one failed."""
        if self.error is not None or self.wire is None:
            return
        try:
            step(self.wire, self.pending)
        except RedisError as error:
            self.wire.disconnect()
            if type(error) is DriverConnectionError:  # the other connections were probably closed, too
                self.pool.suspect()
            self.error = error

    def break_off(self) -> None:
        """Abort: close the connection, which may have unread replies, and withdraw the permit."""
        if self.wire is not None:
            self.wire.disconnect()
        if self.breaker is not None and self._permit is not None:
            self.breaker.withdrawn(self._permit)

    def end(self) -> None:
        """Report the result to the server's circuit breaker; if that opens, all connections are remade."""
        if self.breaker is None or self._permit is None:
            return
        if self.error is None:
            self.breaker.succeeded(self._permit)
        elif is_exhaustion(self.error):
            self.breaker.withdrawn(self._permit)
        else:
            self.breaker.failed(self._permit)
            if self.breaker.state is State.OPEN:
                self.pool.suspect()


def _send(wire: Wire, pending: Sequence[Pending]) -> None:
    commands: list[Command] = []
    for one in pending:
        commands += [("ASKING",), one.command] if one.is_asking else [one.command]
    wire.send_packed_command(wire.pack_commands(commands))


def _read(wire: Wire, pending: Sequence[Pending]) -> None:
    for one in pending:
        one.generation = wire.generation
        if one.is_asking:
            wire.read_response()
        try:
            one.reply = wire.read_response()
        except ResponseError as error:
            one.refusal = error
