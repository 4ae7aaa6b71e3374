"""Whether the machine kept up: what no service can promise where a bare round trip takes too long."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import psycopg
from redis import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fault.world import World

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
