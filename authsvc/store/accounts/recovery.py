"""
Operations on tickets in SQL. Each is one transaction, with the conditional update that marks the ticket as
used.

The user's row is locked before the ticket's, as in a password change; the other order could deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, insert, select, update

from authsvc.domain.accounts.mails import Mail, Template
from authsvc.domain.accounts.tickets import Purpose, Ticket
from authsvc.domain.credentials import Credentials
from authsvc.domain.errors import CodeInvalid, NotFound
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.accounts.credentials import CREDENTIAL_COLUMNS, to_credentials
from authsvc.store.accounts.mails import Notices, add_mail
from authsvc.store.accounts.tickets import add_ticket, end_tickets_of, use_ticket
from authsvc.store.accounts.users import refusing_taken
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sessions import end_sessions_of, locked_user, require_living
from authsvc.store.sql import Database
from authsvc.store.tables import USER_COLUMNS, from_user, tickets, to_user, users

#: The store exists only if mails are sent.
_NOTICES = Notices(are_sent=True)


class SqlRecoveryStore:
    """Uses tickets and changes accounts in one transaction."""

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock

    def ask(self, ticket: Ticket, mails: Sequence[Mail], *, replaces_others: bool = False) -> None:
        """
        Store *ticket* and *mails*; with *replaces_others*, cancel the user's open tickets of the same
        purpose.
        """
        with self._database.transaction() as connection:
            if replaces_others and ticket.user_id is not None:
                # Without the lock, concurrent requests would not see each other's ticket.
                locked_user(connection, ticket.user_id)
                end_tickets_of(connection, ticket.user_id, self._clock(), purpose=ticket.purpose)
            add_ticket(connection, ticket)
            for mail in mails:
                add_mail(connection, mail)

    def has_asked_since(self, user_id: UserId, purpose: Purpose, at: datetime) -> bool:
        """True if a ticket of *purpose* was made for the user after *at*."""
        with self._database.read() as connection:
            return _has_asked_since(connection, user_id, purpose, at)

    def remind(self, ticket: Ticket, mail: Mail, *, unless_since: datetime) -> None:
        """
        Store both, unless the user got a ticket of the same purpose after *unless_since*; safe in a race.
        """
        if ticket.user_id is None:
            raise ValueError("a reminder is for a user")
        with self._database.transaction() as connection:
            locked_user(connection, ticket.user_id)
            if not _has_asked_since(connection, ticket.user_id, ticket.purpose, unless_since):
                add_ticket(connection, ticket)
                add_mail(connection, mail)

    def reset_password(self, ticket: Ticket, password_hash: str) -> Committed[Credentials]:
        """Set the password, mark the address as verified, end all sessions and tickets, raise the epoch."""
        now = self._clock()
        with self._database.transaction() as connection:
            row = self._used(connection, ticket, now, **_new_password(password_hash), email_verified=True)
            entries = self._cut_off(connection, to_user(row), "password_reset")
            _NOTICES.add(connection, Template.PASSWORD_RESET, (to_user(row).email,), now)
            return Committed(to_credentials(row), self._log.append(connection, entries))

    def prove_email(self, ticket: Ticket) -> Committed[User]:
        """Mark the user's address as verified."""
        now = self._clock()
        with self._database.transaction() as connection:
            user = to_user(self._used(connection, ticket, now, email_verified=True))
            end_tickets_of(connection, user.id, now, purpose=Purpose.VERIFY)
            return Committed(user, self._log.append(connection, [self._log.draft(user, "email_verified")]))

    def confirm_registration(self, ticket: Ticket, user: User) -> Committed[User]:
        """Create *user* with the ticket's password; the first confirmed registration of an address wins."""
        row = from_user(user) | {"password_hash": ticket.password_hash, "password_version": 1}
        with refusing_taken(), self._database.transaction() as connection:
            if not use_ticket(connection, ticket, self._clock()):
                raise CodeInvalid("used or expired")
            connection.execute(insert(users).values(row))
            return Committed(user, self._log.append(connection, [self._log.draft(user, "registered")]))

    def change_email(self, ticket: Ticket, *, keep: SessionId) -> Committed[User]:
        """
        Set the address, end all sessions but *keep* and all tickets, notify both addresses. Raises
        TokenInvalid if *keep* has ended.
        """
        now, new = self._clock(), ticket.email
        with refusing_taken(), self._database.transaction() as connection:
            user = to_user(self._used(connection, ticket, now, email=new, email_verified=True))
            require_living(connection, user.id, keep, now)
            entries = end_sessions_of(connection, self._log, user.id, now, "email_changed", keep=keep)
            # Two entries, because cached copies exist under the old address, too.
            entries.append(self._log.draft(user, "email_changed"))
            old = replace(user, email=ticket.bound_email or user.email)
            entries.append(self._log.draft(old, "email_changed", drops_all=True))
            end_tickets_of(connection, user.id, now)
            _NOTICES.add(connection, Template.EMAIL_CHANGED, (user.email, old.email), now)
            return Committed(user, self._log.append(connection, entries))

    def add_user(self, user: User, password_hash: str, ticket: Ticket, mail: Mail | None) -> Committed[User]:
        """Insert *user* with *ticket* and *mail*; raises EmailTaken."""
        row = from_user(user) | {"password_hash": password_hash, "password_version": 1}
        with refusing_taken(), self._database.transaction() as connection:
            connection.execute(insert(users).values(row))
            add_ticket(connection, ticket)
            if mail is not None:
                add_mail(connection, mail)
            return Committed(user, self._log.append(connection, [self._log.draft(user, "registered")]))

    def lock_password(self, user_id: UserId, password_hash: str) -> Committed[User]:
        """Set *password_hash*, end every session and ticket, raise the epoch; raises NotFound."""
        now = self._clock()
        locked = (
            update(users)
            .where(users.c.id == user_id)
            .values(version=users.c.version + 1, updated_at=now, **_new_password(password_hash))
            .returning(*USER_COLUMNS)
        )
        with self._database.transaction() as connection:
            row = connection.execute(locked).mappings().one_or_none()
            if row is None:
                raise NotFound
            user = to_user(row)
            return Committed(user, self._log.append(connection, self._cut_off(connection, user, "locked")))

    def _used(self, connection: Connection, ticket: Ticket, now: datetime, **values: object) -> RowMapping:
        """
        Mark *ticket* as used and set *values* of its user, who must be active and unchanged since it was
        bound.

        Raises CodeInvalid.
        """
        statement = (
            update(users)
            .where(
                and_(
                    users.c.id == ticket.user_id,
                    users.c.email == ticket.bound_email,
                    users.c.password_version == ticket.password_version,
                    users.c.status == "active",
                )
            )
            .values(version=users.c.version + 1, updated_at=now, **values)
            .returning(*USER_COLUMNS, *CREDENTIAL_COLUMNS)
        )
        row = connection.execute(statement).mappings().one_or_none()
        if row is None or not use_ticket(connection, ticket, now):
            raise CodeInvalid("used or expired, or its user has changed")
        return row

    def _cut_off(self, connection: Connection, user: User, reason: str) -> list[Revocation]:
        """End all sessions and tickets of *user*, whose epoch has just risen; returns the log entries."""
        entries = end_sessions_of(connection, self._log, user.id, self._clock(), reason)
        end_tickets_of(connection, user.id, self._clock())
        return [*entries, self._log.draft(user, reason, epoch=user.epoch)]


def _has_asked_since(connection: Connection, user_id: UserId, purpose: Purpose, at: datetime) -> bool:
    found = select(tickets.c.id).where(
        tickets.c.user_id == user_id, tickets.c.purpose == purpose.value, tickets.c.created_at > at
    )
    return connection.execute(found.limit(1)).first() is not None


def _new_password(password_hash: str) -> dict[str, Any]:
    """The column values for a password that was not changed within a session: all tokens are revoked."""
    return {
        "password_hash": password_hash,
        "password_version": users.c.password_version + 1,
        "epoch": users.c.epoch + 1,
    }
