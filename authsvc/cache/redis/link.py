"""The interface between a client and the servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from redis.exceptions import ResponseError

from authsvc.cache.redis.connections import Argument, Reply

Command: TypeAlias = "tuple[Argument, ...]"
V = TypeVar("V")


class Stamped(NamedTuple, Generic[V]):
    """
    Values read in one round trip, and the generation of the connection they came over. If several servers
    answered, it is the highest of their generations. If each server counts its own connections, only the
    answer of a single server can be trusted by it.
    """

    values: list[V]
    generation: int


class Fleet(Protocol):
    """The connections to all servers of a link; for a single server, its ``Connections``."""

    @property
    def generation(self) -> int:
        """The latest stamp handed out."""

    def suspect(self) -> None:
        """Have all existing connections closed and remade before their next use."""

    def fill(self) -> int:
        """Open connections up to the pools' size; returns how many are open."""

    def close(self) -> None:
        """Close idle connections now, and those in use when they are released."""

    def acquire(self) -> Any:  # noqa: ANN401 a Wire; who borrows one knows why
        """Take a connection to any server."""

    def release(self, wire: Any) -> None:  # noqa: ANN401 the same
        """Return it to its pool."""


class Link(Protocol):
    """Carries commands to servers and replies back; raises the driver's RedisError."""

    @property
    def name(self) -> str:
        """The name of the server in the cluster; "" for a single server."""

    @property
    def may_change_roles(self) -> bool:
        """True if the server may become a replica, and a primary again, without closing connections."""

    @property
    def connections(self) -> Fleet:
        """All connections of this link."""

    @property
    def is_steady(self) -> bool:
        """False after recent failures of a server, if the link counts them itself."""

    @property
    def is_closed(self) -> bool:
        """True unless the circuit breaker of a server is open, if the link has breakers."""

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """Return the values of *keys*, None for each that is missing or no string."""

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """Send all *commands*, then read the replies; all are executed, then the first error is raised."""

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """Send all *commands*, then read the replies; for a refused command, the reply is the error."""

    def at(self, key: str) -> Link:
        """
        Return a link to the server that owns *key* now; it uses no other. Equal keys have the same link.
        """

    def connections_to(self, name: str) -> Fleet:
        """Return the connections to the server that a link calls *name*."""

    def servers(self) -> list[Link]:
        """Return a link for each server that owns keys."""

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """True if marker and *keys* can only be lost together."""
