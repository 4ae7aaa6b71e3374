"""
Shared by recovery and addresses: requests for mails, and verification of their codes and links.

Whoever asks for a mail by address gets the same answer in the same time, whether or not an account has the
address: the request stores a ticket and a mail, and the sender of mails looks for the account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from authsvc.domain.accounts.mails import Mail, Template, new_mail
from authsvc.domain.accounts.tickets import LIFE_S, Purpose, Ticket, TicketId, Tickets
from authsvc.domain.credentials import Credentials
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.ratelimits import Limits, Rule, account_subject, ip_subject
from authsvc.domain.revocations import Committed
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, UserId, canonical_id


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to every request for a mail; ``expires_in`` in seconds."""

    ticket: TicketId
    expires_in: int
    #: The codes that the confirmation needs.
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a caller presents: the token of a ticket's link, or the ticket's id with a code."""

    token: str | None = None
    ticket: str | None = None
    code: str | None = None
    old_code: str | None = None

    def __repr__(self) -> str:
        """Without the token and the codes."""
        return "Shown()"


class RecoveryStore(Protocol):
    """Operations on tickets. Each redeems its ticket in the same transaction. Raises StoreUnavailable."""

    def ask(self, ticket: Ticket, mails: Sequence[Mail], *, replaces_others: bool = False) -> None:
        """
        Store *ticket* and *mails*; with *replaces_others*, cancel the user's open tickets of the same
        purpose.
        """

    def has_asked_since(self, user_id: UserId, purpose: Purpose, at: datetime) -> bool:
        """True if a ticket of *purpose* was made for the user after *at*."""

    def remind(self, ticket: Ticket, mail: Mail, *, unless_since: datetime) -> None:
        """
        Store both, unless the user got a ticket of the same purpose after *unless_since*; safe in a race.
        """

    def reset_password(self, ticket: Ticket, password_hash: str) -> Committed[Credentials]:
        """
        Set the password, mark the address as verified, end all sessions and tickets, raise the epoch, send a
        notice.

        Raises CodeInvalid if the ticket is no longer valid; so do all methods below.
        """

    def prove_email(self, ticket: Ticket) -> Committed[User]:
        """Mark the user's address as verified."""

    def confirm_registration(self, ticket: Ticket, user: User) -> Committed[User]:
        """Create *user* with the ticket's password; raises EmailTaken."""

    def change_email(self, ticket: Ticket, *, keep: SessionId) -> Committed[User]:
        """
        Set the address, end every session but *keep* and every ticket, write notices to both addresses.

        Raises CodeInvalid, EmailTaken, and TokenInvalid where *keep* has ended.
        """

    def add_user(self, user: User, password_hash: str, ticket: Ticket, mail: Mail | None) -> Committed[User]:
        """Insert *user* with *ticket* and *mail*; raises EmailTaken."""

    def lock_password(self, user_id: UserId, password_hash: str) -> Committed[User]:
        """Set *password_hash*, end every session and ticket, raise the epoch; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailRequests:
    """Stores tickets with their mails, within the limit of each recipient; wakes the sender."""

    store: RecoveryStore
    limits: Limits
    wake: Callable[[], object]
    clock: Clock

    def has_room(self, account: str) -> bool:
        """False if *account*, an address, has reached its limit of mails; else counts one."""
        return self.limits.has_room(Rule.MAIL_ADDRESS, account_subject(account))

    def by_address(
        self, template: Template, typed: str, client_ip: str, ticket: Ticket, *, replaces_others: bool = False
    ) -> Asked:
        """Store *ticket* and a mail to the address *typed*, which may be malformed or unknown."""
        mail = new_mail(template, ticket.email, now=ticket.created_at, ticket=ticket, client_ip=client_ip)
        return self.send(ticket, [mail], ticket.email or typed, replaces_others=replaces_others)

    def send(
        self, ticket: Ticket, mails: Sequence[Mail], account: str, *, replaces_others: bool = False
    ) -> Asked:
        """
        Store *ticket* with those of *mails* whose recipient is within the limit; *account* is the address as
        typed.
        """
        allowed = [mail for mail in mails if self.has_room(mail.recipient or account)]
        self.store.ask(ticket, allowed, replaces_others=replaces_others)
        self.wake()
        return Asked(ticket.id, LIFE_S[ticket.purpose])


@dataclass(slots=True)
class Attempt:
    """One use of a ticket, from what the caller presents to the commit."""

    tickets: Tickets
    clock: Clock
    #: The expected purpose; that of the ticket, once it is found.
    purpose: Purpose

    def ticket(self, shown: Shown, *purposes: Purpose) -> Ticket:
        """The open ticket that *shown* proves; raises CodeInvalid."""
        wanted, now = frozenset({self.purpose, *purposes}), self.clock()
        if shown.token is not None:
            return self._found(self.tickets.by_token(shown.token, wanted, now=now))
        found = self.tickets.by_code(
            _named(shown.ticket), shown.code or "", wanted, now=now, old_code=shown.old_code
        )
        return self._found(found)

    def ticket_of(self, user_id: UserId, shown: Shown) -> Ticket:
        """
        The open ticket of a user that matches; a code is compared with all of theirs, and a wrong one counts
        for each.
        """
        if shown.token is None:
            return self.tickets.by_code_of(user_id, shown.code or "", self.purpose, now=self.clock())
        ticket = self.ticket(shown)
        if ticket.user_id != user_id:
            raise CodeInvalid("somebody else's")
        return ticket

    def _found(self, ticket: Ticket) -> Ticket:
        self.purpose = ticket.purpose
        return ticket


def _uncounted(_purpose: str, _result: str) -> None:
    """The default callback: does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketProof:
    """Finds the ticket for a presented code or token; counts wrong ones by client address."""

    tickets: Tickets
    limits: Limits
    clock: Clock
    #: Called for each use with purpose and result: ``used`` or ``code_invalid``.
    on_result: Callable[[str, str], None] = _uncounted

    @contextmanager
    def attempt(self, client_ip: str, purpose: Purpose) -> Iterator[Attempt]:
        """Count one attempt of *client_ip*; uncount it unless the proof was wrong. Raises RateLimited."""
        taken = self.limits.take(Rule.CODE_IP, ip_subject(client_ip))
        attempt = Attempt(self.tickets, self.clock, purpose)
        try:
            yield attempt
        except CodeInvalid as refusal:
            self.on_result(attempt.purpose.value, refusal.code)
            raise
        except BaseException:
            self.limits.refund(taken)
            raise
        self.limits.refund(taken)
        self.on_result(attempt.purpose.value, "used")


def bound(ticket: Ticket, credentials: Credentials) -> Ticket:
    """*ticket*, bound to the user of *credentials* and to their current password and address."""
    user = credentials.user
    return replace(
        ticket, user_id=user.id, bound_email=user.email, password_version=credentials.password_version
    )


def _named(text: str | None) -> TicketId:
    """The id of a ticket, in either case; raises CodeInvalid."""
    ident = canonical_id(text or "")
    if ident is None:
        raise CodeInvalid("not an identifier")
    return TicketId(ident)
