"""What a client needs of the servers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from authsvc.cache.redis.connections import Argument, Reply

Command: TypeAlias = "tuple[Argument, ...]"
V = TypeVar("V")


class Stamped(NamedTuple, Generic[V]):
    """
    Values read in one round trip, and the generation of the very connection they came over.

    If several servers answered, it is that of the newest connection: if that one is trusted, so are the
    others.
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
    def connections(self) -> Fleet:
        """All connections of this link."""

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """Return the values of *keys*, None for each that is missing or no string."""

    def exchange(self, commands: Sequence[Command], *, repeatable: bool) -> Stamped[Reply]:
        """Send all *commands*, then read; all are carried out, then the first error is raised."""

    def servers(self) -> list[Link]:
        """Return a link for each server that holds keys of its own."""

    def vouches(self, marker_key: str, keys: Sequence[str]) -> bool:
        """True if marker and *keys* are on one server, which cannot lose one without the other."""
