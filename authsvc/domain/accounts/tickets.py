"""
One-time tickets: a row in SQL that permits one operation once, by a code or a link.

Code and token are HMACs over the ticket's id, purpose and salt.  Neither is stored, so SQL, the outbox and
backups contain nothing usable, and a mail that is sent again has the same code.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.errors import CodeInvalid
from authsvc.domain.users import Profile, User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId, new_id

TicketId = NewType("TicketId", str)

SALT_BYTES = 16
#: No vowels, so that no code is a word, and no letter that looks like a digit.
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
CODE_LETTERS = 8
#: Wrong codes after which a ticket's code is invalid; its link still works.
MOST_FAILURES = 5

_TAG_BYTES = 32
_IGNORED = str.maketrans("", "", " -")


class Purpose(StrEnum):
    """The operation that a ticket permits."""

    VERIFY = "verify"
    REGISTER = "register"
    RESET = "reset"
    INVITE = "invite"
    CHANGE = "change"


#: Life of a ticket, in seconds.
LIFE_S = {
    Purpose.VERIFY: 86_400,
    Purpose.REGISTER: 86_400,
    Purpose.RESET: 3_600,
    Purpose.INVITE: 604_800,
    Purpose.CHANGE: 3_600,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """
    One row. It is invalid once used or expired, or once its user, their password or their address changed.

    A ticket requested without a session has no user until the mail sender has looked up the account.
    """

    id: TicketId
    purpose: Purpose
    salt: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime
    #: The address that it verifies; None if the requested text is not an address.
    email: Email | None = field(repr=False)
    user_id: UserId | None = None
    #: Version of password and address when the ticket was bound to the user; a change makes it invalid.
    password_version: int | None = None
    bound_email: Email | None = field(default=None, repr=False)
    #: For a registration: the data of the future account.
    password_hash: str | None = field(default=None, repr=False)
    profile: Profile | None = field(default=None, repr=False)
    #: For a change of address: a code of the old address is needed, too.
    needs_old_code: bool = False
    used_at: datetime | None = None
    failures: int = 0

    def is_open(self, now: datetime) -> bool:
        """True if neither used nor expired."""
        return self.used_at is None and now < self.expires_at

    def is_bound_to(self, user: User) -> bool:
        """True if the ticket belongs to *user* with their current address; its use compares the password."""
        return self.user_id == user.id and self.bound_email == user.email and user.is_active


def new_ticket(purpose: Purpose, email: Email | None, now: datetime) -> Ticket:
    """A ticket of *purpose* for *email*, not bound to a user yet."""
    return Ticket(
        id=TicketId(new_id()),
        purpose=purpose,
        salt=secrets.token_bytes(SALT_BYTES),
        created_at=now,
        expires_at=now + timedelta(seconds=LIFE_S[purpose]),
        email=email,
    )


@dataclass(frozen=True, slots=True)
class TicketToken:
    """The content of a link; not to be trusted until its tag is verified."""

    ticket_id: TicketId
    tag: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class TicketSecrets:
    """Derives the code and token of a ticket, and verifies them."""

    key: bytes

    def code(self, ticket: Ticket, *, for_old_address: bool = False) -> str:
        """The code as a mail shows it: eight letters, ``WDJB-MJHT``."""
        number = int.from_bytes(self._digest(b"old code" if for_old_address else b"code", ticket))
        letters = []
        for _ in range(CODE_LETTERS):
            number, letter = divmod(number, len(ALPHABET))
            letters.append(ALPHABET[letter])
        return f"{''.join(letters[:4])}-{''.join(letters[4:])}"

    def token(self, ticket: Ticket) -> str:
        """The token of the link: base64url of the ticket's id and a 256-bit tag."""
        raw = uuid.UUID(ticket.id).bytes + self._digest(b"token", ticket)
        return base64.urlsafe_b64encode(raw).decode()

    def is_code(self, typed: str, ticket: Ticket, *, for_old_address: bool = False) -> bool:
        """True if *typed* is the ticket's code, whatever its case, spaces and hyphens."""
        bare = typed.translate(_IGNORED).upper()
        code = self.code(ticket, for_old_address=for_old_address).translate(_IGNORED)
        return bare.isascii() and hmac.compare_digest(bare, code)

    def is_genuine(self, token: TicketToken, ticket: Ticket) -> bool:
        """True if this server made *token* for *ticket*; compared in constant time."""
        return hmac.compare_digest(token.tag, self._digest(b"token", ticket))

    def _digest(self, face: bytes, ticket: Ticket) -> bytes:
        body = uuid.UUID(ticket.id).bytes + ticket.purpose.encode() + b"\0" + ticket.salt
        return hmac.digest(self.key, b"authsvc ticket 1 " + face + b"\0" + body, "sha256")


def parse_ticket_token(text: str) -> TicketToken:
    """Parse *text*, which must be in canonical encoding; raises CodeInvalid."""
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodeInvalid("not base64url") from error
    if len(raw) != 16 + _TAG_BYTES or base64.urlsafe_b64encode(raw).decode() != text:
        raise CodeInvalid("length or encoding")
    return TicketToken(TicketId(str(uuid.UUID(bytes=raw[:16]))), raw[16:])


class TicketStore(Protocol):
    """The rows, in SQL; each method is one transaction.  Raises StoreUnavailable."""

    def find(self, ticket_id: TicketId) -> Ticket | None:
        """The ticket, even if it is no longer valid."""

    def count_try(self, ticket_id: TicketId, *, now: datetime) -> Ticket | None:
        """Count one try of the code before it is compared; None if no try is left."""

    def forgive_try(self, ticket_id: TicketId) -> None:
        """Uncount one try that was correct."""

    def open_of(self, user_id: UserId, purpose: Purpose, *, now: datetime) -> list[Ticket]:
        """The open tickets of a user, the newest first."""


@dataclass(frozen=True, slots=True)
class Tickets:
    """Finds the ticket for a presented code or token; all failures are the same error."""

    store: TicketStore
    secrets: TicketSecrets

    def by_token(self, text: str, purposes: frozenset[Purpose], *, now: datetime) -> Ticket:
        """The open ticket of a link; raises CodeInvalid."""
        token = parse_ticket_token(text)
        ticket = self.store.find(token.ticket_id)
        if ticket is None or not self.secrets.is_genuine(token, ticket):
            raise CodeInvalid("forged, or its ticket is gone")
        if ticket.purpose not in purposes or not ticket.is_open(now):
            raise CodeInvalid("used, expired or of another purpose")
        return ticket

    def by_code(
        self,
        ticket_id: str,
        code: str,
        purposes: frozenset[Purpose],
        *,
        now: datetime,
        old_code: str | None = None,
    ) -> Ticket:
        """
        The open ticket *ticket_id* if *code* matches; each try is counted in SQL before it is compared.

        Raises CodeInvalid.
        """
        ticket = self.store.count_try(TicketId(ticket_id), now=now)
        if ticket is None or ticket.purpose not in purposes:
            raise CodeInvalid("no such ticket, or no try left")
        is_right = self.secrets.is_code(code, ticket)
        if ticket.needs_old_code:
            is_right &= old_code is not None and self.secrets.is_code(old_code, ticket, for_old_address=True)
        if not is_right:
            raise CodeInvalid("wrong code")
        self.store.forgive_try(ticket.id)
        return ticket

    def by_code_of(self, user_id: UserId, code: str, purpose: Purpose, *, now: datetime) -> Ticket:
        """
        The open ticket of the user and *purpose* that *code* matches; a wrong code counts for each of them.

        Raises CodeInvalid.
        """
        tried = [
            self.store.count_try(one.id, now=now) for one in self.store.open_of(user_id, purpose, now=now)
        ]
        counted = [ticket for ticket in tried if ticket is not None]
        right = next((ticket for ticket in counted if self.secrets.is_code(code, ticket)), None)
        if right is None:
            raise CodeInvalid("wrong code, or no try left")
        for ticket in counted:
            self.store.forgive_try(ticket.id)
        return right
