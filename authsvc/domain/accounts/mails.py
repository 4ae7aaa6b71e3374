"""Mails in the outbox: their content, when sending is retried, and when it is given up."""

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

#: How long sending a notice is tried (seconds); other mails are tried while their ticket is valid.
NOTICE_LIFE_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class MailTimings:
    """Intervals and time limits of sending mails (seconds)."""

    #: Lease of claimed mails: if their sender dies, others send them after this time.
    lease_s: float = 60
    #: A claimed mail is released unless sending begins within this time. Sending takes up to 30 s, so 10 s of
    #: the lease are left for clock differences.
    begun_within_s: float = 20.0
    #: Waits before the first retries; later retries come once an hour.
    retry_after_s: tuple[float, ...] = (5, 30, 120, 600, 1_800)
    hourly_s: float = 3_600
    #: The sender polls the outbox at this interval, unless it is woken.
    interval_s: float = 1.0
    #: After several failures in a row, sending pauses for this time.
    pause_s: float = 30.0
    #: Mail is reported as delayed once the oldest has waited longer than this.
    delayed_s: float = 10.0

    def next_try(self, mail: Mail, now: datetime) -> datetime | None:
        """When to retry *mail*, whose attempt number ``attempts`` has just failed; None: give up."""
        tries = len(self.retry_after_s)
        delay_s = self.retry_after_s[mail.attempts - 1] if mail.attempts <= tries else self.hourly_s
        at = now + timedelta(seconds=delay_s)
        return at if at < mail.ends_at else None


class Template(StrEnum):
    """Templates of mails; the value is the name of the files."""

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


#: Notices: they tell users that something was done to their account.
NOTICES = frozenset(
    {
        *(Template.PASSWORD_CHANGED, Template.PASSWORD_RESET, Template.EMAIL_CHANGED),
        *(Template.FACTOR_ADDED, Template.FACTOR_REMOVED, Template.FACTOR_LOCKED, Template.FACTORS_RESET),
        *(Template.RECOVERY_USED, Template.RECOVERY_RENEWED, Template.SECOND_FACTOR_FAILED),
    }
)
#: Sent before all others: a user waits for a reset, or should learn of an attack.
URGENT = NOTICES | {Template.RESET}


class MailState(StrEnum):
    """States of a mail."""

    QUEUED = "queued"
    SENT = "sent"
    #: Rejected permanently, or its time ran out.
    FAILED = "failed"
    #: There was no recipient, or the mail was no longer needed.
    VOID = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One row of the outbox; it holds no code and no link, only the ticket that they are made of."""

    id: MailId
    template: Template
    recipient: Email | None = field(repr=False)
    ticket_id: str | None
    #: Who asked, and when; the mail shows this.
    client_ip: str | None
    asked_at: datetime
    #: Sending is tried until this time.
    ends_at: datetime
    state: MailState = MailState.QUEUED
    attempts: int = 0
    next_try_at: datetime
    sent_at: datetime | None = None

    @property
    def is_urgent(self) -> bool:
        """True if it is sent before others."""
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
    """One claimed mail with its ticket and user, as they were in SQL when it was claimed."""

    mail: Mail
    ticket: Ticket | None
    #: The account with the mail's address; None if there is none.
    user: User | None


def wording(delivery: Delivery, now: datetime) -> Template | None:
    """The template for *delivery*; None if no mail is to be sent."""
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
        Claim up to *most* mails that are due, urgent ones first; no other sender gets them for *lease_s*
        seconds.

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
        """Store the result of an attempt; False if the lease was lost and another sender has the mail."""

    def release(self, mail: Mail, *, owner: str) -> None:
        """Release a claimed mail that was not begun; this does not count as an attempt."""

    def bring_forward(self, *, now: datetime) -> None:
        """Make mails due that wait because the connection was lost."""

    def waiting(self, *, now: datetime) -> tuple[int, float]:
        """The number of waiting mails, and the age of the oldest in seconds."""
