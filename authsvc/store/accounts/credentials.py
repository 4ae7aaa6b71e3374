"""Password hashes in SQL, and the transaction in which a login commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, Update, case, select, update

from authsvc.domain.accounts.mails import Template
from authsvc.domain.credentials import Credentials, Rehash, UsedUp
from authsvc.domain.errors import NotFound
from authsvc.domain.revocations import Committed
from authsvc.domain.sessions import Session
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.accounts.factors import use_up
from authsvc.store.accounts.mails import NO_NOTICES, Notices
from authsvc.store.accounts.tickets import end_tickets_of
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sessions import add_session, end_oldest_beyond, end_sessions_of, require_living
from authsvc.store.sql import Database
from authsvc.store.tables import USER_COLUMNS, to_user, users

_CREDENTIAL_FIELDS = ("password_hash", "password_version", "has_factor", "factor_tries", "device_version")
#: The columns that :func:`to_credentials` needs in addition to USER_COLUMNS.
CREDENTIAL_COLUMNS = tuple(users.c[name] for name in _CREDENTIAL_FIELDS)


def to_credentials(row: RowMapping) -> Credentials:
    """The credentials in *row*."""
    return Credentials(user=to_user(row), **{name: row[users.c[name]] for name in _CREDENTIAL_FIELDS})


class SqlCredentialStore:
    """Stores password hashes; only this class reads and writes them."""

    def __init__(
        self, database: Database, log: SqlRevocationLog, clock: Clock, notices: Notices = NO_NOTICES
    ) -> None:
        self._notices = notices
        self._database = database
        self._log = log
        self._clock = clock
        self._columns = select(*USER_COLUMNS, *CREDENTIAL_COLUMNS)

    def by_email(self, email: Email) -> Credentials | None:
        """The credentials of the canonical address *email*."""
        with self._database.read() as connection:
            row = connection.execute(self._columns.where(users.c.email == email)).mappings().one_or_none()
        return to_credentials(row) if row else None

    def by_user(self, user_id: UserId) -> Credentials:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(self._columns.where(users.c.id == user_id)).mappings().one_or_none()
        if row is None:
            raise NotFound
        return to_credentials(row)

    def open_session(
        self,
        verified: Credentials,
        session: Session,
        *,
        rehash: Rehash | None,
        max_sessions: int,
        used_up: UsedUp | None = None,
    ) -> Committed[User] | None:
        """
        Add the session under the user's row lock, in one transaction; None if they were disabled or have
        changed.
        """
        now = self._clock()
        noted = (
            self._still(verified)
            .where(users.c.status == "active", users.c.has_factor.is_(used_up is not None))
            .values(last_login=now, **_rehashed(rehash))
        )
        with self._database.transaction() as connection:
            row = connection.execute(noted.returning(*USER_COLUMNS)).mappings().one_or_none()
            if row is None:
                return None
            user = to_user(row)
            if used_up is not None:
                use_up(connection, used_up, now, self._notices)
            add_session(connection, session)
            entries = end_oldest_beyond(connection, self._log, session, now, max_sessions)
            entries.append(self._log.draft(user, "logged_in"))
            return Committed(user, self._log.append(connection, entries))

    def note_logins(self, user_ids: Sequence[UserId], at: datetime) -> Committed[list[UserId]]:
        """
        Set the last login in one update; rows are locked in the order of ids, so that two batches cannot
        deadlock.
        """
        with self._database.transaction() as connection:
            locked = select(users.c.id).where(users.c.id.in_(user_ids)).order_by(users.c.id).with_for_update()
            found = list(connection.execute(locked).scalars())
            noted = (
                update(users).where(users.c.id.in_(found)).values(last_login=at, version=users.c.version + 1)
            )
            rows = connection.execute(noted.returning(*USER_COLUMNS)).mappings()
            entries = [self._log.draft(to_user(row), "login_noted") for row in rows]
            return Committed(found, self._log.append(connection, entries))

    def replace_password(
        self, verified: Credentials, new_hash: str, *, keep: SessionId
    ) -> Committed[User] | None:
        """
        Set the hash if the password is still that of *verified*; all sessions but *keep* end. Raises
        TokenInvalid if *keep* has ended.
        """
        now = self._clock()
        changed = self._still(verified).values(
            password_hash=new_hash, password_version=users.c.password_version + 1, updated_at=now
        )
        with self._database.transaction() as connection:
            row = connection.execute(changed.returning(*USER_COLUMNS)).mappings().one_or_none()
            if row is None:
                return None
            user = to_user(row)
            require_living(connection, user.id, keep, now)
            entries = end_sessions_of(connection, self._log, user.id, now, "password_changed", keep=keep)
            entries.append(self._log.draft(user, "password_changed"))
            end_tickets_of(connection, user.id, now)
            self._notices.add(connection, Template.PASSWORD_CHANGED, (user.email,), now)
            return Committed(user, self._log.append(connection, entries))

    def set_password(self, user_id: UserId, new_hash: str) -> Committed[User]:
        """Set the hash; all sessions end, and the epoch rises.  Raises NotFound."""
        now = self._clock()
        changed = (
            update(users)
            .where(users.c.id == user_id)
            .values(
                password_hash=new_hash,
                password_version=users.c.password_version + 1,
                epoch=users.c.epoch + 1,
                version=users.c.version + 1,
                updated_at=now,
            )
        )
        with self._database.transaction() as connection:
            row = connection.execute(changed.returning(*USER_COLUMNS)).mappings().one_or_none()
            if row is None:
                raise NotFound
            user = to_user(row)
            entries = end_sessions_of(connection, self._log, user.id, now, "password_changed")
            entries.append(self._log.draft(user, "password_changed", epoch=user.epoch))
            end_tickets_of(connection, user.id, now)
            self._notices.add(connection, Template.PASSWORD_CHANGED, (user.email,), now)
            return Committed(user, self._log.append(connection, entries))

    def _still(self, verified: Credentials) -> Update:
        """An update of the user if password and address are still those of *verified*."""
        return (
            update(users)
            .where(
                users.c.id == verified.user.id,
                users.c.email == verified.user.email,
                users.c.password_version == verified.password_version,
            )
            .values(version=users.c.version + 1)
        )


def _rehashed(rehash: Rehash | None) -> dict[str, object]:
    """The new hash, if the old one is still stored: a rehash never overwrites another change."""
    if rehash is None:
        return {}
    return {
        "password_hash": case((users.c.password_hash == rehash.old, rehash.new), else_=users.c.password_hash)
    }
