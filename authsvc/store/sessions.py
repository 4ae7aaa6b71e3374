"""Sessions in SQL."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, Connection, Update, and_, insert, select, update
from sqlalchemy.exc import DBAPIError

from authsvc.domain.audit import Entry
from authsvc.domain.errors import NotFound, StoreUnavailable, TokenInvalid
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.sessions import Ending, Rotation, Session, Standing
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.audit import adding_one
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.session_statements import END, ROTATE, EndFree, RotateFree, Standings
from authsvc.store.sql import Database, concerns_one, is_refusal
from authsvc.store.statements import Statement
from authsvc.store.tables import (
    USER_COLUMNS,
    from_entry,
    from_session,
    sessions,
    to_level,
    to_session,
    to_user,
    users,
)

log = logging.getLogger(__name__)


class SqlSessionStore:
    """
    Sessions as rows; each method is one transaction.

    Methods about many sessions are one statement on PostgreSQL. A single row that cannot be read or written
    must not affect the others: then each is done by itself.
    """

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._standings = Standings(database)
        self._rotate = Statement(database, ROTATE)
        self._end_one = Statement(database, END)
        self._add_event = adding_one(database)
        self._rotate_free = RotateFree(database) if database.is_postgresql else None
        self._end_free = EndFree(database) if database.is_postgresql else None

    def standing(self, session_id: SessionId) -> Standing | None:
        """The session with its user, in one query."""
        (standing,) = self._read([session_id])
        if isinstance(standing, StoreUnavailable):
            raise standing
        return standing

    def standings(self, session_ids: Sequence[SessionId]) -> list[Standing | StoreUnavailable | None]:
        """The same for many, in one query."""
        try:
            return self._read(session_ids)
        except StoreUnavailable as error:
            if len(session_ids) == 1 or not concerns_one(error):
                raise
            return [found for session_id in session_ids for found in self._read_alone(session_id)]

    def _read_alone(self, session_id: SessionId) -> list[Standing | StoreUnavailable | None]:
        try:
            return self._read([session_id])
        except StoreUnavailable as error:
            return [error]

    def _read(self, session_ids: Sequence[SessionId]) -> list[Standing | StoreUnavailable | None]:
        found = {row[sessions.c.id]: row for row in self._standings(session_ids)}
        return [_to_standing(found.get(session_id)) for session_id in session_ids]

    def rotate(self, rotation: Rotation) -> Session | None:
        """
        Replace ``session.counter`` by one conditional update, which resolves races with other refreshes and
        logouts.
        """
        rows = self._rotate(
            session=rotation.session.id,
            presented=rotation.session.counter,
            now=rotation.now,
            idle=rotation.idle_expires_at,
        ).rows
        return _rotated(rotation, rows[0] if rows else None)

    def rotate_free(self, rotations: Sequence[Rotation]) -> list[Session | None]:
        """The same for many, of which locked ones are skipped: no request waits for those of others."""
        if self._rotate_free is None:
            return [self.rotate(rotation) for rotation in rotations]
        firsts = _firsts([rotation.session.id for rotation in rotations])
        rows = self._rotate_free([rotations[place] for place in firsts])
        return [
            _rotated(one, rows.get(one.session.id) if place in firsts else None)
            for place, one in enumerate(rotations)
        ]

    def end(self, ending: Ending) -> Committed[Session | None]:
        """
        End it and store its event in one transaction; for an ended session, returns the entry to write to
        Redis again.

        The end does not depend on the audit trail: if that fails, the caller records the event.
        """
        try:
            ended = self._end(ending)
        except _TrailRefuses:
            ended = self._end(replace(ending, event=None))
        return ended or self._already_over(ending)

    def end_free(self, endings: Sequence[Ending]) -> list[Committed[Session | None] | None]:
        """
        The same for many: those that are live, not locked and in the list for the first time.

        None for all if the server refuses the statement, of which nothing was done then.
        """
        if self._end_free is None:
            return [self.end(ending) for ending in endings]
        firsts = _firsts([ending.session_id for ending in endings])
        try:
            ended = self._ended_at_once(self._end_free, [endings[place] for place in firsts])
        except StoreUnavailable as error:
            if not is_refusal(error):
                raise
            log.warning("sql.group_refused", extra={"cause": error.store, "count": len(firsts)})
            ended = {}
        return [ended.get(one.session_id) if place in firsts else None for place, one in enumerate(endings)]

    def _ended_at_once(
        self, end: EndFree, endings: Sequence[Ending]
    ) -> Mapping[SessionId, Committed[Session | None]]:
        drafts = {
            one.session_id: self._log.draft_end(UserId(""), one.session_id, one.reason, token_id=one.token_id)
            for one in endings
        }
        return {
            session.id: Committed(
                session, (replace(drafts[session.id], user_id=session.user_id, seq=seq),), is_noted=True
            )
            for session, seq in end(endings, drafts, now=self._clock())
        }

    def _end(self, ending: Ending) -> Committed[Session | None] | None:
        """End it; None if it had ended or never existed."""
        with self._database.transaction() as connection:
            rows = self._end_one.within(
                connection, session=ending.session_id, now=self._clock(), why=ending.reason
            ).rows
            if not rows:
                return None
            session = to_session(rows[0])
            if ending.event is not None:
                self._note(connection, replace(ending.event, user_id=session.user_id))
            entry = self._log.draft_end(session.user_id, session.id, ending.reason, token_id=ending.token_id)
            numbered = self._log.append(connection, [entry])
        return Committed(session, numbered, is_noted=ending.event is not None)

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

    def _already_over(self, ending: Ending) -> Committed[Session | None]:
        standing = self.standing(ending.session_id)
        if standing is None:
            return Committed(None)
        session = standing.session
        entry = self._log.draft_end(
            session.user_id, session.id, session.reason or "over", token_id=ending.token_id
        )
        return Committed(session, (entry,))


def _firsts(session_ids: Sequence[SessionId]) -> set[int]:
    """The first place of each session."""
    places: dict[SessionId, int] = {}
    for place, session_id in enumerate(session_ids):
        places.setdefault(session_id, place)
    return set(places.values())


def _to_standing(row: Mapping[Any, Any] | None) -> Standing | StoreUnavailable | None:
    if row is None:
        return None
    try:
        return Standing(session=to_session(row), user=to_user(row))
    except StoreUnavailable as error:  # the row is damaged
        return error


def _rotated(rotation: Rotation, row: Mapping[Any, Any] | None) -> Session | None:
    if row is None:
        return None
    return replace(
        rotation.session,
        counter=rotation.session.counter + 1,
        rotated_at=rotation.now,
        last_used_at=rotation.now,
        idle_expires_at=rotation.idle_expires_at,
        level=to_level(row),
    )


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
