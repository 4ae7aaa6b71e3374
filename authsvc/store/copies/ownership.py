"""
Whose data Redis holds: a random id in SQL, made with the schema, and the same id under the prefix in Redis.

A Redis that shows another id belongs to another installation.  Its keys prove nothing to this one, and a
marker that is ahead of our log does not mean that SQL was restored.  A Redis without an id is new, or was
emptied: it becomes ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from authsvc.cache.redis.client import CacheClient
from authsvc.domain.errors import StoreUnavailable
from authsvc.store.sql import Database
from authsvc.store.tables import installation

log = logging.getLogger(__name__)


def installation_id(database: Database) -> str:
    """The id in SQL; one is made where the row was lost.  Raises StoreUnavailable."""
    with database.read() as connection:
        found = connection.execute(select(installation.c.id)).scalar()
    if found is not None:
        return str(found)
    insert = postgresql.insert if database.is_postgresql else sqlite.insert
    with database.transaction() as connection:
        row = {"number": 1, "id": str(uuid4())}
        connection.execute(insert(installation).values(row).on_conflict_do_nothing())
        return str(connection.execute(select(installation.c.id)).scalar_one())


@dataclass(slots=True, kw_only=True)
class Ownership:
    """
    Compares the ids, over the reconciler's own connection; *checks* is the client of the requests.

    Raises CacheError and StoreUnavailable.
    """

    #: Reads the id in SQL.
    installation: Callable[[], str]
    client: CacheClient
    checks: CacheClient
    key: str
    _id: str = field(default="", init=False)
    _is_foreign: bool = field(default=False, init=False)

    def holds(self, over: int) -> bool:
        """
        True if Redis, over the connection of generation *over*, is ours; an empty one is made ours.

        The requests do without a foreign one, as without any: nothing of theirs is written there.
        """
        expected = (self._id or self.installation()).encode()
        self._id = expected.decode()
        (found,), generation = self.client.mget((self.key,))
        if found is None:
            # Others may be doing the same: who was first is read behind it.
            self.client.call("SET", self.key, expected, "NX")
            (found,), generation = self.client.mget((self.key,))
        is_foreign = found not in (None, expected)
        self._note(is_foreign=is_foreign)
        return generation == over and found == expected

    def confirm(self) -> None:
        """Before anything is done on SQL's word alone: raises StoreUnavailable if SQL is another's by now."""
        if self.installation() != self._id:
            raise StoreUnavailable("sql: another installation")

    def _note(self, *, is_foreign: bool) -> None:
        if is_foreign:
            self.checks.suspend()
        elif self._is_foreign:
            self.checks.resume()
        if is_foreign and not self._is_foreign:
            log.error("redis.foreign", extra={"key": self.key})
        self._is_foreign = is_foreign
