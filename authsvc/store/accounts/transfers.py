"""Import and export of users, and counts of their hashes by kind; always in batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, case, func, select

from authsvc.domain.credentials import Credentials
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.passwords.hasher import SCHEME, SHA256_SCHEME
from authsvc.domain.revocations import Committed
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import UserId
from authsvc.store.revocations import NOBODY, SqlRevocationLog
from authsvc.store.sql import Database, insert_into
from authsvc.store.tables import USER_COLUMNS, from_user, revocations, to_user, users

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Users per read: some hundred KiB.
PAGE = 500
#: Hashes per read: only ids and a few characters each.
COUNTED_PAGE = 5_000
#: Waits (seconds) before retries, so that a long job survives a busy moment or a failover. A longer outage
#: ends the job, which can be repeated.
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Length of ``$2b$12$``. The salt that follows is not read.
_KIND = len("$2b$12$")


class Arrival(StrEnum):
    """The result of importing one user."""

    IMPORTED = "imported"
    #: A user with that address exists.
    EXISTS = "exists"
    #: A user with another address has that id.
    ID_TAKEN = "id_taken"


class SqlUserTransfers:
    """
    Adds many users in one transaction, and reads all users in pages, in the order of ids.

    If SQL does not answer, waits with *pause* (seconds) and retries; finally raises StoreUnavailable.
    """

    def __init__(
        self, database: Database, log: SqlRevocationLog, clock: Clock, *, pause: Callable[[float], None]
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._pause = pause
        inserting = insert_into(users, is_postgresql=database.is_postgresql)
        self._insert = inserting.on_conflict_do_nothing().returning(users.c.id, users.c.email)

    def add(
        self, batch: Sequence[Credentials], *, brought_ids: Collection[UserId]
    ) -> Committed[list[Arrival]]:
        """
        Insert those whose address is free, in one transaction; returns the result of each, in the order of
        *batch*.

        *brought_ids* are ids from the import file, whose users may have existed here before. If the answer to
        a commit was lost, its users are reported as existing.
        """
        return self._patiently(lambda: self._add(batch, brought_ids)) if batch else Committed([])

    def pages(self, *, with_hashes: bool) -> Iterator[list[tuple[User, str | None]]]:
        """
        All users, with hashes on request; a user who is changed meanwhile appears in the old or the new
        state.
        """
        columns = [*USER_COLUMNS, users.c.password_hash] if with_hashes else [*USER_COLUMNS]
        after = NOBODY
        while after:
            page = select(*columns).where(users.c.id > after).order_by(users.c.id).limit(PAGE)
            found = [(to_user(row), row.get(users.c.password_hash)) for row in self._rows(page)]
            after = found[-1][0].id if found else ""
            if found:
                yield found

    def kinds_of_hashes(self) -> Counter[str]:
        """The number of hashes of each scheme and cost, read from the beginning of each hash."""
        counts = Counter[str]()
        after = NOBODY
        while after:
            page = (
                select(users.c.id, _kind_of(users.c.password_hash).label("kind"))
                .where(users.c.id > after)
                .order_by(users.c.id)
                .limit(COUNTED_PAGE)
            )
            rows = self._rows(page)
            counts.update(row["kind"] for row in rows)
            after = rows[-1][users.c.id] if rows else ""
        return counts

    def _add(self, batch: Sequence[Credentials], brought_ids: Collection[UserId]) -> Committed[list[Arrival]]:
        with self._database.transaction() as connection:
            epochs = self._epochs(connection, brought_ids)
            arriving = [replace(one.user, epoch=epochs.get(one.user.id, 0)) for one in batch]
            rows = [
                from_user(user) | {"password_hash": one.password_hash, "password_version": 1}
                for user, one in zip(arriving, batch, strict=True)
            ]
            # In the same order in every process, so that two imports of one file cannot deadlock.
            rows.sort(key=lambda row: str(row["email"]))
            added = {(row.id, row.email) for row in connection.execute(self._insert, rows)}
            verdicts = _verdicts(connection, arriving, added)
            judged = zip(arriving, verdicts, strict=True)
            new = [user for user, verdict in judged if verdict is Arrival.IMPORTED]
            # The id may have belonged to a deleted user, with cached copies of higher versions.
            drafts = [
                self._log.draft(user, "imported", epoch=user.epoch or None, drops_all=True) for user in new
            ]
            return Committed(verdicts, self._log.append(connection, drafts))

    def _rows(self, page: Select[Any]) -> Sequence[RowMapping]:
        def read() -> Sequence[RowMapping]:
            with self._database.read() as connection:
                return connection.execute(page).mappings().all()

        return self._patiently(read)

    def _patiently(self, work: Callable[[], T]) -> T:
        """The result of *work*, which must be repeatable; retries while SQL is away."""
        for pause_s in PAUSES_S:
            try:
                return work()
            except StoreUnavailable as error:
                log.warning("transfer.waiting", extra={"cause": str(error), "pause_s": pause_s})
                self._pause(pause_s)
        return work()

    def _epochs(self, connection: Connection, user_ids: Collection[UserId]) -> dict[UserId, int]:
        """
        The epochs that Redis may still have for deleted users. A user whose epoch in Redis is higher than in
        SQL could log in, but every check would refuse their tokens.
        """
        if not user_ids:
            return {}
        statement = (
            select(revocations.c.user_id, func.max(revocations.c.epoch))
            .where(
                revocations.c.user_id.in_(user_ids),
                revocations.c.epoch.is_not(None),
                revocations.c.expires_at > self._clock(),
            )
            .group_by(revocations.c.user_id)
        )
        return {UserId(user_id): epoch for user_id, epoch in connection.execute(statement)}


def _verdicts(connection: Connection, arriving: Sequence[User], added: set[tuple[str, str]]) -> list[Arrival]:
    """The result of each of *arriving*; *added* are the ids and addresses of those inserted now."""
    others = [user.email for user in arriving if (user.id, user.email) not in added]
    there = {email for _, email in added}
    if others:
        there |= set(connection.execute(select(users.c.email).where(users.c.email.in_(others))).scalars())
    waiting, verdicts = set(added), []
    for user in arriving:
        # Count each once: the file may have the same line twice.
        if (user.id, user.email) in waiting:
            waiting.discard((user.id, user.email))
            verdicts.append(Arrival.IMPORTED)
        else:
            verdicts.append(Arrival.EXISTS if user.email in there else Arrival.ID_TAKEN)
    return verdicts


def _kind_of(stored: ColumnElement[str]) -> ColumnElement[str]:
    """The scheme and the cost of a stored hash, without its salt."""
    tagged = [
        (stored.startswith(f"{tag}$", autoescape=True), func.substr(stored, 1, len(tag) + _KIND))
        for tag in (SCHEME, SHA256_SCHEME)
    ]
    return case(*tagged, else_=func.substr(stored, 1, _KIND))
