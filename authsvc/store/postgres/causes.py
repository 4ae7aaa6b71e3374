"""
The meaning of database errors, as texts for the log that contain no private data and tell operators what to
do.

If a server refuses a connection, there is only a text: libpq does not pass on its SQLSTATE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from sqlalchemy.exc import DBAPIError

_NO_ADVICE = "see the log of the database"

#: Exceptions of a driver that cannot decode a row.
UNREADABLE = (UnicodeDecodeError, json.JSONDecodeError, NotImplementedError, RecursionError)


@dataclass(frozen=True, slots=True)
class Cause:
    """One kind of failure: its *name*, without addresses and user names, and what to do about it."""

    name: str
    advice: str = _NO_ADVICE
    #: The SQLSTATE, where the server gave one.
    code: str = ""

    def __str__(self) -> str:
        code = f", SQLSTATE {self.code}" if self.code else ""
        return f"{self.name}{code}: {self.advice}"


class NoServer(psycopg.OperationalError):
    """No server accepted a connection; ``failures`` has the error of each that was tried."""

    def __init__(self, failures: Sequence[psycopg.Error]) -> None:
        super().__init__("; ".join(dict.fromkeys(map(str, failures))))
        self.failures = tuple(failures)


_AWAY = Cause("connection refused", "no server listens there: is it running, are host and port right?")
_SILENT = Cause("no answer in time", "the server, the network or a firewall is silent")
_LOST = Cause("connection lost", "the server or the network ended the connection")

#: By text of the message; the first match counts.
_CONNECTING: tuple[tuple[str, Cause], ...] = (
    ("failed to resolve host", Cause("unknown host name", "DNS does not know the host: is its name right?")),
    ("Connection refused", _AWAY),
    ("No route to host|Network is unreachable", Cause("no route", "the network does not lead to the host")),
    (
        "No such file or directory.*Is the server running",
        Cause("no socket", "no server listens on the socket file"),
    ),
    ("timeout expired|deadline|Connection timed out|no time left", _SILENT),
    ("does not support SSL", Cause("no TLS", "the server offers no TLS, and sslmode asks for it")),
    (
        "root certificate file|certificate verify failed|does not match host name|certificate",
        Cause(
            "TLS certificate refused",
            "sslrootcert must name the CA of the server, and the certificate must name the host",
        ),
    ),
    ("SSL|TLS", Cause("TLS failed", "see sslmode and the server's TLS settings")),
    (
        "no pg_hba.conf entry|pg_hba.conf rejects",
        Cause("not admitted", "pg_hba.conf has no line for this user, database and address, or wants TLS"),
    ),
    (
        "no password supplied|authentication failed|wrong password",
        Cause("password refused", "user and password do not belong together"),
    ),
    (
        'role ".*" does not exist|no such user|not permitted to log in',
        Cause("unknown user", "the server has no such role, or it may not log in"),
    ),
    (
        'database ".*" does not exist|no such database',
        Cause("unknown database", "the server has no such database: is its name right?"),
    ),
    (
        "permission denied for database|not currently accepting connections",
        Cause("database closed", "GRANT CONNECT ON DATABASE is missing, or the database admits nobody"),
    ),
    (
        "too many (clients|connections)|remaining connection slots|no more connections allowed",
        Cause("no connection left", "the server is full: 8 connections are needed per worker"),
    ),
    (
        "is read-only|in hot standby mode|in recovery",
        Cause("no primary", "the host is a standby, and target_session_attrs asks for another"),
    ),
    (
        "starting up|shutting down|recovery mode|not yet accepting",
        Cause("not ready", "the server is starting or stopping"),
    ),
    (
        "cannot connect to server|server login (failed|has been failing)|server_login_retry|pgbouncer",
        Cause("pooler refuses", "PgBouncer cannot serve the database: see its log"),
    ),
    (
        "statement pooling",
        Cause("statement pooling", "transactions are needed: set pool_mode to transaction or session"),
    ),
    (
        "unrecognized configuration parameter|invalid value for parameter|permission denied to set parameter",
        Cause("option refused", "the server does not know a setting in ?options= or PGOPTIONS"),
    ),
    (r"invalid \w+ value", Cause("unknown value", "a parameter of the URL has a value that does not exist")),
    ("closed|terminat|broken|reset|EOF|lost", _LOST),
)

#: The SQLSTATE of poolers for any cause.
_PROTOCOL_VIOLATION = "08P01"

#: What to do, by the longest matching prefix of the SQLSTATE.
_ADVICE = {
    "08": _LOST.advice,
    "22021": "the database's encoding cannot hold the text: it must be UTF8",
    "22P05": "the database's encoding cannot hold the text: it must be UTF8",
    "25006": "the server takes no writes: it is a standby, or default_transaction_read_only is on",
    "3F000": "no schema of the search_path exists: create it, or correct the search_path",
    "40": "others changed the same rows: run it again",
    "42501": "the role lacks a right on a table or schema: GRANT it, or run this as the owner of the tables",
    "42P01": "a table is missing: run `authsvc db upgrade`, or correct the search_path",
    "42703": "a column is missing: run `authsvc db upgrade`",
    "42P07": "a table of that name is there already: give authsvc a database or schema of its own",
    "53100": "the disk of the server is full",
    "53200": "the server is out of memory",
    "53300": "the server is full: 8 connections are needed per worker",
    "55P03": "somebody holds a lock: pg_stat_activity says who; then run it again",
    "57014": "the statement took too long: see pg_stat_activity, and run it again",
    "57P": "the server is starting or stopping",
    "58": "the server cannot read or write its files: see its log and its disk",
    "XX001": "the server found damaged data: see its log, and restore",
    "XX002": "the server found a damaged index: see its log, and REINDEX",
}


def cause_of(error: BaseException | None) -> Cause:
    """The cause of *error*, which is an error of the driver or wraps one."""
    origin = next(_drivers_own(error), error)
    if isinstance(origin, NoServer):
        return _of_all([cause_of(failure) for failure in origin.failures])
    if is_unreadable(origin):
        return Cause("unreadable row", "a row is damaged: the log of the service says `sql.row_damaged`")
    code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None)
    kind = type(origin).__name__
    named = _by_words(str(origin)) if code in {None, _PROTOCOL_VIOLATION} else None
    if named or code is None:
        return named or Cause(kind)
    return Cause(kind if kind != "OperationalError" else code, _advice(code), code)


def is_unreadable(error: BaseException | None) -> bool:
    """True if the server answered with a value that the driver cannot decode."""
    origin = next(_drivers_own(error), error)
    is_the_drivers = isinstance(origin, psycopg.DataError) and origin.sqlstate is None
    return is_the_drivers or isinstance(origin, UNREADABLE)


def _drivers_own(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        if isinstance(error, DBAPIError):
            yield from filter(None, [error.orig])
        elif isinstance(error, (psycopg.Error, *UNREADABLE)):
            yield error
        error = error.__cause__


def _of_all(causes: Sequence[Cause]) -> Cause:
    """One cause for several hosts: all names, and the advice for the most specific."""
    telling = [cause for cause in causes if cause not in {_AWAY, _SILENT}] or list(causes)
    return Cause(", ".join(dict.fromkeys(cause.name for cause in causes)), telling[0].advice)


def _by_words(message: str) -> Cause | None:
    return next((cause for words, cause in _CONNECTING if re.search(words, message, re.DOTALL)), None)


def _advice(code: str) -> str:
    fitting = [beginning for beginning in _ADVICE if code.startswith(beginning)]
    return _ADVICE[max(fitting, key=len)] if fitting else _NO_ADVICE
