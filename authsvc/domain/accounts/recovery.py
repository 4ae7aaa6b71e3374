"""Forgotten passwords and invitations: a mail lets its reader set a password."""

from __future__ import annotations

from dataclasses import dataclass, replace

from authsvc.domain.accounts.mails import Template, new_mail
from authsvc.domain.accounts.requests import Asked, MailRequests, RecoveryStore, Shown, TicketProof, bound
from authsvc.domain.accounts.tickets import Purpose, new_ticket
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.credentials import (
    Credentials,
    CredentialStore,
    PasswordProof,
    device_of,
    require_policy,
    required_email,
)
from authsvc.domain.errors import CodeInvalid, NotFound
from authsvc.domain.passwords.hasher import UNUSABLE
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import account_subject
from authsvc.domain.revocations import Outcome, Revocations
from authsvc.domain.tokens.devices import DeviceTokens
from authsvc.domain.users import Profile, Role, RoleNames, User, with_roles
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import Email, typed_email
from authsvc.domain.values.identifiers import UserId, new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Forgotten passwords and invitations; both end with a new password."""

    requests: MailRequests
    proof: TicketProof
    store: RecoveryStore
    credentials: CredentialStore
    passwords: PasswordProof
    policy: PasswordPolicy
    revocations: Revocations
    devices: DeviceTokens
    audit: AuditLog
    clock: Clock
    roles: RoleNames
    #: True if mails have links; invitations need them.
    has_links: bool

    def ask(self, typed: str, client_ip: str) -> Asked:
        """
        Send a mail to the address *typed* if an account has it; the answer does not show whether one has.
        """
        email = typed_email(typed)
        ticket = new_ticket(Purpose.RESET, email, self.clock())
        self.audit.record(Event(Action.PASSWORD_RESET_ASKED, account=account_subject(email or typed)))
        return self.requests.by_address(Template.RESET, typed, client_ip, ticket)

    def reset(self, shown: Shown, new_password: str, client_ip: str) -> Outcome[str]:
        """
        Set a password with a mail's code or link; opens no session, keeps second factors.

        Returns a new device token.  Raises CodeInvalid, Invalid (the ticket stays valid), RateLimited,
        HashingBusy, StoreUnavailable.
        """
        # Refuse before other work, as a login does: in a storm of requests most are refused.
        self.passwords.passwords.require_room()
        with self.proof.attempt(client_ip, Purpose.RESET) as attempt:
            ticket = attempt.ticket(shown, Purpose.INVITE)
            if ticket.user_id is None or ticket.bound_email is None:
                raise CodeInvalid("nobody has this address")
            require_policy(self.policy, new_password, email=ticket.bound_email, field="new_password")
            committed = self.store.reset_password(ticket, self.passwords.passwords.hash(new_password))
        self.requests.wake()
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.PASSWORD_RESET, user_id=outcome.value.user.id, client_ip=client_ip))
        return Outcome(self._device_token(outcome.value), outcome.is_complete)

    def send_reset(self, user_id: UserId, *, actor: UserId | None, lock: bool = False) -> Outcome[None]:
        """
        Send a reset mail on an admin's behalf; *lock* makes the password unusable at once.

        A disabled account gets no mail; the caller is not told.  Raises NotFound.
        """
        is_complete = True
        if lock:
            is_complete = self.revocations.publish(self.store.lock_password(user_id, UNUSABLE)).is_complete
        found = self.credentials.by_user(user_id)
        email = found.user.email
        ticket = bound(new_ticket(Purpose.RESET, email, self.clock()), found)
        mail = new_mail(Template.RESET, email, now=ticket.created_at, ticket=ticket)
        self.store.ask(ticket, [mail])
        self.requests.wake()
        detail = "locked" if lock else None
        self.audit.record(Event(Action.PASSWORD_RESET_ASKED, user_id=user_id, actor_id=actor, detail=detail))
        return Outcome(None, is_complete)

    def invite(
        self, typed: str, profile: Profile, roles: tuple[Role, ...], *, actor: UserId | None
    ) -> Outcome[User]:
        """
        Add a user without a password and send an invitation. Raises NotFound if mails have no links, Invalid,
        EmailTaken.
        """
        if not self.has_links:
            raise NotFound
        self.roles.require({f"roles.{index}": role for index, role in enumerate(roles)})
        email, now = required_email(typed), self.clock()
        draft = User(id=UserId(new_id()), email=email, created_at=now, updated_at=now)
        user = replace(profile.applied_to(draft), roles=with_roles(roles))
        # The password of a new user has version 1.
        ticket = replace(
            new_ticket(Purpose.INVITE, email, now), user_id=user.id, bound_email=email, password_version=1
        )
        mail = new_mail(Template.INVITE, email, now=now, ticket=ticket)
        outcome = self.revocations.publish(self.store.add_user(user, UNUSABLE, ticket, mail))
        self.requests.wake()
        self.audit.record(Event(Action.USER_INVITED, user_id=user.id, actor_id=actor))
        return outcome

    def invite_again(self, email: Email) -> bool:
        """Send another invitation to a user without a password; False if there is no such user."""
        found = self.credentials.by_email(email)
        if found is None or found.password_hash != UNUSABLE:
            return False
        ticket = bound(new_ticket(Purpose.INVITE, email, self.clock()), found)
        self.store.ask(ticket, [new_mail(Template.INVITE, email, now=ticket.created_at, ticket=ticket)])
        self.requests.wake()
        self.audit.record(Event(Action.USER_INVITED, user_id=found.user.id))
        return True

    def _device_token(self, credentials: Credentials) -> str:
        return self.devices.issue(device_of(credentials), now=self.clock())
