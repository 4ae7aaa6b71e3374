"""The levels of sessions in SQL; step-ups raise them."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select, update

from authsvc.domain.credentials import Credentials, UsedUp
from authsvc.domain.sessions import Standing
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId
from authsvc.domain.values.levels import Method, level_of
from authsvc.store.accounts.factors import use_up
from authsvc.store.accounts.mails import Notices
from authsvc.store.sessions import living_session
from authsvc.store.sql import Database
from authsvc.store.tables import USER_COLUMNS, from_level, sessions, to_user, users


class SqlLevelStore:
    """Raises levels, under the locks of the user and then of the session."""

    def __init__(self, database: Database, clock: Clock, notices: Notices) -> None:
        self._database = database
        self._clock = clock
        self._notices = notices

    def raise_level(
        self, session_id: SessionId, proven: Credentials, method: Method, used_up: UsedUp | None
    ) -> Standing | None:
        """Store the new level; None if the session is over or its user has changed."""
        with self._database.transaction() as connection:
            user = _locked_as_proven(connection, proven, needs_password=used_up is None)
            session = living_session(connection, session_id, self._clock()) if user else None
            if user is None or session is None or session.user_id != user.id:
                return None
            if used_up is not None:
                use_up(connection, used_up, self._clock(), self._notices)
            before = session.level or level_of(Method.PASSWORD, at=session.created_at)
            level = before.after(method, at=self._clock())
            noted = update(sessions).where(sessions.c.id == session_id).values(from_level(level))
            connection.execute(noted)
            return Standing(session=replace(session, level=level), user=user)


def _locked_as_proven(connection: Connection, proven: Credentials, *, needs_password: bool) -> User | None:
    """The user, locked; None if they are deleted or disabled, or if what was verified has changed."""
    found = select(*USER_COLUMNS).where(users.c.id == proven.user.id, users.c.status == "active")
    if needs_password:
        found = found.where(
            users.c.password_version == proven.password_version, users.c.has_factor.is_(False)
        )
    row = connection.execute(found.with_for_update()).mappings().one_or_none()
    return to_user(row) if row else None
