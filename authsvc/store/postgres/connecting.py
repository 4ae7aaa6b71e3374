"""
Connections to PostgreSQL: each sets what the code relies on, and every wait has a deadline.

A server accepts settings with the start of a session, at no cost. A pooler such as PgBouncer refuses or drops
them, and may run each transaction in another session. Behind one, settings are sent with each transaction, in
the round trip that begins it, and statements are not prepared.
"""

from __future__ import annotations

import math
import re
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.abc import RV, ConnDict, PQGen
from psycopg.conninfo import conninfo_attempts
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus

from authsvc.domain.values.clocks import Monotonic
from authsvc.settings.postgresql import connection_parts, server_settings, written
from authsvc.store.postgres.causes import NoServer

#: A server that answered within this time (seconds) is not tested before the next statement.
IDLE_S = 1.0

#: The messages with which poolers refuse settings at the start.
_REFUSED = re.compile("startup parameter|command-line options")
#: Detects a pooler: by its own number of the session, or by a dropped setting.
_IS_DIRECT = (
    "SELECT pg_backend_pid() = %s AND current_setting('statement_timeout')::interval = %s::text::interval"
)
_DONE = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}
_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_SNAPSHOT = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Deadline(threading.local):
    """The remaining time of this thread's unit of work, and the part that one host may take."""

    def __init__(self) -> None:
        self.ends_at_s: float | None = None
        #: psycopg waits for at least two seconds: with less time left, no host is tried.
        self.connect_s = 2


class DeadlineConnection(psycopg.Connection[Any]):
    """
    A connection whose deadline is measured by the client's clock.

    ``statement_timeout`` is not enough: a suspended server process never applies it.
    """

    deadline: Deadline
    clock: Monotonic
    #: The commands that begin a transaction and send settings; empty: a plain BEGIN.
    begin: tuple[bytes, ...] = ()
    _heard_at_s = -math.inf

    def was_heard_lately(self) -> bool:
        """
        True if the server answered recently and has sent nothing since, such as the end of the session.
        """
        if self.clock() - self._heard_at_s > IDLE_S:
            return False
        ready = select.poll()
        ready.register(self.pgconn.socket, select.POLLIN)
        return not ready.poll(0)

    @contextmanager
    def one_statement(self) -> Iterator[None]:
        """Within the block, each statement is its own transaction."""
        if self.begin:
            # The settings are sent with an explicit transaction.
            yield
            self.commit()
            return
        self.autocommit = True
        try:
            yield
        finally:
            if not self.closed:
                self.autocommit = False

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """
        Wait for *gen* until the deadline of this thread's work; after it the connection cannot be used any
        more.
        """
        ends_at_s = self.deadline.ends_at_s
        if ends_at_s is not None:
            left_s = max(0.0, ends_at_s - self.clock())
            timeout = left_s if timeout is None else min(timeout, left_s)
        try:
            found = super().wait(gen, interval, timeout)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - psycopg's own name for it
            self.close()
            raise psycopg.OperationalError("no answer within the deadline") from error
        self._heard_at_s = self.clock()
        return found

    @contextmanager
    def one_snapshot(self) -> Iterator[None]:
        """Within the block, a transaction is read-only and sees one snapshot."""
        begin = self.begin
        if begin:
            self.begin = (_BEGIN_SNAPSHOT, *begin[1:])
        else:
            self.isolation_level, self.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        try:
            yield
        finally:
            self.begin = begin
            if not (begin or self.closed):
                self.isolation_level = self.read_only = None

    def _start_query(self) -> PQGen[None]:
        """Begin a transaction if none is open, as psycopg does, together with its settings."""
        if not self.begin:
            yield from super()._start_query()
        elif not self.autocommit and self.pgconn.transaction_status == TransactionStatus.IDLE:
            yield from self._piped(self._pipeline) if self._pipeline else self._together()

    def _together(self) -> PQGen[None]:
        """All commands in one message."""
        self.pgconn.send_query(b"; ".join(self.begin))
        for result in (yield from execute(self.pgconn)):
            if result.status not in _DONE:
                raise psycopg.errors.error_from_result(result)

    def _piped(self, pipeline: psycopg.Pipeline) -> PQGen[None]:
        """In a pipeline, which psycopg uses for many rows of one statement, each message has one command."""
        for command in self.begin:
            yield from self._exec_command(command)
        yield from pipeline._sync_gen()  # noqa: SLF001 - as psycopg itself begins in a pipeline


@dataclass(slots=True, kw_only=True)
class Connector:
    """Makes connections to the first of the hosts in *url* that serves, while there is time for it."""

    url: str
    deadline: Deadline
    clock: Monotonic
    #: Longest time that sent data may stay unacknowledged.
    silence_s: float
    settings: dict[str, str]
    #: True once a pooler was detected: then settings are sent with each transaction, which always works.
    is_pooled: bool = False
    _silent: set[str] = field(default_factory=set)
    _connect: Callable[..., DeadlineConnection] = field(init=False)
    _parts: ConnDict = field(init=False)
    _given: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        class BoundConnection(DeadlineConnection):
            """A connection with this connector's deadlines."""

        BoundConnection.deadline, BoundConnection.clock = self.deadline, staticmethod(self.clock)
        self._connect = BoundConnection.connect
        parts: ConnDict = {**connection_parts(self.url)}
        self._given = server_settings(str(parts.pop("options", None) or _by_variable("options")))
        if "," in str(parts.get("host", "")) and not _by_variable("target_session_attrs"):
            parts.setdefault("target_session_attrs", "read-write")
        self._parts = parts | {
            "client_encoding": "UTF8",
            "fallback_application_name": "authsvc",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": int(self.silence_s * 1000),
        }

    def connect(self) -> DeadlineConnection:
        """Connect; raises psycopg.OperationalError if no host accepts in time."""
        failures: list[psycopg.Error] = []
        # Names are resolved each time: many failovers change the address.
        parts = self._parts | {"connect_timeout": self.deadline.connect_s}
        for address in sorted(conninfo_attempts(parts), key=lambda one: _key(one) in self._silent):
            try:
                return self._connect_to(address)
            except psycopg.Error as error:
                failures.append(error)
        raise failures[0] if len(failures) == 1 else NoServer(failures)

    def _connect_to(self, address: ConnDict) -> DeadlineConnection:
        ends_at_s = self.deadline.ends_at_s
        if ends_at_s is not None and ends_at_s - self.clock() < self.deadline.connect_s:
            raise psycopg.OperationalError("no time left to connect")
        try:
            connection = self._prepared(address)
        except psycopg.errors.ConnectionTimeout:
            # The next connection tries the other hosts first: after this one there is no time left for them.
            self._silent.add(_key(address))
            raise
        self._silent.discard(_key(address))
        return connection

    def _prepared(self, address: ConnDict) -> DeadlineConnection:
        """A connection with all settings in effect."""
        connection = None if self.is_pooled else self._direct(address)
        if connection is None:
            # Empty, not missing: otherwise libpq would send those of its environment variable.
            connection = self._connect(**address, options="", autocommit=True, prepare_threshold=None)
            connection.begin = self._beginning()
        connection.autocommit = False
        return connection

    def _direct(self, address: ConnDict) -> DeadlineConnection | None:
        """A connection whose session has the settings; None if there is a pooler, which is remembered."""
        options = written({**self._given, **self.settings})
        try:
            connection = self._connect(**address, options=options, autocommit=True)
        except psycopg.OperationalError as error:
            if not _REFUSED.search(str(error)):
                raise
        else:
            wanted = [connection.pgconn.backend_pid, self.settings["statement_timeout"]]
            if connection.execute(_IS_DIRECT, wanted).fetchone() == (True,):
                return connection
            connection.close()
        self.is_pooled = True
        return None

    def _beginning(self) -> tuple[bytes, ...]:
        settings = {**self._given, **self.settings}
        del settings["default_transaction_isolation"]
        calls = [sql.SQL("set_config({}, {}, true)").format(*pair) for pair in settings.items()]
        return _BEGIN, sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)).as_bytes()


def _key(address: ConnDict) -> str:
    return f"{address.get('host')} {address.get('hostaddr')} {address.get('port')}"


def _by_variable(name: str) -> str:
    """The value of libpq's own environment variable (``PGOPTIONS``); empty if it is not set."""
    option = next(one for one in pq.Conninfo.get_defaults() if one.keyword == name.encode())
    return (option.val or b"").decode() if option.val != option.compiled else ""
