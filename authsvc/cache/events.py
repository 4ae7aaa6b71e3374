"""Callbacks of the cache, for metrics and tracing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def ignore(*_: object) -> None:
    """Do nothing: the default of callbacks that are not needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvents:
    """
    Callbacks to count events. They run in the calling thread, so they must be quick. All labels are from
    short, fixed sets.

    ``on_operation(name, seconds, outcome)``: name is a command in lower case, ``mget`` or ``pipeline``;
    outcome ``ok``, ``misuse`` or a :class:`~authsvc.cache.errors.Reason`.  ``on_lookup(space, outcome)`` and
    ``on_fill(space, outcome)``: see :mod:`authsvc.cache.aside`.
    """

    on_operation: Callable[[str, float, str], None] = ignore
    on_lookup: Callable[[str, str], None] = ignore
    on_fill: Callable[[str, str], None] = ignore
