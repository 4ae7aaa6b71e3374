"""Mails that wait in the outbox: what they are about, when they are tried again, and when that ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.accounts.tickets import Ticket
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import timed_id

MailId = NewType("MailId", str)

#: A notice is worth sending for so long; other mails as long as their ticket.
NOTICE_LIFE_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class MailTimings:
    """How long mails wait, and are waited for (seconds)."""

    #: A sender that died holds its mails for so long.
    lease_s: float = 60
    #: A claimed mail is begun within so long or given back: with the 30 s that it may take, that leaves 10 s
    #: of the lease for clocks that differ.
    begun_within_s: float = 20.0
    #: Tried again after so long, then once an hour.
    retry_after_s: tuple[float, ...] = (5, 30, 120, 600, 1_800)
    hourly_s: float = 3_600
    #: The sender looks for mails so often, unless it is woken.
    interval_s: float = 1.0
    #: After several failures in a row nothing is tried for so long.
    pause_s: float = 30.0
    #: Mail is said to be delayed once the oldest has waited for longer.
    delayed_s: float = 10.0

    def next_try(self, mail: Mail, now: datetime) -> datetime | None:
        """When *mail*, whose try number ``attempts`` has just failed, is tried again; None: never."""
        tries = len(self.retry_after_s)
        delay_s = self.retry_after_s[mail.attempts - 1] if mail.attempts <= tries else self.hourly_s
        at = now + timedelta(seconds=delay_s)
        return at if at < mail.ends_at else None


class Template(StrEnum):
    """What a mail says; the name of its files."""

    VERIFY = "verify"
    REGISTER = "register"
    RESET = "reset"
    INVITE = "invite"
    CHANGE = "change"
    CHANGE_OLD = "change_old"
    TAKEN = "taken"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - the name of a template
    PASSWORD_RESET = "password_reset"  # noqa: S105 - the name of a template
    EMAIL_CHANGED = "email_changed"
    FACTOR_ADDED = "factor_added"
    FACTOR_REMOVED = "factor_removed"
    FACTOR_LOCKED = "factor_locked"
    FACTORS_RESET = "factors_reset"
    RECOVERY_USED = "recovery_used"
    RECOVERY_RENEWED = "recovery_renewed"
    SECOND_FACTOR_FAILED = "second_factor_failed"


#: What tells people that something was done to their account.
NOTICES = frozenset(
    {
        *(Template.PASSWORD_CHANGED, Template.PASSWORD_RESET, Template.EMAIL_CHANGED),
        *(Template.FACTOR_ADDED, Template.FACTOR_REMOVED, Template.FACTOR_LOCKED, Template.FACTORS_RESET),
        *(Template.RECOVERY_USED, Template.RECOVERY_RENEWED, Template.SECOND_FACTOR_FAILED),
    }
)
#: Sent before all others: somebody waits for a reset, or should hear of an attack.
URGENT = NOTICES | {Template.RESET}


class MailState(StrEnum):
    """Where a mail is."""

    QUEUED = "queued"
    SENT = "sent"
    #: Refused for good, or its time ran out.
    FAILED = "failed"
    #: There was nobody to send it to, or nothing to say any more.
    VOID = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One row of the outbox; it holds no code and no link, only the ticket that they are made of."""

    id: MailId
    template: Template
    recipient: Email | None = field(repr=False)
    ticket_id: str | None
    #: Who asked, and when: what the mail tells its reader.
    client_ip: str | None
    asked_at: datetime
    #: Tried until then.
    ends_at: datetime
    state: MailState = MailState.QUEUED
    attempts: int = 0
    next_try_at: datetime
    sent_at: datetime | None = None

    @property
    def is_urgent(self) -> bool:
        """Goes before others."""
        return self.template in URGENT


def new_mail(
    template: Template,
    recipient: Email | None,
    *,
    now: datetime,
    ticket: Ticket | None = None,
    client_ip: str | None = None,
) -> Mail:
    """A mail that is due at once."""
    return Mail(
        id=MailId(timed_id(now)),
        template=template,
        recipient=recipient,
        ticket_id=ticket.id if ticket else None,
        client_ip=client_ip,
        asked_at=now,
        ends_at=ticket.expires_at if ticket else now + timedelta(seconds=NOTICE_LIFE_S),
        next_try_at=now,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One claimed mail with what it is about, as SQL had it when it was claimed."""

    mail: Mail
    ticket: Ticket | None
    #: The account that has the mail's address; None where nobody has.
    user: User | None


def wording(delivery: Delivery, now: datetime) -> Template | None:
    """The template that *delivery* is sent with; None where nobody is to get it or nothing is to be said."""
    template, ticket, user = delivery.mail.template, delivery.ticket, delivery.user
    if delivery.mail.recipient is None or (ticket is not None and not ticket.is_open(now)):
        return None
    if template is Template.REGISTER:
        return Template.TAKEN if user is not None else template
    if template is Template.CHANGE:
        return template if user is None else None
    if template is Template.VERIFY and user is not None and user.email_verified:
        return None
    if template in {Template.VERIFY, Template.RESET, Template.INVITE}:
        is_theirs = user is not None and ticket is not None and ticket.is_bound_to(user)
        return template if is_theirs else None
    return template


class Outbox(Protocol):
    """The rows, in SQL.  Raises StoreUnavailable."""

    def claim(self, *, most: int, now: datetime, owner: str, lease_s: float) -> Sequence[Delivery]:
        """
        Take up to *most* mails that are due, urgent ones first: for *lease_s* seconds nobody else gets them.

        A ticket that was asked for by address is bound here to the account that has it, if one has.
        """

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
        """Write how a try went; False where the lease was lost: then another sender has the mail."""

    def release(self, mail: Mail, *, owner: str) -> None:
        """Give back a claimed mail that was not begun: that was no try."""

    def bring_forward(self, *, now: datetime) -> None:
        """Make due what only waits for a lost connection."""

    def waiting(self, *, now: datetime) -> tuple[int, float]:
        """How many mails wait, and how many seconds ago the oldest of them was asked for."""
