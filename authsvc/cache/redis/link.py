"""What a client needs of the servers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from redis.exceptions import ResponseError

from authsvc.cache.redis.connections import Argument, Reply

Command: TypeAlias = "tuple[Argument, ...]"
V = TypeVar("V")


class Stamped(NamedTuple, Generic[V]):
    """
    Values read in one round trip, and the generation of the very connection they came over.

    Where several servers answered it is the highest of their generations.  Where the servers count their
    connections apart, only the answer of a single server can be trusted by it.
    """

    values: list[V]
    generation: int


class Fleet(Protocol):
    """The connections to all servers of a link; of one server these are its ``Connections``."""

    @property
    def generation(self) -> int:
        """The latest stamp handed out."""

    def suspect(self) -> None:
        """Have every connection made so far closed and remade before its next use."""

    def fill(self) -> int:
        """Open connections up to the pools' size; returns how many are open."""

    def close(self) -> None:
        """Close idle connections now and those in use when they come back."""

    def acquire(self) -> Any:  # noqa: ANN401 a Wire; who borrows one knows why
        """Take a connection, of any server."""

    def release(self, wire: Any) -> None:  # noqa: ANN401 the same
        """Give it back."""


class Link(Protocol):
    """Carries commands to servers and replies back; raises the driver's RedisError."""

    @property
    def name(self) -> str:
        """The server, as the cluster calls it; no text where there is one alone."""

    @property
    def may_change_roles(self) -> bool:
        """True for a server that may become a replica, and a primary again, without closing connections."""

    @property
    def connections(self) -> Fleet:
        """All connections of this link."""

    @property
    def is_steady(self) -> bool:
        """False while calls of some server failed recently, as far as the link itself counts them."""

    @property
    def is_closed(self) -> bool:
        """True while no server's circuit breaker keeps calls from it, as far as the link has any."""

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """Return the values of *keys*, None for each that is missing or no string."""

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """Send all *commands*, then read; all are carried out, then the first error is raised."""

    def exchange_each(
        self, commands: Sequence[Command], *, repeatable: bool
    ) -> Stamped[Reply | ResponseError]:
        """Send all *commands*, then read; a refusal takes the place of the reply."""

    def at(self, key: str) -> Link:
        """Return a link to the server that owns *key* now, which goes to no other: equal keys, equal link."""

    def connections_to(self, name: str) -> Fleet:
        """Return the connections to the server that a link calls *name*."""

    def servers(self) -> list[Link]:
        """Return a link for each server that holds keys of its own."""

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """True if marker and *keys* are on one server, which cannot lose one without the other."""
