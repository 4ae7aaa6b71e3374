"""
What recovery and addresses share: how mails are asked for, and how their codes and links are recognised.

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
    """What everybody gets who asks for a mail; ``expires_in`` in seconds."""

    ticket: TicketId
    expires_in: int
    #: Which codes the confirmation takes.
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a caller shows of a ticket: the token of its link, or its id with a code."""

    token: str | None = None
    ticket: str | None = None
    code: str | None = None
    old_code: str | None = None

    def __repr__(self) -> str:
        """Without the token and the codes."""
        return "Shown()"


class RecoveryStore(Protocol):
    """What tickets do, each in the one transaction that uses the ticket up.  Raises StoreUnavailable."""

    def ask(self, ticket: Ticket, mails: Sequence[Mail], *, replaces_others: bool = False) -> None:
        """Store *ticket* and *mails*; where it *replaces_others*, the user's open tickets like it end."""

    def has_asked_since(self, user_id: UserId, purpose: Purpose, at: datetime) -> bool:
        """True if a ticket of *purpose* was made for the user after *at*."""

    def remind(self, ticket: Ticket, mail: Mail, *, unless_since: datetime) -> None:
        """Store both, unless the user got a ticket like it after *unless_since*, also at this moment."""

    def reset_password(self, ticket: Ticket, password_hash: str) -> Committed[Credentials]:
        """
        Set the password, prove the address, end every session and ticket, raise the epoch, write a notice.

        Raises CodeInvalid where the ticket is dead by now, as all below.
        """

    def prove_email(self, ticket: Ticket) -> Committed[User]:
        """Note that the user's address is proven."""

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
    """Stores tickets with their mails, within the limit of who gets them; wakes the sender."""

    store: RecoveryStore
    limits: Limits
    wake: Callable[[], object]
    clock: Clock

    def has_room(self, account: str) -> bool:
        """False where *account*, an address, had enough mails for now; counts one."""
        return self.limits.has_room(Rule.MAIL_ADDRESS, account_subject(account))

    def by_address(
        self, template: Template, typed: str, client_ip: str, ticket: Ticket, *, replaces_others: bool = False
    ) -> Asked:
        """A mail to the address *typed*, whatever it is, about *ticket*."""
        mail = new_mail(template, ticket.email, now=ticket.created_at, ticket=ticket, client_ip=client_ip)
        return self.send(ticket, [mail], ticket.email or typed, replaces_others=replaces_others)

    def send(
        self, ticket: Ticket, mails: Sequence[Mail], account: str, *, replaces_others: bool = False
    ) -> Asked:
        """Store *ticket* with those of *mails* whose recipient has room; *account* is what was typed."""
        allowed = [mail for mail in mails if self.has_room(mail.recipient or account)]
        self.store.ask(ticket, allowed, replaces_others=replaces_others)
        self.wake()
        return Asked(ticket.id, LIFE_S[ticket.purpose])


@dataclass(slots=True)
class Attempt:
    """One use of a ticket, from what the caller shows to the commit."""

    tickets: Tickets
    clock: Clock
    #: What is asked for; of the ticket, once it is found.
    purpose: Purpose

    def ticket(self, shown: Shown, *purposes: Purpose) -> Ticket:
        """The open ticket of *shown*; raises CodeInvalid."""
        wanted, now = frozenset({self.purpose, *purposes}), self.clock()
        if shown.token is not None:
            return self._found(self.tickets.by_token(shown.token, wanted, now=now))
        found = self.tickets.by_code(
            _named(shown.ticket), shown.code or "", wanted, now=now, old_code=shown.old_code
        )
        return self._found(found)

    def ticket_of(self, user_id: UserId, shown: Shown) -> Ticket:
        """An open ticket of a user; a code is compared with each of theirs, a wrong one counts on each."""
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
    """Stand in for a callback that nobody gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketProof:
    """Finds the ticket that a caller proves to hold, and counts wrong proofs by address."""

    tickets: Tickets
    limits: Limits
    clock: Clock
    #: Hears of each use: purpose, and ``used`` or ``code_invalid``.
    on_result: Callable[[str, str], None] = _uncounted

    @contextmanager
    def attempt(self, client_ip: str, purpose: Purpose) -> Iterator[Attempt]:
        """Count one attempt of *client_ip*; give it back unless it was wrong.  Raises RateLimited."""
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
    """*ticket* for the user of *credentials*, with the password and address that they have now."""
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
