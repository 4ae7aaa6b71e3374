"""A single server, or the current primary that a Sentinel names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from authsvc.cache.redis.connections import Connections, Pool, Reply, Wire, was_never_sent
from authsvc.cache.redis.link import Command, Link, Stamped

V = TypeVar("V")


class SingleServer:
    """
    A link over one pool.

    If a connection turns out to be closed, a read is sent again, and so is a request that was never sent.
    """

    name = ""
    may_change_roles = False
    is_steady = True
    is_closed = True

    def __init__(self, pool: Pool | Connections) -> None:
        self.connections = pool if isinstance(pool, Connections) else Connections(pool)

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """One MGET."""

        def talk(wire: Wire) -> list[bytes | None]:
            wire.send_command("MGET", *keys)
            values = wire.read_response()
            if not isinstance(values, list) or len(values) != len(keys):
                raise InvalidResponse("not what MGET replies")
            return cast("list[bytes | None]", values)

        return self._attempt(talk, repeatable=True)

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """One write, then all replies."""
        if len(commands) == 1:
            return self._attempt(lambda wire: [_ask(wire, commands[0])], repeatable=repeatable)
        return self._attempt(lambda wire: _converse(wire, commands), repeatable=repeatable)

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """One write, then all replies; for a refused command, the reply is the error."""
        return self._attempt(lambda wire: _answers(wire, commands), repeatable=repeatable)

    def at(self, key: str) -> Link:  # noqa: ARG002 all keys are here
        """This one."""
        return cast("Link", self)

    def connections_to(self, name: str) -> Connections:  # noqa: ARG002 there is one server
        """The connections of this link."""
        return self.connections

    def servers(self) -> list[Link]:
        """This one."""
        return [cast("Link", self)]

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:  # noqa: ARG002 a cluster looks at them
        """One server holds everything."""
        return True

    def _attempt(self, talk: Callable[[Wire], list[V]], *, repeatable: bool) -> Stamped[V]:
        wire = self.connections.acquire()
        try:
            return self._once(wire, talk)
        except DriverConnectionError as error:
            if type(error) is not DriverConnectionError:  # a refusal, not a broken connection
                raise
            # The other connections were probably closed, too: remake all. Otherwise each would fail once, and
            # open the breaker.
            self.connections.suspect()
            if not (repeatable or was_never_sent(error)):
                raise
        return self._once(self.connections.acquire(), talk)

    def _once(self, wire: Wire, talk: Callable[[Wire], list[V]]) -> Stamped[V]:
        try:
            return Stamped(talk(wire), wire.generation)
        except ResponseError:  # the reply was read to its end: the connection is still usable
            raise
        except BaseException:
            wire.disconnect()
            raise
        finally:
            self.connections.release(wire)


def _ask(wire: Wire, command: Command) -> Reply:
    wire.send_command(*command)
    return wire.read_response()


def _converse(wire: Wire, commands: Sequence[Command]) -> list[Reply]:
    answers = _answers(wire, commands)
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return cast("list[Reply]", answers)


def _answers(wire: Wire, commands: Sequence[Command]) -> list[Reply | ResponseError]:
    wire.send_packed_command(wire.pack_commands(commands))
    answers: list[Reply | ResponseError] = []
    for _ in commands:
        try:
            answers.append(wire.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers
