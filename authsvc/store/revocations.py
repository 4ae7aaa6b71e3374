"""
The revocation log in SQL.

Numbers must become visible in order, or a reader that went past a late one would never replay it.
Writers hold a lock in shared mode from before they take a number until their commit; a reader takes it
exclusively for a moment where it finds something new, so that nothing numbered is still uncommitted when it
looks.  Writers commit in parallel.  SQLite has one writer at a time: its order is the commit order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, insert, or_, select, text, update
from sqlalchemy.exc import DBAPIError

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Revocation
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.store.sql import Database
from authsvc.store.tables import USER_COLUMNS, from_revocation, revocations, to_revocation, to_user, users

#: Any number that no other user of the database takes: the letters "auth", then a purpose.
LOG_LOCK = 0x61757468_0001
PAGE = 500
#: The user of an entry that is about none.
NOBODY = "00000000-0000-0000-0000-000000000000"
#: SQLSTATE of a lock that was not granted in time.
_LOCK_NOT_AVAILABLE = "55P03"

#: For one transaction.
_BRIEFLY = text(
    "SELECT set_config('lock_timeout', '100ms', true),"
    " set_config('idle_in_transaction_session_timeout', '500ms', true)"
)

log = logging.getLogger(__name__)


class SqlRevocationLog:
    """
    The append-only log; *copies_live* is how long an entry's copy in Redis can matter.

    *users_live* is the same for entries about a user himself, whose cached copies may outlive his tokens.
    """

    def __init__(
        self, database: Database, *, copies_live: timedelta, clock: Clock, users_live: timedelta = timedelta()
    ) -> None:
        self._database = database
        self._copies_live = copies_live
        self._users_live = max(copies_live, users_live)
        self._clock = clock

    def draft(self, user: User, reason: str, *, epoch: int | None = None) -> Revocation:
        """An entry about *user* himself: his cached copies go, and with *epoch* his earlier tokens."""
        now = self._clock()
        return Revocation(
            seq=0, at=now, reason=reason, expires_at=now + self._users_live,
            user_id=user.id, email=user.email, epoch=epoch,
        )  # fmt: skip

    def draft_end(
        self, user_id: UserId, session_id: SessionId, reason: str, *, token_id: TokenId | None = None
    ) -> Revocation:
        """An entry that ends *session_id*."""
        now = self._clock()
        return Revocation(
            seq=0, at=now, reason=reason, expires_at=now + self._copies_live,
            user_id=user_id, session_id=session_id, token_id=token_id,
        )  # fmt: skip

    def append(self, connection: Connection, drafts: Sequence[Revocation]) -> tuple[Revocation, ...]:
        """Number and store *drafts* as the last step of the caller's transaction."""
        if not drafts:
            return ()
        if self._database.is_postgresql:
            connection.execute(select(func.pg_advisory_xact_lock_shared(LOG_LOCK)))
        statement = insert(revocations).returning(revocations.c.seq, sort_by_parameter_order=True)
        numbers = connection.execute(statement, [from_revocation(draft) for draft in drafts]).scalars()
        return tuple(replace(draft, seq=seq) for draft, seq in zip(drafts, numbers, strict=True))

    def head(self, *, settled: int | None = None) -> int:
        """
        The highest number; every lower one that will ever be visible is visible now.  0: none yet.

        *settled* is an earlier answer, of this process or another: where nothing was added since, no writer
        has to wait.
        """
        if settled is not None and self._newest() == settled:
            return settled
        with self._database.transaction() as connection:
            self._keep_writers_out(connection)
            return _highest(connection)

    def _newest(self) -> int:
        """The highest visible number; lower ones may still be about to appear."""
        with self._database.read() as connection:
            return _highest(connection)

    def pages(self, *, after: int, upto: int) -> Iterator[list[Revocation]]:
        """The entries with ``after < seq <= upto`` that can still matter, in order."""
        while after < upto:
            with self._database.read() as connection:
                rows = connection.execute(_between(after, upto, self._clock()).limit(PAGE)).mappings().all()
            if not rows:
                return
            yield [to_revocation(row) for row in rows]
            after = rows[-1][revocations.c.seq]

    def cut_everybody_off(self, *, by: int) -> None:
        """
        Raise every epoch by *by*, in steps: a restore lost so many entries that may each have raised one.

        Redis may have the higher epochs still; without this, who has one could not sign in.  Every earlier
        access token dies, also for Redis: each user has an entry in the log.
        """
        after = NOBODY
        while after:
            batch = select(users.c.id).where(users.c.id > after).order_by(users.c.id).limit(PAGE)
            raised = (
                update(users)
                .where(users.c.id.in_(batch))
                .values(epoch=users.c.epoch + by, version=users.c.version + 1)
            )
            with self._database.transaction() as connection:
                rows = connection.execute(raised.returning(*USER_COLUMNS)).mappings().all()
                found = [to_user(row) for row in rows]
                self.append(connection, [self.draft(user, "restored", epoch=user.epoch) for user in found])
            after = max((user.id for user in found), default="")

    def skip_to(self, seq: int) -> None:
        """
        Make *seq* the head: Redis has seen numbers up to it, from a database that was restored since.

        No number below it is in flight when this returns: writers are waited for.  Where the log got
        there by itself nothing is done, or numbers that were given already would be given again.
        """
        now = self._clock()
        filler = {"seq": seq, "at": now, "reason": "restored", "expires_at": now, "user_id": NOBODY}
        with self._database.transaction() as connection:
            self._keep_writers_out(connection)
            if _highest(connection) >= seq:
                log.info("revocations.skipped_by_other")
                return
            connection.execute(insert(revocations).values(filler))
            if self._database.is_postgresql:
                sequence = func.pg_get_serial_sequence("revocations", "seq")
                connection.execute(select(func.setval(sequence, seq)))

    def _keep_writers_out(self, connection: Connection) -> None:
        """Until the transaction ends; those that have a number have committed.  SQLite has one writer."""
        if self._database.is_postgresql:
            # Writers queue behind this wait: it must be short.  Not granted: no comparison this time.  And
            # they must not wait for a process that stands still with the lock, longer than they can.
            connection.execute(_BRIEFLY)
            connection.execute(select(func.pg_advisory_xact_lock(LOG_LOCK)))


class SqlFeedLog:
    """The log as the revocation feed reads it."""

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock

    def head(self, *, settled: int | None = None) -> int | None:
        """The highest number, with every lower one visible; None where writers were not done in time."""
        try:
            return self._log.head(settled=settled)
        except StoreUnavailable as error:
            if _is_about_a_lock(error):
                return None
            raise

    def entry(self, seq: int) -> Revocation | None:
        """Entry *seq*, whatever it is about."""
        with self._database.read() as connection:
            row = connection.execute(select(revocations).where(revocations.c.seq == seq)).mappings().first()
        return to_revocation(row) if row else None

    def fatal(self, *, after: int, upto: int, limit: int) -> list[Revocation]:
        """Entries with ``after < seq <= upto`` that end tokens which can still be alive, in order."""
        if after >= upto:
            return []
        statement = (
            _between(after, upto, self._clock())
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


def _is_about_a_lock(error: StoreUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _highest(connection: Connection) -> int:
    head: int = connection.execute(select(func.coalesce(func.max(revocations.c.seq), 0))).scalar_one()
    return head


def _between(after: int, upto: int, now: datetime) -> Select[Any]:
    """The entries with ``after < seq <= upto`` that can still matter, in order."""
    return (
        select(revocations)
        .where(revocations.c.seq > after, revocations.c.seq <= upto, revocations.c.expires_at > now)
        .order_by(revocations.c.seq)
    )
