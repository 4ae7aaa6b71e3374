"""Tokens that are checked without a pause while something breaks."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.rig import Service

WATCH_INTERVAL_S = 0.02


@dataclass(slots=True)
class Watch:
    """
    Checks tokens without a pause on a thread of its own: what happened between two looks happened.

    *good* tokens must never be refused, *bad* ones never accepted; ``wrong`` counts what was, by status.
    More may be added to both meanwhile.
    """

    service: Service
    good: list[str]
    bad: list[str]
    #: What a good token may be answered with.
    allowed: frozenset[int] = frozenset({200})
    #: Whether a 503 is nobody's fault, to be told at the end.
    excused: Callable[[], bool] = bool
    wrong: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Go round until stopped."""
        while not self._stop.is_set():
            for token in tuple(self.good):
                self._look("good", token, self.allowed)
            for token in tuple(self.bad):
                self._look("bad", token, frozenset({401, 503}))
            self.rounds += 1

    def stop(self) -> None:
        """The end of the watch."""
        self._stop.set()

    def faults(self) -> dict[str, int]:
        """What went wrong and is not excused."""
        excused = {"good token answered 503"} if self.excused() else set()
        return {what: count for what, count in self.wrong.items() if what not in excused}

    def _look(self, kind: str, token: str, allowed: frozenset[int]) -> None:
        try:
            status = self.service.verify(token)
        except (OSError, HTTPException):
            return  # a worker was killed under it, which a gateway takes for an outage
        if status not in allowed:
            self.wrong[f"{kind} token answered {status}"] += 1
        self._stop.wait(WATCH_INTERVAL_S)


@contextmanager
def watching(
    service: Service,
    *,
    good: Iterable[str] = (),
    bad: Iterable[str] = (),
    allowed: Iterable[int] = (200,),
    excused: Callable[[], bool] = bool,
) -> Iterator[Watch]:
    """Watch these tokens while the block runs; afterwards nothing may have gone wrong."""
    bad = bad if isinstance(bad, list) else list(bad)
    watch = Watch(service, list(good), bad, frozenset(allowed), excused)
    thread = threading.Thread(target=watch.run, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
    assert watch.rounds > 0
    assert watch.faults() == {}
