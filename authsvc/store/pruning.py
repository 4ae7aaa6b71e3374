"""
Deletes rows that are no longer needed, in bounded steps, while the service runs.

No step waits for a row that is locked: the next run deletes it. So pruning blocks others for one short
transaction at most, and cannot be part of a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, delete, exists, func, select

from authsvc.store.sql import Database
from authsvc.store.tables import factors, mails, revocations, sessions, spent, tickets

#: How long rows are kept after their expiry: clocks differ, and verifiers may return with old cursors.
MARGIN = timedelta(days=1)
#: How long mails are kept so that operators can look up their results.
MAILS_KEPT = timedelta(days=7)
#: Rows per transaction, which takes a fraction of a second.
STEP = 1000
_LOWEST_ID = "00000000-0000-0000-0000-000000000000"


class SqlPruning:
    """
    Goes through a table by its key, one transaction per step; yields the number of rows that each step
    deleted.
    """

    def __init__(self, database: Database, *, step: int = STEP) -> None:
        self._database = database
        self._step = step

    def sessions(self, *, before: datetime) -> Iterator[int]:
        """Delete the sessions whose last refresh token expired before *before*, ended by hand or not."""
        return self._walk(sessions.c.id, _LOWEST_ID, sessions.c.idle_expires_at < before)

    def revocations(self, *, before: datetime) -> Iterator[int]:
        """
        Delete the entries of the log whose tokens have all expired before *before*.

        Never the newest: it is the head of the log; without it SQL would look restored from a backup.
        """
        head = select(func.max(revocations.c.seq)).scalar_subquery()
        return self._walk(revocations.c.seq, 0, revocations.c.expires_at < before, revocations.c.seq < head)

    def mails(self, *, before: datetime) -> Iterator[int]:
        """Delete mails that were requested before *before* and do not wait any more."""
        return self._walk(mails.c.id, _LOWEST_ID, mails.c.asked_at < before, mails.c.state != "queued")

    def tickets(self, *, before: datetime) -> Iterator[int]:
        """Delete tickets that expired before *before*, except those that a mail still refers to."""
        named = exists().where(mails.c.ticket_id == tickets.c.id)
        return self._walk(tickets.c.id, _LOWEST_ID, tickets.c.expires_at < before, ~named)

    def spent(self, *, before: datetime) -> Iterator[int]:
        """Delete marks of one-time values that expired before *before*."""
        return self._walk(spent.c.id, _LOWEST_ID, spent.c.expires_at < before)

    def enrolments(self, *, before: datetime) -> Iterator[int]:
        """Delete unconfirmed enrolments that began before *before*."""
        is_waiting = factors.c.confirmed_at.is_(None)
        return self._walk(factors.c.id, _LOWEST_ID, is_waiting, factors.c.created_at < before)

    def _walk(self, key: Column[Any], after: object, *conditions: ColumnElement[bool]) -> Iterator[int]:
        """Each step begins where the last one ended, so that deleted rows are not scanned again."""
        while (upto := self._end_of_step(key, after)) is not None:
            yield self._delete(key, key > after, key <= upto, *conditions)
            after = upto

    def _end_of_step(self, key: Column[Any], after: object) -> object | None:
        """The last key of the next step; None if none is left."""
        statement = select(key).where(key > after).order_by(key).limit(self._step)
        with self._database.read() as connection:
            keys = connection.execute(statement).scalars().all()
        return keys[-1] if keys else None

    def _delete(self, key: Column[Any], *conditions: ColumnElement[bool]) -> int:
        """Delete the rows that are not locked; returns their number."""
        chosen = select(key).where(*conditions).with_for_update(skip_locked=True)
        with self._database.transaction() as connection:
            keys = connection.execute(chosen).scalars().all()
            if keys:
                connection.execute(delete(key.table).where(key.in_(keys)))
        return len(keys)
