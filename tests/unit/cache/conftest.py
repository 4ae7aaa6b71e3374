"""A Redis in this process, and clients of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fakeredis import FakeRedisConnection, FakeServer
from redis import ConnectionPool

from authsvc.cache import CacheClient, CacheEvents, CircuitBreaker, stamped


class Ticker:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def tick(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.now_s += seconds


class Log(list[tuple[str, str]]):
    """What the callbacks of a client were told, as (subject, outcome)."""

    def events(self) -> CacheEvents:
        """Return callbacks that write here."""
        return CacheEvents(
            on_operation=lambda name, _seconds, outcome: self.append((name, outcome)),
            on_lookup=lambda space, outcome: self.append((f"lookup {space}", outcome)),
            on_fill=lambda space, outcome: self.append((f"fill {space}", outcome)),
        )


@pytest.fixture
def clock() -> Ticker:
    """Return a clock to turn."""
    return Ticker()


@pytest.fixture
def log() -> Log:
    """Return an empty log of events."""
    return Log()


@pytest.fixture
def server() -> FakeServer:
    """Return an empty Redis of this process; ``connected = False`` is an outage."""
    return FakeServer()


@pytest.fixture
def connect(server, log) -> Callable[..., CacheClient]:
    """Return a maker of clients of *server*."""

    def make(
        *,
        size: int = 4,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        events: CacheEvents | None = None,
    ) -> CacheClient:
        pool = ConnectionPool(
            connection_class=stamped(FakeRedisConnection), max_connections=size, server=server
        )
        breaker = breaker or CircuitBreaker(clock=time.monotonic)
        return CacheClient(pool, breaker=breaker, clock=clock, events=events or log.events())

    return make


@pytest.fixture
def client(connect: Callable[..., CacheClient]) -> CacheClient:
    """Return one client of *server*."""
    client: CacheClient = connect()
    return client
