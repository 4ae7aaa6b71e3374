"""Sessions in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    case,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError

from authsvc.domain.audit import Entry
from authsvc.domain.errors import NotFound, StoreUnavailable, TokenInvalid
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.sessions import Session, Standing
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.store.audit import adding_of, adding_one
from authsvc.store.revocations import HEAD_BEFORE, SqlRevocationLog, appending, log_held
from authsvc.store.sql import Database, is_refusal
from authsvc.store.statements import Statement, named
from authsvc.store.tables import (
    USER_COLUMNS,
    UtcTime,
    from_entry,
    from_revocation,
    from_session,
    sessions,
    to_level,
    to_session,
    to_user,
    users,
)

_STANDING = (
    select(*USER_COLUMNS, sessions)
    .join_from(sessions, users, sessions.c.user_id == users.c.id)
    .where(sessions.c.id == bindparam("session"))
)
_NOW = bindparam("now", type_=UtcTime())
_ROTATE = (
    update(sessions)
    .where(
        sessions.c.id == bindparam("session"),
        sessions.c.counter == bindparam("presented"),
        sessions.c.revoked_at.is_(None),
        sessions.c.idle_expires_at > _NOW,
        sessions.c.expires_at > _NOW,
    )
    .values(
        counter=sessions.c.counter + 1,
        rotated_at=_NOW,
        last_used_at=_NOW,
        idle_expires_at=bindparam("idle"),
    )
    .returning(sessions.c.acr, sessions.c.amr, sessions.c.auth_time)
)

_END = (
    update(sessions)
    .where(sessions.c.id == bindparam("session"), sessions.c.revoked_at.is_(None))
    .values(revoked_at=_NOW, reason=bindparam("why"))
    .returning(*sessions.columns)
)
#: Prefixes of the parameter names of the event and of the log entry.
_OF_EVENT, _OF_ENTRY = "event_", "entry_"


def _end_at_once() -> tuple[Select[Any], CTE, ColumnElement[int]]:
    """
    The statement for PostgreSQL that ends a session, stores its event and adds its log entry, in one round
    trip.

    Each part reads what the part before it returns, so the lock of the log is taken last and before the
    number.  A number that is not above the head causes a division by zero, which rolls everything back.
    Returns the ended session and the number.
    """
    ended = _END.cte("ended")
    noted = adding_of(ended, _OF_EVENT).cte("noted")
    held = log_held(ended, noted).cte("held")
    added = appending(held, _OF_ENTRY).cte("added")
    is_above = 1 // case((added.c.seq > HEAD_BEFORE, 1), else_=0)
    return select(*ended.columns, added.c.seq, is_above).join_from(ended, added, true()), ended, added.c.seq


class SqlSessionStore:
    """Sessions as rows; each method is one transaction."""

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._standing = Statement(database, _STANDING)
        self._rotate = Statement(database, _ROTATE)
        self._end_one = Statement(database, _END)
        self._add_event = adding_one(database)
        at_once, self._ended, self._number = _end_at_once()
        self._end_at_once = Statement(database, at_once) if database.is_postgresql else None

    def standing(self, session_id: SessionId) -> Standing | None:
        """The session with its user, in one query."""
        rows = self._standing(session=session_id).rows
        return Standing(session=to_session(rows[0]), user=to_user(rows[0])) if rows else None

    def rotate(self, session: Session, *, now: datetime, idle_expires_at: datetime) -> Session | None:
        """
        Replace ``session.counter`` by one conditional update, which resolves races with other refreshes and
        logouts.
        """
        rows = self._rotate(session=session.id, presented=session.counter, now=now, idle=idle_expires_at).rows
        if not rows:
            return None
        return replace(
            session,
            counter=session.counter + 1,
            rotated_at=now,
            last_used_at=now,
            idle_expires_at=idle_expires_at,
            level=to_level(rows[0]),
        )

    def end(
        self, session_id: SessionId, *, reason: str, token_id: TokenId | None, event: Entry | None = None
    ) -> Committed[Session | None]:
        """
        End it and store *event* in one transaction; for an ended session, returns the entry to write to Redis
        again.

        The end does not depend on the audit trail: if that fails, the caller records *event*.
        """
        try:
            ended = self._end(session_id, reason, token_id, event)
        except _TrailRefuses:
            ended = self._end(session_id, reason, token_id, None)
        return ended or self._already_over(session_id, token_id)

    def _end(
        self, session_id: SessionId, reason: str, token_id: TokenId | None, event: Entry | None
    ) -> Committed[Session | None] | None:
        """End it; None if it had ended or never existed."""
        if self._end_at_once is not None and event is not None:
            return self._ended_at_once(self._end_at_once, session_id, reason, token_id, event)
        with self._database.transaction() as connection:
            rows = self._end_one.within(connection, session=session_id, now=self._clock(), why=reason).rows
            if not rows:
                return None
            session = to_session(rows[0])
            if event is not None:
                self._note(connection, replace(event, user_id=session.user_id))
            entry = self._log.draft_end(session.user_id, session.id, reason, token_id=token_id)
            numbered = self._log.append(connection, [entry])
        return Committed(session, numbered, is_noted=event is not None)

    def _ended_at_once(
        self, statement: Statement, session_id: SessionId, reason: str, token_id: TokenId | None, event: Entry
    ) -> Committed[Session | None] | None:
        """The same in one statement; raises _TrailRefuses if the server refused any part of it."""
        draft = self._log.draft_end(UserId(""), session_id, reason, token_id=token_id)
        try:
            rows = statement(
                session=session_id,
                now=self._clock(),
                why=reason,
                **named(_OF_EVENT, from_entry(event)),
                **named(_OF_ENTRY, from_revocation(draft)),
            ).rows
        except StoreUnavailable as error:
            if is_refusal(error):
                raise _TrailRefuses from error
            raise
        if not rows:
            return None
        (row,) = rows
        session = to_session({column: row[self._ended.c[column.name]] for column in sessions.columns})
        entry = replace(draft, user_id=session.user_id, seq=row[self._number])
        return Committed(session, (entry,), is_noted=True)

    def end_all(self, user_id: UserId, *, reason: str, keep: SessionId | None) -> Committed[int]:
        """End all sessions of the user, except *keep* if given; without *keep* their epoch rises, too."""
        with self._database.transaction() as connection:
            user = locked_user(connection, user_id)
            entries = end_sessions_of(connection, self._log, user_id, self._clock(), reason, keep=keep)
            if keep is None:
                entries.append(raise_epoch(connection, self._log, user, reason))
            return Committed(len(entries), self._log.append(connection, entries))

    def of_user(self, user_id: UserId, *, now: datetime) -> Sequence[Session]:
        """The live sessions, the most recently used first."""
        statement = (
            select(sessions)
            .where(
                sessions.c.user_id == user_id,
                sessions.c.revoked_at.is_(None),
                sessions.c.idle_expires_at > now,
                sessions.c.expires_at > now,
            )
            .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
        )
        with self._database.read() as connection:
            return [to_session(row) for row in connection.execute(statement).mappings()]

    def _note(self, connection: Connection, event: Entry) -> None:
        try:
            self._add_event.within(connection, **from_entry(event))
        except (DBAPIError, psycopg.Error) as error:
            if connection.invalidated:
                raise
            raise _TrailRefuses from error

    def _already_over(self, session_id: SessionId, token_id: TokenId | None) -> Committed[Session | None]:
        standing = self.standing(session_id)
        if standing is None:
            return Committed(None)
        session = standing.session
        entry = self._log.draft_end(session.user_id, session.id, session.reason or "over", token_id=token_id)
        return Committed(session, (entry,))


class _TrailRefuses(Exception):
    """The audit trail could not store a row."""


def locked_user(connection: Connection, user_id: UserId) -> User:
    """The user under their row lock; raises NotFound."""
    statement = select(*USER_COLUMNS).where(users.c.id == user_id).with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound
    return to_user(row)


def living_session(connection: Connection, session_id: SessionId, now: datetime) -> Session | None:
    """The session under its row lock, which is taken after that of its user; None if it has ended."""
    found = select(sessions).where(sessions.c.id == session_id).with_for_update()
    row = connection.execute(found).mappings().one_or_none()
    session = to_session(row) if row else None
    return session if session is not None and session.is_alive(now) else None


def acting_user(connection: Connection, user_id: UserId, session_id: SessionId, now: datetime) -> User:
    """
    The user who acts in a live session; both rows are locked.

    So a request that was checked before its session ended changes nothing afterwards.  Raises NotFound,
    TokenInvalid.
    """
    user = locked_user(connection, user_id)
    require_living(connection, user_id, session_id, now)
    return user


def require_living(connection: Connection, user_id: UserId, session_id: SessionId, now: datetime) -> None:
    """Raise TokenInvalid unless the session is live, and lock it; the user's row is locked already."""
    session = living_session(connection, session_id, now)
    if session is None or session.user_id != user_id:
        raise TokenInvalid("the session is over")


def add_session(connection: Connection, session: Session) -> None:
    """Insert *session*."""
    connection.execute(insert(sessions).values(from_session(session)))


def end_sessions(connection: Connection, statement: Update, now: datetime, reason: str) -> list[Session]:
    """End the sessions that *statement* selects; returns those that were ended."""
    returning = statement.values(revoked_at=now, reason=reason).returning(sessions)
    return [to_session(row) for row in connection.execute(returning).mappings()]


def end_sessions_of(
    connection: Connection,
    log: SqlRevocationLog,
    user_id: UserId,
    now: datetime,
    reason: str,
    *,
    keep: SessionId | None = None,
) -> list[Revocation]:
    """End the user's sessions but *keep*; returns log entries, not numbered yet."""
    statement = _alive(sessions.c.user_id == user_id)
    if keep is not None:
        statement = statement.where(sessions.c.id != keep)
    return [log.draft_end(s.user_id, s.id, reason) for s in end_sessions(connection, statement, now, reason)]


def end_oldest_beyond(
    connection: Connection, log: SqlRevocationLog, newest: Session, now: datetime, most: int
) -> list[Revocation]:
    """End the least recently used sessions of the user of *newest* until *most* are left, including it."""
    # Never the newest itself, even if its time is earlier because clocks differ.
    others = and_(
        sessions.c.user_id == newest.user_id,
        sessions.c.id != newest.id,
        sessions.c.idle_expires_at > now,
        sessions.c.expires_at > now,
    )
    kept = (
        select(sessions.c.id)
        .where(others, sessions.c.revoked_at.is_(None))
        .order_by(sessions.c.last_used_at.desc(), sessions.c.created_at.desc(), sessions.c.id)
        .limit(most - 1)
    )
    statement = _alive(others).where(sessions.c.id.not_in(kept))
    reason = "too_many_sessions"
    return [log.draft_end(s.user_id, s.id, reason) for s in end_sessions(connection, statement, now, reason)]


def raise_epoch(connection: Connection, log: SqlRevocationLog, user: User, reason: str) -> Revocation:
    """
    Revoke all earlier access tokens of *user*, whose row is locked; returns the log entry, not numbered yet.
    """
    connection.execute(
        update(users)
        .where(users.c.id == user.id)
        .values(epoch=users.c.epoch + 1, version=users.c.version + 1)
    )
    raised = replace(user, epoch=user.epoch + 1, version=user.version + 1)
    return log.draft(raised, reason, epoch=raised.epoch)


def _alive(condition: ColumnElement[bool]) -> Update:
    return update(sessions).where(condition, sessions.c.revoked_at.is_(None))
