"""The backlog above the marker: entries that this process has not yet read from SQL and written to Redis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from authsvc.domain.revocations import Revocation
from authsvc.store.copies.marker import Seal
from authsvc.store.revocations import Range

#: If there are more ranges, neighbours are joined and read with the entries between them.
MOST_RANGES: Final = 100


class Backlog:
    """
    The numbers above the marker that this process has not yet written to Redis.

    The marker may have to stay below visible entries, because a lower number may still be committed. Written
    entries are not read again; missing numbers are, until the marker has passed them. A seal after the last
    write shows whether Redis still has it. At most *most_ranges* ranges of missing numbers are tracked.
    """

    def __init__(self, most_ranges: int = MOST_RANGES) -> None:
        self._most_ranges = most_ranges
        self.seal: Seal | None = None
        self._over = -1
        self._upto = 0
        self._missing: list[Range] = []

    def anew(self) -> Backlog:
        """An empty backlog with the same limit."""
        return Backlog(self._most_ranges)

    def begin(self, *, marker: int, head: int, over: int, is_sealed: bool) -> Sequence[Range]:
        """
        The ranges to read and write between *marker* and *head* over connection *over*.

        All of them if the connection is a new one, or if Redis lost the last write.
        """
        if over != self._over or not is_sealed or self._upto <= marker:
            self.seal, self._over, self._upto, self._missing = None, over, marker, []
        missing = [(max(low, marker + 1), high) for low, high in self._missing if high > marker]
        upto = max(self._upto, marker)
        if head > upto:
            missing.append((upto + 1, head))
        self._missing, self._upto = _joined(missing, self._most_ranges), max(upto, head)
        return self._missing

    def wrote(self, page: Sequence[Revocation], seal: Seal) -> None:
        """Record that Redis has *page*, followed by *seal*."""
        self.seal = seal
        self._missing = _joined(_without(self._missing, [entry.seq for entry in page]), self._most_ranges)


def _without(ranges: Iterable[Range], numbers: Iterable[int]) -> list[Range]:
    """*ranges* less *numbers*; both rise."""
    left, rising = [], iter([*numbers, math.inf])
    number = next(rising)
    for low, high in ranges:
        begin = low
        while number <= high:
            if begin < number:
                left.append((begin, int(number) - 1))
            begin, number = max(begin, int(number) + 1), next(rising)
        if begin <= high:
            left.append((begin, high))
    return left


def _joined(ranges: list[Range], most: int) -> list[Range]:
    """At most *most* ranges that cover *ranges*; the lowest ones are joined."""
    if len(ranges) <= most:
        return ranges
    *lowest, last = ranges[: 1 - most]
    return [(lowest[0][0], last[1]), *ranges[1 - most :]]
