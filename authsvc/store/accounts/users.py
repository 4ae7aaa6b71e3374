"""Users in SQL."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, select, true, update

from authsvc.domain.accounts.mails import Template
from authsvc.domain.errors import EmailTaken, LastAdmin, NotFound, StoreUnavailable
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.users import BUILT_IN, Role, User, UserFilter
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.accounts.mails import NO_NOTICES, Notices
from authsvc.store.accounts.tickets import end_tickets_of
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sessions import end_sessions_of, locked_user, require_living
from authsvc.store.sql import Database, is_taken
from authsvc.store.tables import USER_COLUMNS, from_user, split_roles, to_user, users

#: A lock for all changes that remove an admin, so that two of them cannot remove the last two admins.
ADMIN_LOCK = 0x61757468_0002


class SqlUserStore:
    """Users as rows; the unique index on the canonical address resolves races."""

    def __init__(
        self, database: Database, log: SqlRevocationLog, clock: Clock, notices: Notices = NO_NOTICES
    ) -> None:
        self._notices = notices
        self._database = database
        self._log = log
        self._clock = clock

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert; raises EmailTaken."""
        row = from_user(user) | {"password_hash": password_hash, "password_version": 1}
        with refusing_taken(), self._database.transaction() as connection:
            connection.execute(insert(users).values(row))
            return Committed(user, self._log.append(connection, [self._log.draft(user, "registered")]))

    def get(self, user_id: UserId) -> User:
        """Raises NotFound."""
        user = self._one(select(*USER_COLUMNS).where(users.c.id == user_id))
        if user is None:
            raise NotFound
        return user

    def get_many(self, user_ids: Sequence[UserId]) -> dict[UserId, User]:
        """Those that exist, in one query."""
        if not user_ids:
            return {}
        statement = select(*USER_COLUMNS).where(users.c.id.in_(user_ids))
        with self._database.read() as connection:
            found = [to_user(row) for row in connection.execute(statement).mappings()]
        return {user.id: user for user in found}

    def find(self, email: Email) -> User | None:
        """The user with the canonical address *email*."""
        return self._one(select(*USER_COLUMNS).where(users.c.email == email))

    def change(self, user_id: UserId, rule: Callable[[User], User]) -> Committed[User]:
        """Apply *rule* under the row lock; see the protocol."""
        with refusing_taken(), self._database.transaction() as connection:
            user = locked_user(connection, user_id)
            wanted = rule(user)
            if _is_same(wanted, user):
                # This may repeat a change whose entry has not reached Redis: write it again.
                return Committed(user, (self._log.draft(user, "repeated", epoch=user.epoch),))
            self._keep_an_admin(connection, user, wanted)
            stored = replace(wanted, version=user.version + 1, updated_at=self._clock())
            connection.execute(update(users).where(users.c.id == user_id).values(from_user(stored)))
            return Committed(
                stored, self._log.append(connection, self._consequences(connection, user, stored))
            )

    def remove(self, user_id: UserId, *, within: SessionId | None = None) -> Committed[User]:
        """Delete the user with their sessions; tombstones and the raised epoch stay in Redis."""
        with self._database.transaction() as connection:
            user = locked_user(connection, user_id)
            if within is not None:
                require_living(connection, user_id, within, self._clock())
            self._keep_an_admin(connection, user, None)
            entries = end_sessions_of(connection, self._log, user_id, self._clock(), "user_deleted")
            entries.append(self._log.draft(user, "user_deleted", epoch=user.epoch + 1, drops_all=True))
            connection.execute(delete(users).where(users.c.id == user_id))
            return Committed(user, self._log.append(connection, entries))

    def page(self, wanted: UserFilter) -> list[User]:
        """The users of the page and one more, in the order of ids."""
        statement = select(*USER_COLUMNS).order_by(users.c.id).limit(wanted.limit + 1)
        if wanted.role is not None:
            statement = statement.where(_has_role(wanted.role))
        if wanted.status is not None:
            statement = statement.where(users.c.status == wanted.status)
        if wanted.after is not None:
            statement = statement.where(users.c.id > wanted.after)
        with self._database.read() as connection:
            return [to_user(row) for row in connection.execute(statement).mappings()]

    def _one(self, statement: Select[tuple[object, ...]]) -> User | None:
        with self._database.read() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return to_user(row) if row else None

    def _consequences(self, connection: Connection, old: User, new: User) -> list[Revocation]:
        """The log entries that a change causes, for tokens, sessions and cached copies."""
        epoch = new.epoch if new.epoch > old.epoch else None
        entries = [self._log.draft(new, "user_changed", epoch=epoch)]
        if old.is_active and not new.is_active:
            entries += end_sessions_of(connection, self._log, new.id, self._clock(), "user_disabled")
            end_tickets_of(connection, new.id, self._clock())
        if old.email != new.email:
            # The cached entries of both addresses are out of date.
            entries.append(self._log.draft(old, "email_changed", drops_all=True))
            entries += end_sessions_of(connection, self._log, new.id, self._clock(), "email_changed")
            end_tickets_of(connection, new.id, self._clock())
            self._notices.add(connection, Template.EMAIL_CHANGED, (new.email, old.email), self._clock())
        return entries

    def _keep_an_admin(self, connection: Connection, old: User, new: User | None) -> None:
        """Raise LastAdmin if no active admin would be left."""
        was = old.is_admin and old.is_active
        stays = new is not None and new.is_admin and new.is_active
        if not was or stays:
            return
        if self._database.is_postgresql:
            connection.execute(select(func.pg_advisory_xact_lock(ADMIN_LOCK)))
        others = select(func.count()).where(
            users.c.is_admin.is_(True), users.c.status == "active", users.c.id != old.id
        )
        if connection.execute(others).scalar_one() == 0:
            raise LastAdmin


@contextmanager
def refusing_taken() -> Iterator[None]:
    """Raise EmailTaken if a row was rejected because its address exists; other errors pass."""
    try:
        yield
    except StoreUnavailable as error:
        if is_taken(error, users.c.email):
            raise EmailTaken from error
        raise


def roles_in_use(database: Database) -> Counter[Role]:
    """How many users have each role that is neither ``user`` nor ``admin``."""
    statement = (
        select(users.c.extra_roles, func.count())
        .where(users.c.extra_roles != "")
        .group_by(users.c.extra_roles)
    )
    counts = Counter[Role]()
    with database.read() as connection:
        for stored, count in connection.execute(statement):
            counts.update(dict.fromkeys(split_roles(stored), count))
    return counts


def recent_user_ids(database: Database, *, most: int) -> list[str]:
    """The ids of the users who logged in last."""
    statement = (
        select(users.c.id)
        .where(users.c.last_login.is_not(None))
        .order_by(users.c.last_login.desc())
        .limit(most)
    )
    with database.read() as connection:
        return list(connection.execute(statement).scalars())


def _has_role(role: Role) -> ColumnElement[bool]:
    if role in BUILT_IN:
        return users.c.is_admin.is_(True) if role == "admin" else true()
    # The first condition is that of the index.
    return and_(users.c.extra_roles != "", users.c.extra_roles.contains(f",{role},", autoescape=True))


def _is_same(one: User, other: User) -> bool:
    """True if equal, also as JSON text, which distinguishes ``1`` from ``true`` and orders of members."""
    return one == other and json.dumps(one.preferences) == json.dumps(other.preferences)
