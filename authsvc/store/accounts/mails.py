"""
The outbox in SQL: mails are added in the transaction that causes them, claimed under a lease, and settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from authsvc.domain.accounts.mails import Delivery, Mail, MailId, MailState, Template, new_mail
from authsvc.domain.accounts.tickets import Purpose, Ticket
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.store.accounts.tickets import to_ticket
from authsvc.store.sql import Database
from authsvc.store.tables import USER_COLUMNS, mails, tickets, to_user, users

_FIELDS = tuple(
    column.name
    for column in mails.columns
    if column.name not in {"template", "state", "is_urgent", "lease_owner", "lease_until", "waits_for_relay"}
)


class SqlOutbox:
    """Mails as rows; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, *, most: int, now: datetime, owner: str, lease_s: float) -> Sequence[Delivery]:
        """Take up to *most* due mails for *lease_s* seconds, and bind tickets asked for by address."""
        due = (
            select(mails.c.id)
            .where(_is_free(now), mails.c.next_try_at <= now)
            .order_by(mails.c.is_urgent.desc(), mails.c.next_try_at, mails.c.id)
            .limit(most)
            # SQLite has no row locks and needs none: it has one writer at a time.
            .with_for_update(skip_locked=True)
            # A CTE is evaluated once. A subquery might run for each row, and lock more than *most* rows.
            .cte("due")
        )
        taken = (
            update(mails)
            .where(mails.c.id.in_(select(due.c.id)))
            .values(
                lease_owner=owner,
                lease_until=now + timedelta(seconds=lease_s),
                attempts=mails.c.attempts + 1,
            )
            .returning(mails)
        )
        with self._database.transaction() as connection:
            claimed = [to_mail(row) for row in connection.execute(taken).mappings()]
            claimed.sort(key=lambda mail: (not mail.is_urgent, mail.next_try_at, mail.id))
            return [_delivery(connection, mail) for mail in claimed]

    def settle(
        self,
        mail: Mail,
        state: MailState,
        *,
        owner: str,
        now: datetime,
        next_try_at: datetime | None = None,
        waits_for_relay: bool = False,
    ) -> bool:
        """Store the result of an attempt; False if the lease was lost and another sender has the mail."""
        settled = (
            update(mails)
            .where(
                mails.c.id == mail.id, mails.c.lease_owner == owner, mails.c.state == MailState.QUEUED.value
            )
            .values(
                state=state.value,
                lease_owner=None,
                lease_until=None,
                next_try_at=next_try_at or mail.next_try_at,
                waits_for_relay=waits_for_relay,
                sent_at=now if state is MailState.SENT else None,
            )
        )
        with self._database.transaction() as connection:
            return connection.execute(settled).rowcount == 1

    def release(self, mail: Mail, *, owner: str) -> None:
        """Release a claimed mail that was not begun; this does not count as an attempt."""
        released = (
            update(mails)
            .where(mails.c.id == mail.id, mails.c.lease_owner == owner)
            .values(lease_owner=None, lease_until=None, attempts=mails.c.attempts - 1)
        )
        with self._database.transaction() as connection:
            connection.execute(released)

    def bring_forward(self, *, now: datetime) -> None:
        """Make mails due that wait because the connection was lost."""
        # Rows locked by others are being claimed, or brought forward.
        waiting = (
            select(mails.c.id)
            .where(_is_free(now), mails.c.next_try_at > now, mails.c.waits_for_relay.is_(True))
            .with_for_update(skip_locked=True)
            .cte("waiting")
        )
        sooner = update(mails).where(mails.c.id.in_(select(waiting.c.id))).values(next_try_at=now)
        with self._database.transaction() as connection:
            connection.execute(sooner)

    def waiting(self, *, now: datetime) -> tuple[int, float]:
        """The number of waiting mails, and the age of the oldest in seconds."""
        statement = select(func.count(), func.min(mails.c.asked_at)).where(
            mails.c.state == MailState.QUEUED.value
        )
        with self._database.read() as connection:
            count, oldest = connection.execute(statement).one()
        return count, max(0.0, (now - oldest).total_seconds()) if oldest else 0.0

    def page(self, *, most: int) -> list[Mail]:
        """The newest *most* mails."""
        statement = select(mails).order_by(mails.c.id.desc()).limit(most)
        with self._database.read() as connection:
            return [to_mail(row) for row in connection.execute(statement).mappings()]

    def retry(self, mail_id: MailId, *, now: datetime, ends_at: datetime) -> bool:
        """
        Make a waiting or failed mail due at once, with *ends_at* as its earliest end. False if there is none,
        or if it is being sent now.
        """
        again = (
            update(mails)
            .where(mails.c.id == mail_id, or_(mails.c.state == MailState.FAILED.value, _is_free(now)))
            .values(
                state=MailState.QUEUED.value,
                attempts=0,
                next_try_at=now,
                lease_owner=None,
                lease_until=None,
                ends_at=case((mails.c.ends_at < ends_at, ends_at), else_=mails.c.ends_at),
            )
        )
        with self._database.transaction() as connection:
            return connection.execute(again).rowcount == 1


def add_mail(connection: Connection, mail: Mail) -> None:
    """Insert *mail* in the caller's transaction."""
    row = {name: getattr(mail, name) for name in _FIELDS}
    row |= {"template": mail.template.value, "state": mail.state.value}
    row |= {"is_urgent": mail.is_urgent, "waits_for_relay": False}
    connection.execute(insert(mails).values(row))


@dataclass(frozen=True, slots=True)
class Notices:
    """Adds notices about changes of an account, if mails are sent."""

    are_sent: bool

    def add(
        self, connection: Connection, template: Template, recipients: Iterable[Email], now: datetime
    ) -> None:
        """Insert one notice for each of *recipients* in the caller's transaction."""
        for recipient in recipients if self.are_sent else ():
            add_mail(connection, new_mail(template, recipient, now=now))


NO_NOTICES = Notices(are_sent=False)


def to_mail(row: RowMapping) -> Mail:
    """The mail in *row*."""
    fields: dict[str, Any] = {name: row[mails.c[name]] for name in _FIELDS}
    return Mail(**fields, template=Template(row[mails.c.template]), state=MailState(row[mails.c.state]))


def _delivery(connection: Connection, mail: Mail) -> Delivery:
    """*mail* with its ticket and the account that has its address."""
    statement = select(*USER_COLUMNS, users.c.password_version).where(users.c.email == mail.recipient)
    row = connection.execute(statement).mappings().first()
    user = to_user(row) if row else None
    ticket = _ticket(connection, mail)
    if ticket is not None and ticket.user_id is None and row is not None and _is_asked_by_address(ticket):
        ticket = _bound(connection, ticket, to_user(row), row[users.c.password_version])
    return Delivery(mail=mail, ticket=ticket, user=user)


def _ticket(connection: Connection, mail: Mail) -> Ticket | None:
    if mail.ticket_id is None:
        return None
    row = connection.execute(select(tickets).where(tickets.c.id == mail.ticket_id)).mappings().first()
    return to_ticket(row) if row else None


def _is_asked_by_address(ticket: Ticket) -> bool:
    return ticket.purpose in {Purpose.RESET, Purpose.VERIFY}


def _bound(connection: Connection, ticket: Ticket, user: User, password_version: int) -> Ticket:
    """*ticket*, bound to *user* and to their current password and address."""
    bound = replace(ticket, user_id=user.id, bound_email=user.email, password_version=password_version)
    values = {"user_id": user.id, "bound_email": user.email, "password_version": password_version}
    connection.execute(
        update(tickets).where(tickets.c.id == ticket.id, tickets.c.user_id.is_(None)).values(values)
    )
    return bound


def _is_free(now: datetime) -> ColumnElement[bool]:
    """The condition that a mail waits and is not claimed."""
    no_lease = or_(mails.c.lease_until.is_(None), mails.c.lease_until <= now)
    return and_(mails.c.state == MailState.QUEUED.value, no_lease)
