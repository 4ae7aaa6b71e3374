"""Access to SQL: one pool per process, a deadline on every wait, a breaker, translated errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psycopg
from sqlalchemy import Column, Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.pool import QueuePool

from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.cache.events import ignore
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.clocks import Monotonic
from authsvc.settings.postgresql import SERVER_SETTINGS, SERVER_TIMEOUTS
from authsvc.store.postgres.causes import UNREADABLE, cause_of, is_unreadable
from authsvc.store.postgres.connecting import Connector, Deadline, DeadlineConnection

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger(__name__)

POOL_SIZE = 8

_SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
#: SQLSTATE classes and codes that mean that the server is unavailable for all requests.
_OUTAGES = ("08", "53", "57P")


def _as_it_is(connection: DeadlineConnection) -> DeadlineConnection:
    return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlTimings:
    """Time limits of SQL (seconds)."""

    #: Wait for a free connection of the pool.
    pool_wait_s: float = 0.5
    #: Total time of one unit of work: pool, connection, statements.
    deadline_s: float = 2.5
    #: Shortest time that psycopg waits for a connection: with less time left, none is tried.
    connect_s: int = 2
    #: Limits applied by the server: one statement, wait for a lock, idle in a transaction.
    statement_s: float = 1.5
    lock_s: float = 1.0
    idle_s: float = 5.0
    #: The last two limits for transactions that all writers of the revocation log wait for.
    log_lock_s: float = 0.1
    log_idle_s: float = 0.5
    #: A change of the schema waits this long for a lock, because other requests wait behind it.
    upgrade_lock_s: float = 10.0

    def server_settings(self) -> dict[str, str]:
        """The settings of a connection to PostgreSQL."""
        times = (self.statement_s, self.lock_s, self.idle_s)
        return {**SERVER_SETTINGS, **dict(zip(SERVER_TIMEOUTS, map(milliseconds, times), strict=True))}


def milliseconds(seconds: float) -> str:
    """*seconds* as text for PostgreSQL."""
    return f"{round(seconds * 1000)}ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseEvents:
    """Callbacks for metrics and tracing. They run in the calling thread, so they must be quick."""

    on_breaker: Callable[[State], None] = ignore
    #: Called when the server answered, and when it did not.
    on_answer: Callable[[], None] = ignore
    on_outage: Callable[[], None] = ignore
    #: Called with the number of pool connections in use.
    on_pool: Callable[[int], None] = ignore
    #: Called with a new connection before its use; returns the connection to use in its place.
    on_connect: Callable[[DeadlineConnection], DeadlineConnection] = _as_it_is


class Database:
    """
    Hands out connections for units of work; every failure of the server is a StoreUnavailable.

    It connects when it is first used. A process that has used it must not fork others that use it, too: they
    would share connections, and receive each other's rows.
    """

    def __init__(
        self,
        url: str,
        *,
        breaker: CircuitBreaker,
        clock: Monotonic,
        pool_size: int = POOL_SIZE,
        events: DatabaseEvents | None = None,
        timings: SqlTimings | None = None,
    ) -> None:
        self.timings = timings or SqlTimings()
        self._breaker = breaker
        self._clock = clock
        self._events = events or DatabaseEvents()
        self._deadline = Deadline()
        self.is_postgresql = url.startswith("postgresql")
        self._connector = self._made_connector(url) if self.is_postgresql else None
        self.engine = (
            self._postgresql(self._connector, pool_size) if self._connector else _sqlite(url, self.timings)
        )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """
        A connection for single statements, each its own transaction; behind a pooler, they are one
        transaction.
        """
        with self._guarded(), self.engine.connect() as connection:
            if self._connector and not self._connector.is_pooled:
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    @contextmanager
    def driver(self) -> Iterator[DeadlineConnection]:
        """The driver's own connection, for one statement on PostgreSQL as its own transaction."""
        with self._guarded(), closing(self.engine.raw_connection()) as lent:
            connection = cast("DeadlineConnection", lent.driver_connection)
            try:
                with connection.one_statement():
                    yield connection
            except psycopg.Error as error:
                if connection.closed:
                    lent.invalidate(error)
                raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end; on SQLite it is the only writer."""
        with self._guarded(), self.engine.begin() as connection:
            if not self.is_postgresql:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection for reads that all see one snapshot."""
        if not self.is_postgresql:
            with self.transaction() as connection:
                yield connection
            return
        with self._guarded(), self.engine.connect() as connection:
            link = cast("DeadlineConnection", connection.connection.driver_connection)
            with link.one_snapshot(), connection.begin():
                yield connection

    @contextmanager
    def unhurried(self) -> Iterator[Connection]:
        """A transaction for commands of operators, without the client's deadline."""
        with self._guarded(is_hurried=False), self.engine.begin() as connection:
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
    def _guarded(self, *, is_hurried: bool = True) -> Iterator[None]:
        """The breaker and the deadline around one unit of work, and its errors translated."""
        permit = self._breaker.permit()
        if permit is None:
            raise StoreUnavailable("sql: breaker open")
        self._deadline.connect_s = self.timings.connect_s
        self._deadline.ends_at_s = self._clock() + self.timings.deadline_s if is_hurried else None
        try:
            yield
        except IntegrityError as error:
            # SQLite's error has no code, and would look like an outage.
            self._breaker.succeeded(permit)
            raise StoreUnavailable(f"sql: {cause_of(error).name}") from error
        except PoolExhausted as error:
            # Nothing was sent: a probe without a connection must not close the breaker.
            self._breaker.withdrawn(permit)
            raise StoreUnavailable("sql: pool exhausted") from error
        except (DBAPIError, psycopg.Error, *UNREADABLE) as error:
            is_outage = _is_outage(error)
            (self._breaker.failed if is_outage else self._breaker.succeeded)(permit)
            (self._events.on_outage if is_outage else self._events.on_answer)()
            if is_unreadable(error):
                # Without the traceback, which may quote the row.
                log.error("sql.row_damaged", extra={"error": type(error).__name__})  # noqa: TRY400
            raise StoreUnavailable(f"sql: {cause_of(error).name}") from error
        except BaseException:
            # An error of the caller: the server did answer.
            self._breaker.succeeded(permit)
            raise
        else:
            self._breaker.succeeded(permit)
            self._events.on_answer()
        finally:
            self._deadline.ends_at_s = None

    def _made_connector(self, url: str) -> Connector:
        return Connector(
            url=url,
            deadline=self._deadline,
            clock=self._clock,
            silence_s=self.timings.deadline_s,
            settings=self.timings.server_settings(),
        )

    def _postgresql(self, connector: Connector, pool_size: int) -> Engine:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: self._events.on_connect(connector.connect()),
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=self.timings.pool_wait_s,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )
        _ask_only_idle(engine)
        self._count(engine)
        return engine

    def _count(self, engine: Engine) -> None:
        """Report the number of connections in use, whenever it changes."""

        pool = cast("QueuePool", engine.pool)

        def tell(*_: object) -> None:
            self._events.on_pool(pool.checkedout())

        for moment in ("checkout", "checkin"):
            event.listen(engine, moment, tell)


def _ask_only_idle(engine: Engine) -> None:
    """Skip the test of the connection, a round trip, for connections in frequent use."""
    ask = engine.dialect.do_ping

    def do_ping(dbapi_connection: DBAPIConnection) -> bool:
        return cast("DeadlineConnection", dbapi_connection).was_heard_lately() or ask(dbapi_connection)

    # The pool calls this before it hands out a connection.
    engine.dialect.do_ping = do_ping  # type: ignore[method-assign]


def _sqlite(url: str, timings: SqlTimings) -> Engine:
    engine = create_engine(url, pool_timeout=timings.pool_wait_s, hide_parameters=True)
    pragmas = (*_SQLITE_PRAGMAS, f"busy_timeout={round(timings.lock_s * 1000)}")

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # Begin transactions explicitly: the driver begins them late, and lock upgrades then deadlock.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    return engine


def insert_into(table: Table, *, is_postgresql: bool) -> postgresql.Insert:
    """An INSERT that may have ``ON CONFLICT``: both databases know it, each with a class of its own."""
    if is_postgresql:
        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return cast("postgresql.Insert", sqlite.insert(table))


def is_taken(error: StoreUnavailable, column: Column[Any]) -> bool:
    """True if a row was rejected because another one has its value of the unique *column*."""
    cause = error.__cause__
    if not isinstance(cause, IntegrityError):
        return False
    diagnosis = getattr(cause.orig, "diag", None)
    if diagnosis is not None:
        return bool(diagnosis.constraint_name == f"uq_{column.table.name}_{column.name}")
    # SQLite names the columns, not the constraint.
    return str(cause.orig) == f"UNIQUE constraint failed: {column.table.name}.{column.name}"


def is_refusal(error: StoreUnavailable) -> bool:
    """True if the server answered, and rejected the statement."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError | psycopg.Error) and not _is_outage(cause)


def concerns_one(error: StoreUnavailable) -> bool:
    """True if the server answered, but one of several rows or values was the problem."""
    return is_refusal(error) or is_unreadable(error.__cause__)


def _is_outage(error: BaseException) -> bool:
    """
    True if the server is unreachable, silent, full or shutting down, but not if only a statement failed.
    """
    if not isinstance(error, DBAPIError | psycopg.Error) or is_unreadable(error):
        return False
    code = getattr(getattr(error, "orig", error), "sqlstate", None)
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or code is None or str(code).startswith(_OUTAGES)
