"""
Statements of the most frequent operations: compiled once, prepared by PostgreSQL, executed without
SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from sqlalchemy import ColumnElement, Connection, Delete, Insert, Select, Update

from authsvc.store.postgres.connecting import DeadlineConnection
from authsvc.store.sql import Database

#: A row, with the columns of its table as keys.
Row = Mapping[ColumnElement[Any], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The returned rows, and the number of rows found or changed."""

    rows: Sequence[Row]
    count: int


class Statement:
    """
    One statement; call it with values for its ``bindparam`` names to execute it as its own transaction.

    SQLAlchemy writes the text and reads the values.  What it does for each execution costs more CPU than
    the statement itself, so on PostgreSQL the driver is called with the text.

    *columns* are the keys of the rows, where they are not those that the statement returns.
    """

    def __init__(
        self,
        database: Database,
        core: Select[Any] | Insert | Update | Delete,
        columns: Sequence[ColumnElement[Any]] = (),
    ) -> None:
        self._database = database
        self._core = core
        dialect = database.engine.dialect
        compiled = core.compile(dialect=dialect)
        #: The text for the driver.
        self.text = str(compiled)
        self._fixed = dict(compiled.params)
        returned = cast("tuple[ColumnElement[Any], ...]", tuple(core.exported_columns))
        self._columns = tuple(columns) or returned
        kinds = [column.type.dialect_impl(dialect) for column in self._columns]
        self._readers = [kind.result_processor(dialect, None) or _as_it_is for kind in kinds]

    def __call__(self, **values: object) -> Answer:
        """Execute it; raises StoreUnavailable."""
        if self._database.is_postgresql:
            with self._database.driver() as driver:
                return self.execute(driver, self._fixed | values)
        with self._database.read() as connection:
            return self._by_core(connection, values)

    def within(self, connection: Connection, **values: object) -> Answer:
        """Execute it in the transaction of the caller."""
        if not self._database.is_postgresql:
            return self._by_core(connection, values)
        driver = cast("DeadlineConnection", connection.connection.driver_connection)
        try:
            return self.execute(driver, self._fixed | values)
        except psycopg.Error as error:
            if driver.closed:
                connection.invalidate(error)
            raise

    def execute(self, connection: DeadlineConnection, values: Mapping[str, Any]) -> Answer:
        """Execute it with the driver, with a value for each parameter."""
        cursor = connection.execute(self.text, values, prepare=True)
        rows = cursor.fetchall() if self._columns else []
        return Answer([self._read(row) for row in rows], cursor.rowcount)

    def _by_core(self, connection: Connection, values: Mapping[str, Any]) -> Answer:
        result = connection.execute(self._core, values)
        rows = result.mappings().all() if result.returns_rows else ()
        return Answer(cast("Sequence[Row]", rows), result.rowcount)

    def _read(self, row: Sequence[Any]) -> Row:
        return {
            column: value if value is None else read(value)
            for column, read, value in zip(self._columns, self._readers, row, strict=True)
        }


def _as_it_is(value: object) -> object:
    return value
