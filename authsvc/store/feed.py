"""The revocation log in SQL, as the feed reads it."""

from __future__ import annotations

from sqlalchemy import or_, select

from authsvc.domain.revocations import Revocation, Sight
from authsvc.domain.values.clocks import Clock
from authsvc.store.revocations import SqlRevocationLog, entries_between
from authsvc.store.sql import Database
from authsvc.store.tables import revocations, to_revocation


class SqlFeedLog:
    """The log as the revocation feed reads it."""

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock

    def look(self, *, settled: int | None = None) -> Sight:
        """The head, and the transactions that may still commit lower numbers; none if it is *settled*."""
        return self._log.look(settled=settled)

    def entry(self, seq: int) -> Revocation | None:
        """Entry *seq*, of any kind."""
        with self._database.read() as connection:
            row = connection.execute(select(revocations).where(revocations.c.seq == seq)).mappings().first()
        return to_revocation(row) if row else None

    def fatal(self, *, after: int, upto: int, limit: int) -> list[Revocation]:
        """Entries with ``after < seq <= upto`` that end tokens which can still be alive, in order."""
        if after >= upto:
            return []
        statement = (
            entries_between(after, upto, self._clock())
            .where(
                or_(
                    revocations.c.session_id.is_not(None),
                    revocations.c.token_id.is_not(None),
                    revocations.c.epoch.is_not(None),
                )
            )
            .limit(limit)
        )
        with self._database.read() as connection:
            return [to_revocation(row) for row in connection.execute(statement).mappings()]
