"""One-time tickets in SQL; single conditional statements add, try and use them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select, update

from authsvc.domain.accounts.tickets import MOST_FAILURES, Purpose, Ticket, TicketId
from authsvc.domain.users import Profile
from authsvc.domain.values.identifiers import UserId
from authsvc.store.sql import Database
from authsvc.store.tables import tickets

_FIELDS = tuple(column.name for column in tickets.columns if column.name not in {"purpose", "profile"})


class SqlTicketStore:
    """Tickets as rows; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, ticket_id: TicketId) -> Ticket | None:
        """The ticket, even if it is no longer valid."""
        with self._database.read() as connection:
            row = connection.execute(select(tickets).where(tickets.c.id == ticket_id)).mappings().first()
        return to_ticket(row) if row else None

    def count_try(self, ticket_id: TicketId, *, now: datetime) -> Ticket | None:
        """Count one try of the code before it is compared; None if no try is left."""
        counted = (
            update(tickets)
            .where(tickets.c.id == ticket_id, _is_open(now), tickets.c.failures < MOST_FAILURES)
            .values(failures=tickets.c.failures + 1)
            .returning(tickets)
        )
        with self._database.transaction() as connection:
            row = connection.execute(counted).mappings().first()
        return to_ticket(row) if row else None

    def forgive_try(self, ticket_id: TicketId) -> None:
        """Uncount one try that was correct."""
        forgiven = (
            update(tickets)
            .where(tickets.c.id == ticket_id, tickets.c.failures > 0)
            .values(failures=tickets.c.failures - 1)
        )
        with self._database.transaction() as connection:
            connection.execute(forgiven)

    def open_of(self, user_id: UserId, purpose: Purpose, *, now: datetime) -> list[Ticket]:
        """The open tickets of a user, the newest first."""
        statement = (
            select(tickets)
            .where(tickets.c.user_id == user_id, tickets.c.purpose == purpose, _is_open(now))
            .order_by(tickets.c.created_at.desc())
        )
        with self._database.read() as connection:
            return [to_ticket(row) for row in connection.execute(statement).mappings()]


def add_ticket(connection: Connection, ticket: Ticket) -> None:
    """Insert *ticket* in the caller's transaction."""
    connection.execute(insert(tickets).values(_from_ticket(ticket)))


def use_ticket(connection: Connection, ticket: Ticket, now: datetime) -> bool:
    """
    Mark *ticket* as used, in the caller's transaction; False if another request was faster, or it has
    expired.
    """
    used = (
        update(tickets)
        .where(tickets.c.id == ticket.id, _is_open(now))
        .values(used_at=now, password_hash=None)
    )
    return connection.execute(used).rowcount == 1


def end_tickets_of(
    connection: Connection, user_id: UserId, now: datetime, *, purpose: Purpose | None = None
) -> None:
    """End the open tickets of a user, of one *purpose* or of all."""
    ended = update(tickets).where(tickets.c.user_id == user_id, tickets.c.used_at.is_(None))
    if purpose is not None:
        ended = ended.where(tickets.c.purpose == purpose)
    connection.execute(ended.values(used_at=now))


def to_ticket(row: RowMapping) -> Ticket:
    """The ticket in *row*."""
    fields: dict[str, Any] = {name: row[tickets.c[name]] for name in _FIELDS}
    profile = row[tickets.c.profile]
    return Ticket(
        **fields,
        purpose=Purpose(row[tickets.c.purpose]),
        profile=Profile(**profile, given=frozenset(profile)) if profile is not None else None,
    )


def _from_ticket(ticket: Ticket) -> dict[str, Any]:
    row = {name: getattr(ticket, name) for name in _FIELDS}
    return row | {"purpose": ticket.purpose.value, "profile": _from_profile(ticket.profile)}


def _from_profile(profile: Profile | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    return {name: value for name, value in asdict(profile).items() if name in profile.given}


def _is_open(now: datetime) -> ColumnElement[bool]:
    return and_(tickets.c.used_at.is_(None), tickets.c.expires_at > now)
