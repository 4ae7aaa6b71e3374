"""
What tests observe while something breaks.

The machine (:class:`Pulse`): no service keeps a time limit where a bare round trip takes too long.  The log
and the metrics (:class:`Signs`).  Tokens that are checked without a pause (:class:`Watch`).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING, TypeVar
from urllib.request import urlopen

import psycopg
from redis import RedisError

from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.fault.world import World
    from tests.rig import Service

T = TypeVar("T")

BEAT_S = 0.05
#: The service waits 0.25 s for Redis and 0.5 s for a connection to SQL, in processes that share the machine
#: with this one: where a round trip of ours took so long, theirs may have taken more.
LATE_S = 0.1
#: Waits for the disk, as every write does.
WRITE = "SELECT pg_logical_emit_message(true, 'pulse', '')"


@dataclass(slots=True)
class Pulse:
    """The longest round trip to stores that were not broken, past the service; seconds."""

    beat: Callable[[], None]
    worst_s: float = 0.0
    _began_s: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_late(self) -> bool:
        """True if a store, or this process, stood still for a while, or does right now."""
        return max(self.worst_s, self._took_s()) > LATE_S

    def run(self) -> None:
        """Beat until stopped; a store that breaks off is late, too."""
        while not self._over.is_set():
            try:
                self.beat()
            except (RedisError, psycopg.Error):
                self.worst_s = float("inf")
            self._over.wait(BEAT_S)
            self.worst_s = max(self.worst_s, self._took_s())
            self._began_s = time.monotonic()

    def timed(self, question: Callable[[], T]) -> T:
        """What *question* returns; for others, frozen meanwhile, it is a stop like any other."""
        began_s = time.monotonic()
        answer = question()
        self.worst_s = max(self.worst_s, time.monotonic() - began_s)
        return answer

    def stop(self) -> None:
        """The end."""
        self._over.set()

    def _took_s(self) -> float:
        return time.monotonic() - self._began_s - BEAT_S


@contextmanager
def feeling(world: World, *, redis: bool = True, sql: bool = True) -> Iterator[Pulse]:
    """Feel the pulse of the stores that are not to be broken while the block runs."""
    with ExitStack() as stack:
        client = stack.enter_context(world.redis_admin()) if redis else None
        connection = stack.enter_context(world.sql_admin()) if sql else None

        def beat() -> None:
            if client is not None:
                client.ping()
            if connection is not None:
                connection.execute(WRITE)

        pulse = Pulse(beat)
        thread = threading.Thread(target=pulse.run, name="pulse")
        thread.start()
        try:
            yield pulse
        finally:
            pulse.stop()
            thread.join()


@dataclass(frozen=True, slots=True)
class Signs:
    """What has shown since :meth:`of` was called."""

    service: Service
    figures: dict[str, float]
    log_bytes: int

    @classmethod
    def of(cls, service: Service) -> Signs:
        """Begin to look."""
        return cls(service, figures(service), service.log.stat().st_size)

    def wait_for(self, wanted: tuple[str, ...], *, timeout_s: float) -> None:
        """Wait until all of *wanted* has shown."""
        try:
            wait_until(lambda: not self.missing(wanted), timeout_s=timeout_s)
        except TimeoutError:
            raise AssertionError(f"not seen: {self.missing(wanted)}") from None

    def missing(self, wanted: tuple[str, ...]) -> set[str]:
        """Those of *wanted* that have not shown: ``log <event>``, or a sample that has not risen."""
        now, events = figures(self.service), self.events()
        return {sign for sign in wanted if not self._shows(sign, now, events)}

    def events(self) -> set[str]:
        """The events in the log since then."""
        with self.service.log.open("rb") as log:
            log.seek(self.log_bytes)
            whole, _, _ = log.read().rpartition(b"\n")
        return {json.loads(line)["event"] for line in whole.splitlines() if line.startswith(b'{"')}

    def _shows(self, sign: str, now: dict[str, float], events: set[str]) -> bool:
        kind, _, event = sign.partition(" ")
        return event in events if kind == "log" else now.get(sign, 0) > self.figures.get(sign, 0)


def figures(service: Service) -> dict[str, float]:
    """Every sample of the scrape, by name and labels."""
    with urlopen(service.metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


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
