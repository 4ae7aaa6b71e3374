"""The way to SQL: one engine per process, deadlines on every wait, a breaker, errors translated."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.pool import QueuePool

from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.clocks import Monotonic

POOL_SIZE = 8
POOL_WAIT_S = 0.5
#: Everything one unit of work waits for, together: pool, connection, statements.
DEADLINE_S = 2.5
#: psycopg waits at least so long for a connection: with less left, it is not tried.
CONNECT_S = 2

_SERVER_SETTINGS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": "1500ms",
        "lock_timeout": "1000ms",
        "idle_in_transaction_session_timeout": "5000ms",
        "synchronous_commit": "on",
        "timezone": "UTC",
    }.items()
)
_SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=1000")
#: SQLSTATE classes and codes that say that the server is not there for anybody.
_OUTAGES = ("08", "53", "57P")


class Deadline(threading.local):
    """How long the unit of work that runs on this thread may still take."""

    def __init__(self) -> None:
        self.ends_at_s: float | None = None


class DeadlineConnection(psycopg.Connection[Any]):
    """
    A connection that gives up by the client's own clock.

    ``statement_timeout`` is the server's: a stopped server process never fires it.
    """

    deadline: Deadline
    clock: Monotonic

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for *gen* until the deadline of this thread's work; past it the connection is of no use."""
        ends_at_s = self.deadline.ends_at_s
        if ends_at_s is not None:
            left_s = max(0.0, ends_at_s - self.clock())
            timeout = left_s if timeout is None else min(timeout, left_s)
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - psycopg's own name for it
            self.close()
            raise psycopg.OperationalError("no answer within the deadline") from error


def _ignore(_: object) -> None:
    """Let nobody know."""


def _as_it_is(connection: DeadlineConnection) -> DeadlineConnection:
    return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseEvents:
    """Callbacks for whoever counts and traces; called inline, so quick."""

    on_breaker: Callable[[State], None] = _ignore
    #: Connections of the pool that are in use now.
    on_pool: Callable[[int], None] = _ignore
    #: A new connection, before anybody has it; returns what is used in its place.
    on_connect: Callable[[DeadlineConnection], DeadlineConnection] = _as_it_is


class Database:
    """
    Hands out connections for units of work; every failure of the server is a StoreUnavailable.

    Make one per process, after the fork: an engine shared across it answers with other people's rows.
    """

    def __init__(
        self,
        url: str,
        *,
        breaker: CircuitBreaker,
        clock: Monotonic,
        pool_size: int = POOL_SIZE,
        events: DatabaseEvents | None = None,
    ) -> None:
        self._breaker = breaker
        self._clock = clock
        self._events = events or DatabaseEvents()
        self._deadline = Deadline()
        self.is_postgresql = url.startswith("postgresql")
        self.engine = self._postgresql(url, pool_size) if self.is_postgresql else _sqlite(url)
        self._reading = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_postgresql else self.engine
        )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single statements, each of them its own transaction."""
        with self._guarded(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end; on SQLite it is the only writer."""
        with self._guarded(), self.engine.begin() as connection:
            if not self.is_postgresql:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @property
    def state(self) -> State:
        """The breaker's."""
        return self._breaker.state

    def pool_figures(self) -> dict[str, int]:
        """Connections in use and at most."""
        pool = self.engine.pool
        if not isinstance(pool, QueuePool):
            return {}
        return {"in_use": pool.checkedout(), "size": pool.size()}

    def ping(self) -> bool:
        """True; raises StoreUnavailable unless the server answers a query."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))
        return True

    def close(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The breaker and the deadline around one unit of work, and its errors translated."""
        permit = self._breaker.permit()
        if permit is None:
            raise StoreUnavailable("sql: breaker open")
        self._deadline.ends_at_s = self._clock() + DEADLINE_S
        try:
            yield
        except (IntegrityError, DataError):
            self._breaker.succeeded(permit)
            raise
        except PoolExhausted as error:
            # Nothing was asked: a probe that found no connection does not close the breaker.
            self._breaker.withdrawn(permit)
            raise StoreUnavailable("sql: pool exhausted") from error
        except DBAPIError as error:
            report = self._breaker.failed if _is_outage(error) else self._breaker.succeeded
            report(permit)
            raise StoreUnavailable(f"sql: {type(error.orig).__name__}") from error
        except BaseException:
            # The caller's own refusal: the server did answer.
            self._breaker.succeeded(permit)
            raise
        else:
            self._breaker.succeeded(permit)
        finally:
            self._deadline.ends_at_s = None

    def _postgresql(self, url: str, pool_size: int) -> Engine:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connector(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )
        self._count(engine)
        return engine

    def _count(self, engine: Engine) -> None:
        """Tell how many connections are in use, whenever that changes."""

        def tell(*_: object) -> None:
            self._events.on_pool(self.pool_figures()["in_use"])

        for moment in ("checkout", "checkin"):
            event.listen(engine, moment, tell)

    def _connector(self, url: str) -> Callable[[], DeadlineConnection]:
        """What makes a connection, if there is still time for it."""
        deadline, clock = self._deadline, self._clock

        class BoundConnection(DeadlineConnection):
            """A connection under this database's deadlines."""

        BoundConnection.deadline, BoundConnection.clock = deadline, staticmethod(clock)

        def connect() -> DeadlineConnection:
            ends_at_s = self._deadline.ends_at_s
            if ends_at_s is not None and ends_at_s - self._clock() < CONNECT_S:
                raise psycopg.OperationalError("no time left to connect")
            connection = BoundConnection.connect(
                url,
                connect_timeout=CONNECT_S,
                options=_SERVER_SETTINGS,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=int(DEADLINE_S * 1000),
                application_name="authsvc",
            )
            return self._events.on_connect(connection)

        return connect


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, pool_timeout=POOL_WAIT_S)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # Transactions are ours to begin: the driver's own begin late and deadlock on upgrade.
        connection.isolation_level = None
        for pragma in _SQLITE_PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _is_outage(error: DBAPIError) -> bool:
    """True where the server is unreachable, silent, full or shutting down, not where one statement failed."""
    code = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or code is None or str(code).startswith(_OUTAGES)
