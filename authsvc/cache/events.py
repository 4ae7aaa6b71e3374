"""Callbacks for what the cache does: for metrics and tracing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def ignore(*_: object) -> None:
    """Do nothing: the callback of whoever is not interested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvents:
    """
    Callbacks for whoever counts; called inline, so quick.  All words are short and finite.

    ``on_operation(name, seconds, outcome)``: name a command in lower case, ``mget`` or ``pipeline``;
    outcome ``ok``, ``misuse`` or a :class:`~authsvc.cache.errors.Reason`.  ``on_lookup(space, outcome)`` and
    ``on_fill(space, outcome)``: see :mod:`authsvc.cache.aside`.
    """

    on_operation: Callable[[str, float, str], None] = ignore
    on_lookup: Callable[[str, str], None] = ignore
    on_fill: Callable[[str, str], None] = ignore
