"""
The revocation log in SQL.

Numbers are assigned in one order and committed in another; a reader that passed a late one would never replay
it.  Therefore writers hold a lock in shared mode from before they take a number until their commit. A reader
does not wait: it reads which transactions hold the lock (:class:`authsvc.domain.revocations.Horizon`).
SQLite has one writer at a time: its order is the commit order.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Label,
    Select,
    between,
    bindparam,
    case,
    cast,
    false,
    func,
    insert,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.dml import ReturningInsert

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Position, Revocation, Sight
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.store.sql import Database, milliseconds
from authsvc.store.statements import Statement
from authsvc.store.tables import (
    USER_COLUMNS,
    clients,
    from_revocation,
    revocations,
    to_revocation,
    to_user,
    users,
)

#: A lock id that no other program uses: the letters "auth", then a purpose.
LOG_LOCK = 0x61757468_0001
PAGE = 500
#: The user id of an entry that is not about a user.
NOBODY = "00000000-0000-0000-0000-000000000000"
#: Numbers from the first to the last, inclusive.
Range = tuple[int, int]

#: The holders of the lock: transactions that may have a number and have not ended.
_WRITERS = text(
    "SELECT pid || ' ' || virtualtransaction FROM pg_locks"
    " WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted AND objsubid = 1"
    " AND classid = :high AND objid = :low"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
).bindparams(high=LOG_LOCK >> 32, low=LOG_LOCK & 0xFFFF_FFFF)
_SEQUENCE = func.pg_get_serial_sequence("revocations", "seq")
#: The last assigned number; NULL if there is none, or if the role may not read it.
_LAST_GIVEN = func.pg_sequence_last_value(cast(_SEQUENCE, postgresql.REGCLASS))
_MAY_KNOW = func.has_sequence_privilege(_SEQUENCE, "USAGE, SELECT")
_HEAD = func.coalesce(func.max(revocations.c.seq), 0)

#: Evaluated in the snapshot of the statement, which is older than the numbers it takes.
HEAD_BEFORE = select(_HEAD).scalar_subquery().label("head")
_GIVEN = tuple(column for column in revocations.columns if column.name != "seq")
_HOLD = func.pg_advisory_xact_lock_shared(LOG_LOCK)
_ADD_ONE = (
    insert(revocations)
    .values({column.name: bindparam(column.name) for column in _GIVEN})
    .returning(revocations.c.seq, HEAD_BEFORE)
)

log = logging.getLogger(__name__)


class SqlRevocationLog:
    """
    The append-only log; *copies_live* is how long an entry's copy in Redis can matter.

    *users_live* is the same for entries about a user, whose cached copies may live longer than their tokens.
    *following* is the database for reads of the log: slow writers must not use up its connections. The log is
    read, and users are changed, *page* rows at a time.
    """

    def __init__(
        self,
        database: Database,
        *,
        copies_live: timedelta,
        clock: Clock,
        users_live: timedelta = timedelta(),
        following: Database | None = None,
        page: int = PAGE,
    ) -> None:
        self._database = database
        self._following = following or database
        self._page = page
        self._copies_live = copies_live
        self._users_live = max(copies_live, users_live)
        self._clock = clock
        self._lock = Statement(database, select(_HOLD))
        self._add_one = Statement(database, _ADD_ONE)

    def draft(
        self, user: User, reason: str, *, epoch: int | None = None, drops_all: bool = False
    ) -> Revocation:
        """
        An entry about *user* as the row is now: it drops older copies, and with *epoch* it revokes earlier
        tokens.

        With *drops_all* it drops newer copies, too: the user was deleted, or versions started again.
        """
        now = self._clock()
        return Revocation(
            seq=0, at=now, reason=reason, expires_at=now + self._users_live,
            user_id=user.id, email=user.email, epoch=epoch, row_version=None if drops_all else user.version,
        )  # fmt: skip

    def draft_end(
        self, user_id: UserId, session_id: SessionId | None, reason: str, *, token_id: TokenId | None = None
    ) -> Revocation:
        """An entry that ends *session_id*; without one it ends the token *token_id* alone."""
        now = self._clock()
        return Revocation(
            seq=0, at=now, reason=reason, expires_at=now + self._copies_live,
            user_id=user_id, session_id=session_id, token_id=token_id,
        )  # fmt: skip

    def draft_cut_off(self, owner_id: UserId, reason: str, *, epoch: int) -> Revocation:
        """An entry that revokes the tokens with a lower *epoch* of an owner that is not a user: a client."""
        now = self._clock()
        return Revocation(
            seq=0, at=now, reason=reason, expires_at=now + self._copies_live, user_id=owner_id, epoch=epoch
        )

    def append(self, connection: Connection, drafts: Sequence[Revocation]) -> tuple[Revocation, ...]:
        """
        Number and store *drafts* as the last step of the caller's transaction. Raises StoreUnavailable if the
        database would assign numbers that readers have passed already: its sequence was set back, or was not
        copied with the rows.
        """
        if not drafts:
            return ()
        statement = insert(revocations)
        if not self._database.is_postgresql:
            statement = statement.returning(revocations.c.seq, sort_by_parameter_order=True)
            return _numbered(drafts, connection.execute(statement, _rows(drafts)).scalars())
        self._lock.within(connection)
        numbers, heads = zip(*self._added(connection, drafts), strict=True)
        if any(seq <= head for seq, head in zip(numbers, heads, strict=True)):
            raise StoreUnavailable("sql: the numbers of the log are behind its head")
        return _numbered(drafts, numbers)

    def _added(self, connection: Connection, drafts: Sequence[Revocation]) -> Iterable[tuple[int, int]]:
        """The number of each of *drafts*, and the head of the log before they were added."""
        if len(drafts) > 1:
            statement = insert(revocations).returning(
                revocations.c.seq, HEAD_BEFORE, sort_by_parameter_order=True
            )
            return ((row.seq, row.head) for row in connection.execute(statement, _rows(drafts)))
        (row,) = self._add_one.within(connection, **from_revocation(drafts[0])).rows
        return [(row[revocations.c.seq], row[HEAD_BEFORE])]

    def head(self) -> int:
        """The highest visible number; lower ones may still appear. 0: none yet."""
        with self._following.read() as connection:
            return _highest(connection)

    def look(self, *, settled: int | None = None, at: Collection[int] = ()) -> Sight:
        """
        The head, the transactions that may still commit lower numbers, and the entries with the numbers *at*.

        If the head is *settled*, an earlier result, there are no such transactions.
        """
        wanted = or_(revocations.c.seq.in_(at), revocations.c.seq == select(_HEAD).scalar_subquery())
        statement = select(revocations, self._is_behind()).where(wanted).order_by(revocations.c.seq)
        with self._following.read() as connection:
            rows = connection.execute(statement).mappings().all()
            found = tuple(Position.of(to_revocation(row)) for row in rows)
            head = found[-1] if found else Position()
            # Read after the head: a transaction that had a lower number then and is not listed has ended.
            writers = self._writers(connection) if head.seq != settled else frozenset[str]()
        return Sight(head, writers, found, is_behind=bool(rows) and rows[-1]["is_behind"])

    def _is_behind(self) -> Label[bool]:
        behind: ColumnElement[bool] = false()
        if self._following.is_postgresql:
            behind = case((_MAY_KNOW, func.coalesce(_LAST_GIVEN, 0) < revocations.c.seq), else_=false())
        return behind.label("is_behind")

    def _writers(self, connection: Connection) -> frozenset[str]:
        if not self._following.is_postgresql:
            return frozenset()
        return frozenset(connection.execute(_WRITERS).scalars())

    def pages(self, ranges: Sequence[Range]) -> Iterator[list[Revocation]]:
        """The visible entries with numbers in *ranges* that are still needed, in order."""
        after, upto = -1, max((high for _, high in ranges), default=-1)
        within = or_(false(), *(between(revocations.c.seq, low, high) for low, high in ranges))
        while after < upto:
            statement = entries_between(after, upto, self._clock()).where(within).limit(self._page)
            with self._following.read() as connection:
                rows = connection.execute(statement).mappings().all()
            if not rows:
                return
            yield [to_revocation(row) for row in rows]
            after = rows[-1][revocations.c.seq]

    def cut_everybody_off(self, *, by: int) -> None:
        """
        Raise all epochs by *by*, in steps: the number of entries that a restore lost, each of which may have
        raised an epoch.

        Redis may still have the higher epochs, and would refuse new tokens of these users. All earlier access
        tokens are revoked, also in Redis: each user gets an entry in the log.
        """
        after = NOBODY
        while after:
            batch = select(users.c.id).where(users.c.id > after).order_by(users.c.id).limit(self._page)
            raised = (
                update(users)
                .where(users.c.id.in_(batch))
                .values(epoch=users.c.epoch + by, version=users.c.version + 1)
            )
            with self._following.transaction() as connection:
                rows = connection.execute(raised.returning(*USER_COLUMNS)).mappings().all()
                found = [to_user(row) for row in rows]
                # Redis may have copies from before the restore, whose versions are higher.
                drafts = [self.draft(user, "restored", epoch=user.epoch, drops_all=True) for user in found]
                self.append(connection, drafts)
            after = max((user.id for user in found), default="")
        self._cut_clients_off(by=by)

    def _cut_clients_off(self, *, by: int) -> None:
        """The same for the tokens of machines, in one transaction, because there are few clients."""
        raised = update(clients).values(epoch=clients.c.epoch + by).returning(clients.c.id, clients.c.epoch)
        with self._following.transaction() as connection:
            rows = connection.execute(raised).all()
            drafts = [self.draft_cut_off(row.id, "restored", epoch=row.epoch) for row in rows]
            self.append(connection, drafts)

    def skip_to(self, seq: int) -> None:
        """
        Make *seq* the head: Redis has entries up to it, from before the database was restored.

        Waits for writers, so that no transaction has a lower number when this returns. Does nothing if the
        log has reached *seq* already: otherwise numbers would be assigned twice.
        """
        now = self._clock()
        filler = {"seq": seq, "at": now, "reason": "restored", "expires_at": now, "user_id": NOBODY}
        with self._following.transaction() as connection:
            self._keep_writers_out(connection)
            if _highest(connection) >= seq:
                log.info("revocations.skipped_by_other")
                return
            connection.execute(insert(revocations).values(filler))
            if self._following.is_postgresql:
                connection.execute(select(func.setval(_SEQUENCE, seq)))

    def catch_up(self) -> None:
        """
        Set the sequence above the head if it is behind. :meth:`append` refuses numbers taken meanwhile.
        """
        with self._following.transaction() as connection:
            self._keep_writers_out(connection)
            head = _highest(connection)
            behind = func.coalesce(_LAST_GIVEN, 0) < head
            connection.execute(select(func.setval(_SEQUENCE, head)).where(behind))

    def _keep_writers_out(self, connection: Connection) -> None:
        """
        Lock out writers until the transaction ends; those with a number have committed. SQLite has one
        writer.
        """
        if self._following.is_postgresql:
            # Writers wait behind this lock request, so its time-out is short, and the next comparison tries
            # again. The idle time-out releases the lock of a suspended process before writers time out.
            timings = self._following.timings
            limits = (
                func.set_config("lock_timeout", milliseconds(timings.log_lock_s), true()),
                func.set_config(
                    "idle_in_transaction_session_timeout", milliseconds(timings.log_idle_s), true()
                ),
            )
            connection.execute(select(*limits))
            connection.execute(select(func.pg_advisory_xact_lock(LOG_LOCK)))


def log_held(ended: CTE, noted: CTE) -> Select[Any]:
    """
    The part of a statement that takes the lock of the log for *ended* sessions, after their events are
    *noted*.
    """
    # An outer join: the end of a session is in the log even if its event is another session's row.
    return select(ended.c.id, ended.c.user_id, _HOLD).outerjoin_from(
        ended, noted, ended.c.id == noted.c.session_id
    )


def appending(held: CTE, asked: CTE, prefix: str) -> ReturningInsert[Any]:
    """
    The next part of that statement: adds an entry for each of :func:`log_held`, and returns its number.

    Its values are in the row of *asked* with the same ``id``, in columns whose names begin with *prefix*.
    """
    given = {revocations.c.user_id: held.c.user_id, revocations.c.session_id: held.c.id}
    values = [given[column] if column in given else asked.c[prefix + column.name] for column in _GIVEN]
    found = select(*values).join_from(held, asked, held.c.id == asked.c.id)
    adding = insert(revocations).from_select(list(_GIVEN), found, include_defaults=False)
    return adding.returning(revocations.c.seq, revocations.c.session_id)


def _rows(drafts: Sequence[Revocation]) -> list[dict[str, Any]]:
    return [from_revocation(draft) for draft in drafts]


def _numbered(drafts: Sequence[Revocation], numbers: Iterable[int]) -> tuple[Revocation, ...]:
    return tuple(replace(draft, seq=seq) for draft, seq in zip(drafts, numbers, strict=True))


def _highest(connection: Connection) -> int:
    head: int = connection.execute(select(_HEAD)).scalar_one()
    return head


def entries_between(after: int, upto: int, now: datetime) -> Select[Any]:
    """The entries with ``after < seq <= upto`` that are still needed, in order."""
    return (
        select(revocations)
        .where(revocations.c.seq > after, revocations.c.seq <= upto, revocations.c.expires_at > now)
        .order_by(revocations.c.seq)
    )
