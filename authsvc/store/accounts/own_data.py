"""All data about one user in SQL, read in one snapshot."""

from __future__ import annotations

from sqlalchemy import select

from authsvc.domain.accounts.own_data import OwnData
from authsvc.domain.audit import PERSONAL
from authsvc.domain.errors import NotFound
from authsvc.domain.values.identifiers import UserId
from authsvc.store.accounts.factors import factors_of
from authsvc.store.accounts.mails import to_mail
from authsvc.store.sql import Database
from authsvc.store.tables import (
    USER_COLUMNS,
    audit_events,
    mails,
    sessions,
    to_entry,
    to_session,
    to_user,
    users,
)


class SqlOwnData:
    """Reads rows of several tables in one snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def snapshot(self, user_id: UserId, *, most_events: int) -> OwnData:
        """All data about one user; raises NotFound."""
        own_sessions = select(sessions).where(sessions.c.user_id == user_id).order_by(sessions.c.created_at)
        own_events = (
            select(audit_events)
            .where(audit_events.c.user_id == user_id, audit_events.c.action.in_(sorted(PERSONAL)))
            .order_by(audit_events.c.id.desc())
            .limit(most_events)
        )
        with self._database.snapshot() as connection:
            found = select(*USER_COLUMNS).where(users.c.id == user_id)
            row = connection.execute(found).mappings().one_or_none()
            if row is None:
                raise NotFound
            user = to_user(row)
            own_mails = select(mails).where(mails.c.recipient == user.email).order_by(mails.c.id)
            return OwnData(
                user=user,
                sessions=[to_session(one) for one in connection.execute(own_sessions).mappings()],
                factors=factors_of(connection, user_id).factors,
                mails=[to_mail(one) for one in connection.execute(own_mails).mappings()],
                events=[to_entry(one) for one in connection.execute(own_events).mappings()],
            )
