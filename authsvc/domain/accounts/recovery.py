"""
What people do with a mail: prove an address, reset a password, accept an invitation, change the address.

Whoever asks for a mail by address gets the same answer in the same time, whether or not an account has the
address: the request stores a ticket and a mail, and the sender of mails looks for the account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from authsvc.domain.accounts.mails import Mail, Template, new_mail
from authsvc.domain.accounts.tickets import LIFE_S, Purpose, Ticket, TicketId, Tickets, new_ticket
from authsvc.domain.audit import Action, AuditLog, Event, current_origin
from authsvc.domain.credentials import (
    Credentials,
    CredentialStore,
    PasswordProof,
    require_policy,
    required_email,
)
from authsvc.domain.errors import CodeInvalid, InvalidCredentials, NotFound
from authsvc.domain.passwords.hasher import UNUSABLE
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import Limits, Rule, account_subject, ip_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.tokens.devices import Device, DeviceTokens
from authsvc.domain.users import Profile, Role, User, UserStore, with_roles
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import NOBODY, Email, typed_email
from authsvc.domain.values.identifiers import SessionId, UserId, canonical_id, new_id

#: Who logs in without a proven address gets a mail, but no second one within this time.
REMINDER_EVERY = timedelta(minutes=10)


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

    def latest(self, user_id: UserId, purpose: Purpose) -> Ticket | None:
        """The user's newest ticket of *purpose*, open or not."""

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

        Raises EmailTaken.
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
        """Store *ticket* with *mails*; without them where *account*, an address, had enough for now."""
        allowed = mails if self.has_room(account) else ()
        self.store.ask(ticket, allowed, replaces_others=replaces_others)
        self.wake()
        return Asked(ticket.id, LIFE_S[ticket.purpose])


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketProof:
    """Finds the ticket that a caller proves to hold, and counts wrong proofs by address."""

    tickets: Tickets
    limits: Limits
    clock: Clock

    @contextmanager
    def attempt(self, client_ip: str) -> Iterator[None]:
        """Count one attempt of *client_ip*; give it back unless it was wrong.  Raises RateLimited."""
        verdict = self.limits.take(Rule.CODE_IP, ip_subject(client_ip))
        try:
            yield
        except CodeInvalid:
            raise
        except BaseException:
            self.limits.refund(verdict)
            raise
        self.limits.refund(verdict)

    def ticket(self, shown: Shown, *purposes: Purpose) -> Ticket:
        """The open ticket of *shown*; raises CodeInvalid."""
        wanted, now = frozenset(purposes), self.clock()
        if shown.token is not None:
            return self.tickets.by_token(shown.token, wanted, now=now)
        return self.tickets.by_code(
            _named(shown.ticket), shown.code or "", wanted, now=now, old_code=shown.old_code
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Forgotten passwords, and invitations, which are accepted in the same way."""

    requests: MailRequests
    proof: TicketProof
    store: RecoveryStore
    users: UserStore
    credentials: CredentialStore
    passwords: PasswordProof
    policy: PasswordPolicy
    revocations: Revocations
    devices: DeviceTokens
    audit: AuditLog
    clock: Clock

    def ask(self, typed: str, client_ip: str) -> Asked:
        """Send a mail to the address *typed* if an account has it; the answer does not tell."""
        email = typed_email(typed)
        ticket = new_ticket(Purpose.RESET, email, self.clock())
        self.audit.record(Event(Action.PASSWORD_RESET_ASKED, account=account_subject(email or typed)))
        return self.requests.by_address(Template.RESET, typed, client_ip, ticket)

    def reset(self, shown: Shown, new_password: str, client_ip: str) -> Outcome[str]:
        """
        Choose a password with a mail's code or link; opens no session, keeps second factors.

        Returns a new device token.  Raises CodeInvalid, Invalid (the ticket stays good), RateLimited,
        HashingBusy, StoreUnavailable.
        """
        with self.proof.attempt(client_ip):
            ticket = self.proof.ticket(shown, Purpose.RESET, Purpose.INVITE)
            if ticket.user_id is None or ticket.bound_email is None:
                raise CodeInvalid("nobody has this address")
            require_policy(self.policy, new_password, email=ticket.bound_email, field="new_password")
            committed = self.store.reset_password(ticket, self.passwords.passwords.hash(new_password))
        self.requests.wake()
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.PASSWORD_RESET, user_id=outcome.value.user.id, client_ip=client_ip))
        return Outcome(self._device_token(outcome.value), outcome.is_complete)

    def send_reset(
        self, user_id: UserId, *, actor: UserId | None, lock: bool = False, client_ip: str | None = None
    ) -> Outcome[None]:
        """
        Send a reset mail on an admin's behalf; *lock* makes the password unusable at once.

        A disabled account gets no mail, and nobody learns that.  Raises NotFound.
        """
        is_complete = True
        if lock:
            locked = self.store.lock_password(user_id, UNUSABLE)
            is_complete = self.revocations.publish(locked).is_complete
        user = self.users.get(user_id)
        ticket = new_ticket(Purpose.RESET, user.email, self.clock())
        mail = new_mail(Template.RESET, user.email, now=ticket.created_at, ticket=ticket, client_ip=client_ip)
        self.store.ask(ticket, [mail])
        self.requests.wake()
        detail = "locked" if lock else None
        self.audit.record(Event(Action.PASSWORD_RESET_ASKED, user_id=user_id, actor_id=actor, detail=detail))
        return Outcome(None, is_complete)

    def invite(
        self, email: Email, profile: Profile, roles: tuple[Role, ...], *, actor: UserId | None
    ) -> Outcome[User]:
        """Add a user without a password and send an invitation; raises EmailTaken."""
        now = self.clock()
        draft = User(id=UserId(new_id()), email=email, created_at=now, updated_at=now)
        user = replace(profile.applied_to(draft), roles=with_roles(roles))
        # A new user's password has the version 1.
        ticket = replace(
            new_ticket(Purpose.INVITE, email, now), user_id=user.id, bound_email=email, password_version=1
        )
        mail = new_mail(Template.INVITE, email, now=now, ticket=ticket)
        outcome = self.revocations.publish(self.store.add_user(user, UNUSABLE, ticket, mail))
        self.requests.wake()
        self.audit.record(Event(Action.USER_INVITED, user_id=user.id, actor_id=actor))
        return outcome

    def invite_again(self, email: Email) -> None:
        """Send another invitation to a user who has not chosen a password yet; raises NotFound."""
        found = self.credentials.by_email(email)
        if found is None or found.password_hash != UNUSABLE:
            raise NotFound
        ticket = bound(new_ticket(Purpose.INVITE, email, self.clock()), found)
        self.store.ask(ticket, [new_mail(Template.INVITE, email, now=ticket.created_at, ticket=ticket)])
        self.requests.wake()

    def _device_token(self, credentials: Credentials) -> str:
        device = Device.of(credentials.user.id, credentials.password_version)
        return self.devices.issue(device, now=self.clock())


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Proves addresses: that of an account, of one that is to be, and a new one."""

    requests: MailRequests
    proof: TicketProof
    store: RecoveryStore
    credentials: CredentialStore
    passwords: PasswordProof
    policy: PasswordPolicy
    revocations: Revocations
    audit: AuditLog
    clock: Clock
    #: Nobody logs in without a proven address.
    is_required: bool

    def ask_again(self, typed: str, client_ip: str) -> None:
        """Send a verification mail to *typed* if an account has it, not proven yet; nobody learns that."""
        ticket = new_ticket(Purpose.VERIFY, typed_email(typed), self.clock())
        self.requests.by_address(Template.VERIFY, typed, client_ip, ticket)

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert *user* with a mail to prove their address; raises EmailTaken."""
        now = self.clock()
        # A new user's password has the version 1.
        ticket = replace(
            new_ticket(Purpose.VERIFY, user.email, now),
            user_id=user.id,
            bound_email=user.email,
            password_version=1,
        )
        has_room = self.requests.has_room(user.email)
        mail = new_mail(Template.VERIFY, user.email, now=now, ticket=ticket, client_ip=_client_ip())
        committed = self.store.add_user(user, password_hash, ticket, mail if has_room else None)
        self.requests.wake()
        return committed

    def remind(self, credentials: Credentials) -> None:
        """Send a verification mail to somebody who logged in without a proven address, now and then."""
        now, email = self.clock(), credentials.user.email
        latest = self.store.latest(credentials.user.id, Purpose.VERIFY)
        if latest is None or latest.created_at <= now - REMINDER_EVERY:
            ticket = bound(new_ticket(Purpose.VERIFY, email, now), credentials)
            self.requests.by_address(Template.VERIFY, email, _client_ip(), ticket)

    def verify_in_session(self, user_id: UserId, shown: Shown, client_ip: str) -> None:
        """Prove the address of the caller; raises CodeInvalid, RateLimited, StoreUnavailable."""
        self._verify(self.credentials.by_user(user_id), shown, client_ip)

    def verify_with_password(self, typed: str, password: str, shown: Shown, client_ip: str) -> None:
        """The same for somebody who cannot log in before; raises InvalidCredentials, too."""
        email = typed_email(typed)
        with self.passwords.attempt(email or typed):
            found = self.credentials.by_email(email or NOBODY)
            is_right = self.passwords.holds(password, found)
            if found is None or not is_right or not found.user.is_active:
                raise InvalidCredentials
        self._verify(found, shown, client_ip)

    def register(self, typed: str, password: str, profile: Profile, client_ip: str) -> Asked:
        """
        Ask for an account quietly: it is made when the address is proven.

        The same work and the same answer, whether or not the address has an account.  Raises Invalid.
        """
        email = required_email(typed)
        require_policy(self.policy, password, email=email, field="password")
        ticket = replace(
            new_ticket(Purpose.REGISTER, email, self.clock()),
            password_hash=self.passwords.passwords.hash(password),
            profile=profile,
        )
        return self.requests.by_address(Template.REGISTER, email, client_ip, ticket)

    def confirm_registration(self, shown: Shown, password: str | None, client_ip: str) -> Outcome[User]:
        """
        Make the account; a link needs the *password* as well, since a mail alone proves no intent.

        Raises CodeInvalid, EmailTaken, RateLimited, HashingBusy, StoreUnavailable.
        """
        with self.proof.attempt(client_ip):
            ticket = self.proof.ticket(shown, Purpose.REGISTER)
            if ticket.email is None or ticket.profile is None:
                raise CodeInvalid("not a registration")
            if shown.token is not None and not self._is_password_of(ticket, password):
                raise CodeInvalid("wrong password beside the link")
            now = self.clock()
            draft = User(
                id=UserId(new_id()), email=ticket.email, created_at=now, updated_at=now, email_verified=True
            )
            committed = self.store.confirm_registration(ticket, ticket.profile.applied_to(draft))
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.USER_REGISTERED, user_id=outcome.value.id))
        return outcome

    def ask_change(self, proven: Credentials, typed: str, client_ip: str) -> Asked:
        """
        Ask to change the address of *proven*, whose password was just shown, to the address *typed*.

        A code goes to the new address, and one to the old one where that is proven.  A new address that an
        account has gets no mail; the answer is the same.  Raises Invalid.
        """
        new = required_email(typed)
        old, now = proven.user.email, self.clock()
        needs_old = proven.user.email_verified
        ticket = replace(bound(new_ticket(Purpose.CHANGE, new, now), proven), needs_old_code=needs_old)
        mails = [new_mail(Template.CHANGE, new, now=now, ticket=ticket, client_ip=client_ip)]
        if needs_old:
            mails.append(new_mail(Template.CHANGE_OLD, old, now=now, ticket=ticket, client_ip=client_ip))
        asked = self.requests.send(ticket, mails, new, replaces_others=True)
        self.audit.record(Event(Action.EMAIL_CHANGE_ASKED, user_id=proven.user.id, client_ip=client_ip))
        return replace(asked, needs=("code", "old_code") if needs_old else ("code",))

    def confirm_change(
        self, user_id: UserId, session_id: SessionId, shown: Shown, client_ip: str
    ) -> Outcome[User]:
        """Change the address; every other session ends.  Raises CodeInvalid, EmailTaken, RateLimited."""
        with self.proof.attempt(client_ip):
            ticket = self.proof.ticket(shown, Purpose.CHANGE)
            if ticket.user_id != user_id:
                raise CodeInvalid("somebody else's")
            committed = self.store.change_email(ticket, keep=session_id)
        self.requests.wake()
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.EMAIL_CHANGED, user_id=user_id, session_id=session_id))
        return outcome

    def _verify(self, credentials: Credentials, shown: Shown, client_ip: str) -> None:
        user_id = credentials.user.id
        with self.proof.attempt(client_ip):
            ticket = self._verify_ticket(user_id, shown)
            committed = self.store.prove_email(ticket)
        self.revocations.publish(committed)
        self.audit.record(Event(Action.EMAIL_VERIFIED, user_id=user_id))

    def _verify_ticket(self, user_id: UserId, shown: Shown) -> Ticket:
        """The caller's ticket; a code is compared with every open one, and a wrong one counts on each."""
        if shown.token is not None:
            ticket = self.proof.ticket(shown, Purpose.VERIFY)
            if ticket.user_id != user_id:
                raise CodeInvalid("somebody else's")
            return ticket
        return self.proof.tickets.by_code_of(user_id, shown.code or "", Purpose.VERIFY, now=self.clock())

    def _is_password_of(self, ticket: Ticket, password: str | None) -> bool:
        found = self.passwords.passwords.verify(password or "", ticket.password_hash)
        return found.is_match and password is not None


def bound(ticket: Ticket, credentials: Credentials) -> Ticket:
    """*ticket* for the user of *credentials*, with the password and address that they have now."""
    user = credentials.user
    return replace(
        ticket, user_id=user.id, bound_email=user.email, password_version=credentials.password_version
    )


def _client_ip() -> str:
    return current_origin().client_ip or ""


def _named(text: str | None) -> TicketId:
    """The id of a ticket, in either case; raises CodeInvalid."""
    ident = canonical_id(text or "")
    if ident is None:
        raise CodeInvalid("not an identifier")
    return TicketId(ident)
