"""Verification of addresses by mail: of an account, of a registration, and of a change of address."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from authsvc.domain.accounts.mails import Template, new_mail
from authsvc.domain.accounts.requests import (
    Asked,
    Attempt,
    MailRequests,
    RecoveryStore,
    Shown,
    TicketProof,
    bound,
)
from authsvc.domain.accounts.tickets import Purpose, Ticket, new_ticket
from authsvc.domain.audit import Action, AuditLog, Event, current_origin
from authsvc.domain.credentials import (
    Credentials,
    CredentialStore,
    PasswordProof,
    require_policy,
    required_email,
)
from authsvc.domain.errors import CodeInvalid, InvalidCredentials
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import account_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.users import Profile, User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import NOBODY, typed_email
from authsvc.domain.values.identifiers import SessionId, UserId, new_id

#: A login without a verified address sends a mail, but no second one within this time (seconds).
REMINDER_EVERY = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Verifies addresses: of an account, of a registration, and of a change of address."""

    requests: MailRequests
    proof: TicketProof
    store: RecoveryStore
    credentials: CredentialStore
    passwords: PasswordProof
    policy: PasswordPolicy
    revocations: Revocations
    audit: AuditLog
    clock: Clock
    #: True if a login needs a verified address.
    is_required: bool

    def ask_again(self, typed: str, client_ip: str) -> None:
        """
        Send a verification mail to *typed* if it is the unverified address of an account; the caller is not
        told.
        """
        ticket = new_ticket(Purpose.VERIFY, typed_email(typed), self.clock())
        self.requests.by_address(Template.VERIFY, typed, client_ip, ticket)

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert *user* and a mail to verify their address; raises EmailTaken."""
        now = self.clock()
        # The password of a new user has version 1.
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
        """
        Send a verification mail to a user who logged in without a verified address, unless one was sent
        lately.
        """
        now, email = self.clock(), credentials.user.email
        if self.store.has_asked_since(credentials.user.id, Purpose.VERIFY, now - REMINDER_EVERY):
            return
        ticket = bound(new_ticket(Purpose.VERIFY, email, now), credentials)
        mail = new_mail(Template.VERIFY, email, now=now, ticket=ticket, client_ip=_client_ip())
        if self.requests.has_room(email):
            self.store.remind(ticket, mail, unless_since=now - REMINDER_EVERY)
            self.requests.wake()

    def verify_in_session(self, user_id: UserId, shown: Shown, client_ip: str) -> None:
        """Verify the address of the caller; raises CodeInvalid, RateLimited, StoreUnavailable."""
        with self.proof.attempt(client_ip, Purpose.VERIFY) as attempt:
            self._verify(self.credentials.by_user(user_id), shown, attempt)

    def verify_with_password(self, typed: str, password: str, shown: Shown, client_ip: str) -> None:
        """The same for a user who cannot log in before that; also raises HashingBusy, InvalidCredentials."""
        # Check the hashing queue and the limits before hashing and before asking SQL.
        self.passwords.passwords.require_room()
        with self.proof.attempt(client_ip, Purpose.VERIFY) as attempt:
            self._verify(self._proven(typed, password), shown, attempt)

    def _proven(self, typed: str, password: str) -> Credentials:
        """The credentials of an active user with this *password*; raises InvalidCredentials."""
        email = typed_email(typed)
        with self.passwords.attempt(email or typed):
            found = self.credentials.by_email(email or NOBODY)
            is_right = self.passwords.holds(password, found)
            if found is None or not is_right or not found.user.is_active:
                user_id = found.user.id if found else None
                account = account_subject(email or typed)
                self.audit.record(Event(Action.LOGIN_FAILED, user_id=user_id, account=account))
                raise InvalidCredentials
        return found

    def register(self, typed: str, password: str, profile: Profile, client_ip: str) -> Asked:
        """
        Request an account: it is created once the address is verified.

        The same work and the same answer, whether or not the address has an account.  Raises HashingBusy,
        Invalid.
        """
        email = required_email(typed)
        self.passwords.passwords.require_room()
        require_policy(self.policy, password, email=email, field="password")
        ticket = replace(
            new_ticket(Purpose.REGISTER, email, self.clock()),
            password_hash=self.passwords.passwords.hash(password),
            profile=profile,
        )
        return self.requests.by_address(Template.REGISTER, email, client_ip, ticket)

    def confirm_registration(self, shown: Shown, password: str | None, client_ip: str) -> Outcome[User]:
        """
        Create the account. A link also needs the *password*: the person who opens the mail may not be the one
        who asked for the account.

        Raises CodeInvalid, EmailTaken, RateLimited, HashingBusy, StoreUnavailable.
        """
        if shown.token is not None:
            self.passwords.passwords.require_room()
        with self.proof.attempt(client_ip, Purpose.REGISTER) as attempt:
            ticket = attempt.ticket(shown)
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
        Request a change of the address of *proven*, whose password was just verified, to *typed*.

        A code goes to the new address; one goes to the old address, too, if that is verified and there is no
        second factor.  If another account has the new address, no mail is sent there; the answer is the same.
        Raises Invalid.
        """
        new = required_email(typed)
        old, now = proven.user.email, self.clock()
        # A recent second factor is stronger proof than a mail to the old address.
        needs_old = proven.user.email_verified and not proven.has_factor
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
        with self.proof.attempt(client_ip, Purpose.CHANGE) as attempt:
            ticket = attempt.ticket(shown)
            if ticket.user_id != user_id:
                raise CodeInvalid("somebody else's")
            committed = self.store.change_email(ticket, keep=session_id)
        self.requests.wake()
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.EMAIL_CHANGED, user_id=user_id, session_id=session_id))
        return outcome

    def _verify(self, credentials: Credentials, shown: Shown, attempt: Attempt) -> None:
        user_id = credentials.user.id
        committed = self.store.prove_email(attempt.ticket_of(user_id, shown))
        self.revocations.publish(committed)
        self.audit.record(Event(Action.EMAIL_VERIFIED, user_id=user_id))

    def _is_password_of(self, ticket: Ticket, password: str | None) -> bool:
        found = self.passwords.passwords.verify(password or "", ticket.password_hash)
        return found.is_match and password is not None


def _client_ip() -> str:
    return current_origin().client_ip or ""
