"""The audit trail in SQL: rows in the order of their ids, which is the order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.dml import ReturningInsert

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.values.identifiers import lowest_timed_id
from authsvc.store.sql import Database, insert_into
from authsvc.store.statements import Statement
from authsvc.store.tables import audit_events, from_entry, to_entry

_PARAMETERS: dict[str, Any] = {column.name: bindparam(column.name) for column in audit_events.columns}


class SqlAuditTrail:
    """Rows are added, read newest first, and deleted oldest first; only their count ever changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, entries: Sequence[Entry]) -> None:
        """
        Add *entries* in one transaction; one that shares a row with an earlier one adds to its count.

        May be repeated if the result is unknown, because the caller chooses the ids.
        """
        with self._database.transaction() as connection:
            add_entries(connection, entries)

    def page(self, wanted: AuditFilter) -> list[Entry]:
        """The entries of the page and one more, newest first."""
        statement = (
            select(audit_events)
            .where(*_conditions(wanted))
            .order_by(audit_events.c.id.desc())
            .limit(wanted.limit + 1)
        )
        with self._database.read() as connection:
            return [to_entry(row) for row in connection.execute(statement).mappings()]

    def prune(self, *, before: datetime, most: int) -> int:
        """Delete the oldest entries from before *before*, at most *most*; returns their number."""
        oldest = (
            select(audit_events.c.id)
            .where(audit_events.c.id < lowest_timed_id(before))
            .order_by(audit_events.c.id)
            .limit(most)
        )
        with self._database.transaction() as connection:
            return connection.execute(delete(audit_events).where(audit_events.c.id.in_(oldest))).rowcount


def add_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add *entries* in the caller's transaction."""
    plain = [from_entry(entry) for entry in entries if entry.once is None]
    # In the same order in every process, so that two of them cannot deadlock.
    shared = sorted((entry for entry in entries if entry.once), key=lambda entry: entry.once or "")
    is_postgresql = connection.dialect.name == postgresql.dialect.name
    if plain:
        connection.execute(
            insert_into(audit_events, is_postgresql=is_postgresql).on_conflict_do_nothing(), plain
        )
    for entry in shared:
        connection.execute(_adding(is_postgresql=is_postgresql), from_entry(entry))


def adding_one(database: Database) -> Statement:
    """The statement that adds one entry, which may share a row, in the caller's transaction."""
    return Statement(database, _adding(is_postgresql=database.is_postgresql).values(_PARAMETERS))


def adding_of(ended: CTE, asked: CTE, prefix: str) -> ReturningInsert[Any]:
    """
    The part of a statement for PostgreSQL that adds an entry about each session in *ended*.

    Its values are in the row of *asked* with the same ``id``, in columns whose names begin with *prefix*.
    """
    values = [
        ended.c.user_id if column is audit_events.c.user_id else asked.c[prefix + column.name]
        for column in audit_events.columns
    ]
    found = select(*values).join_from(ended, asked, ended.c.id == asked.c.id)
    statement = postgresql.insert(audit_events).from_select(list(audit_events.columns), found)
    return _sharing(statement).returning(audit_events.c.session_id)


def _adding(*, is_postgresql: bool) -> postgresql.Insert:
    return _sharing(insert_into(audit_events, is_postgresql=is_postgresql))


def _sharing(statement: postgresql.Insert) -> postgresql.Insert:
    """*statement*, which adds to the count if the row exists."""
    return statement.on_conflict_do_update(
        index_elements=[audit_events.c.once],
        set_={"count": audit_events.c.count + statement.excluded.count},
    )


def _conditions(wanted: AuditFilter) -> Iterator[ColumnElement[bool]]:
    columns = audit_events.c
    for name in ("user_id", "actor_id", "client_ip"):
        value = getattr(wanted, name)
        if value is not None:
            yield columns[name] == value
    if wanted.actions:
        yield columns.action.in_(sorted(wanted.actions))
    if wanted.since is not None:
        yield columns.id >= lowest_timed_id(wanted.since)
    if wanted.until is not None:
        yield columns.id < lowest_timed_id(wanted.until)
    if wanted.after is not None:
        yield columns.id < wanted.after
