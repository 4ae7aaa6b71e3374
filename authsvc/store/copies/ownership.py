"""
The owner of the data in Redis: a random id in SQL, made with the schema, and the same id under the prefix in
Redis.

A Redis with another id belongs to another installation. Its keys prove nothing for this one, and a marker
ahead of our log does not mean that SQL was restored.  A Redis without an id is new, or was emptied: this
installation takes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from sqlalchemy import select

from authsvc.cache.redis.client import CacheClient, Command
from authsvc.domain.errors import StoreUnavailable
from authsvc.store.sql import Database, insert_into
from authsvc.store.tables import installation

log = logging.getLogger(__name__)


def installation_id(database: Database) -> str:
    """The id in SQL; a new one is made if the row was lost.  Raises StoreUnavailable."""
    with database.read() as connection:
        found = connection.execute(select(installation.c.id)).scalar()
    if found is not None:
        return str(found)
    with database.transaction() as connection:
        row = {"number": 1, "id": str(uuid4())}
        inserting = insert_into(installation, is_postgresql=database.is_postgresql)
        connection.execute(inserting.values(row).on_conflict_do_nothing())
        return str(connection.execute(select(installation.c.id)).scalar_one())


@dataclass(slots=True, kw_only=True)
class Ownership:
    """
    Compares the ids; *checks* is the client of the requests.

    On a cluster each shard has the id and the number of shards.  Raises StoreUnavailable.
    """

    #: Reads the id in SQL.
    installation: Callable[[], str]
    checks: CacheClient
    shards: int = 1
    _expected: bytes = field(default=b"", init=False)
    _foreign: set[str] = field(default_factory=set, init=False)

    @property
    def expected(self) -> bytes:
        """The value that Redis must have."""
        self._expected = self._expected or owner_text(self.installation(), self.shards)
        return self._expected

    def claim_command(self, key: str) -> Command:
        """
        The command that takes a Redis without an id under *key*; read the key afterwards to see which process
        was first.
        """
        return ("SET", key, self.expected, "NX")

    def holds(self, key: str, found: bytes | None) -> bool:
        """
        True if a Redis with *found* under *key* is ours.

        Requests do not use a foreign Redis: nothing is read from it or written there.
        """
        is_foreign = found not in (None, self.expected)
        if is_foreign and not self._foreign:
            self.checks.suspend()
            log.error("redis.foreign", extra={"key": key})
        was_foreign = bool(self._foreign)
        (self._foreign.add if is_foreign else self._foreign.discard)(key)
        if was_foreign and not self._foreign:
            self.checks.resume()
        return found == self.expected

    def confirm(self) -> None:
        """
        Called before actions that rely on SQL alone: raises StoreUnavailable if SQL belongs to another
        installation by now.
        """
        if owner_text(self.installation(), self.shards) != self._expected:
            raise StoreUnavailable("sql: another installation")


def owner_text(installation: str, shards: int) -> bytes:
    """The id as stored in Redis, with the number of *shards* if not one: key names depend on it."""
    return (installation if shards == 1 else f"{installation}/{shards}").encode()
