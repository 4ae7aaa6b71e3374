"""Credentials: a user with their password hash; verifying and changing the password."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import AuthError, HashingBusy, Invalid, InvalidCredentials, WrongPassword
from authsvc.domain.passwords.hasher import Passwords
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import Limits, Rule, account_subject, device_subject, session_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.sessions import Session
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.tokens.devices import Device, DeviceTokens
from authsvc.domain.users import User, UserDirectory
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import Email, InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.domain.values.levels import Method
from authsvc.domain.values.limits import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user with their password hash; never cached, never logged."""

    user: User
    password_hash: str
    #: Raised by every change of the password, not by a rehash of the same one.
    password_version: int
    #: True if a password alone opens no session.
    has_factor: bool = False
    #: Tries of a second factor that failed or are in progress.
    factor_tries: int = 0
    #: Raised to forget known devices without a new password.
    device_version: int = 0

    def __repr__(self) -> str:
        """Without the hash."""
        return f"Credentials(user_id={self.user.id!r})"


@dataclass(frozen=True, slots=True)
class Rehash:
    """A better hash of the same password, stored only if the old one is still there."""

    old: str
    new: str

    def __repr__(self) -> str:
        """Without the hashes."""
        return "Rehash()"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedUp:
    """
    What a correct second factor uses up, in the transaction that acts on it.

    If another request was faster, that transaction raises CodeInvalid and changes nothing; CounterNotRisen if
    a passkey's counter is not above the last one.
    """

    user_id: UserId
    #: The methods of authentication.
    shown: Method
    #: Challenges by id, each with its expiry.
    challenges: tuple[tuple[str, datetime], ...] = ()
    #: A TOTP by its id, and the time step of its code.
    totp: tuple[str, int] | None = None
    recovery_digest: bytes | None = field(default=None, repr=False)
    #: A passkey by its id, and the counter that it showed.
    passkey: tuple[str, int] | None = None
    #: The value to reset the count of tries to; None if no try was counted.
    tries: int | None = 0


class CredentialStore(Protocol):
    """Stores password hashes, only in SQL. Raises StoreUnavailable."""

    def by_email(self, email: Email) -> Credentials | None:
        """The credentials of the canonical address *email*."""

    def by_user(self, user_id: UserId) -> Credentials:
        """Raises NotFound."""

    def open_session(
        self,
        verified: Credentials,
        session: Session,
        *,
        rehash: Rehash | None,
        max_sessions: int,
        used_up: UsedUp | None = None,
    ) -> Committed[User] | None:
        """
        Add *session* and record the login, if the user is still active and unchanged since *verified*.

        One transaction: a disable, a password change or a first second factor either comes before and wins
        (None), or after and finds the session.  A user with a second factor needs *used_up*; raises
        CodeInvalid if another request was faster with it.  Beyond *max_sessions*, the least recently used
        sessions end.
        """

    def note_logins(self, user_ids: Sequence[UserId], at: datetime) -> Committed[list[UserId]]:
        """Set the last login of those of *user_ids* that exist to *at*; returns them.  One transaction."""

    def replace_password(
        self, verified: Credentials, new_hash: str, *, keep: SessionId
    ) -> Committed[User] | None:
        """
        Set the hash if the password is still that of *verified*, and end all sessions but *keep*.

        Raises TokenInvalid if *keep* has ended.
        """

    def set_password(self, user_id: UserId, new_hash: str) -> Committed[User]:
        """Set the hash, end all sessions and raise the epoch; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordProof:
    """Verifies passwords; attempts are counted by account before the hashing."""

    passwords: Passwords
    limits: Limits
    audit: AuditLog

    def attempt(self, account: str, device: Device | None = None) -> AbstractContextManager[None]:
        """
        Count one attempt to log in to *account* (an address as typed or canonical); a success is uncounted.

        A known *device* has its own limit; all others share the account's.

        Raises:
            RateLimited: too many failures.
            StoreUnavailable: the attempt cannot be counted.
        """
        return self._counted(self._bucket(account_subject(account), device))

    def attempt_of_session(self, account: Email, session_id: SessionId) -> AbstractContextManager[None]:
        """
        Count one password attempt within a session of *account*; a success is uncounted. Raises like
        :meth:`attempt`.

        Failed logins do not count here: strangers could keep the user from setting a new password. Each
        session has few tries, against stolen sessions, and all sessions of the account share a limit.
        """
        subject = account_subject(account)
        of_session = Rule.PASSWORD_SESSION, session_subject(subject, session_id)
        return self._counted(of_session, (Rule.PASSWORD_ACCOUNT, subject))

    @contextmanager
    def _counted(self, *buckets: tuple[Rule, str]) -> Iterator[None]:
        """Count an attempt in each of *buckets*, and uncount it unless the password was wrong."""
        taken: list[Attempt | None] = []
        try:
            for rule, subject in buckets:
                taken.append(self.limits.take(rule, subject))
            yield
        except (InvalidCredentials, WrongPassword):
            raise
        except AuthError:
            self._give_back(taken)
            raise
        self._give_back(taken)

    def _give_back(self, taken: Iterable[Attempt | None]) -> None:
        for attempt in taken:
            self.limits.refund(attempt)

    def _bucket(self, account: str, device: Device | None) -> tuple[Rule, str]:
        """The counter of an attempt; if either limit is off, a known device counts like an unknown one."""
        has_devices = self.limits.counts(Rule.LOGIN_DEVICE) and self.limits.counts(Rule.LOGIN_ACCOUNT)
        if device is None or not has_devices:
            return Rule.LOGIN_ACCOUNT, account
        return Rule.LOGIN_DEVICE, device_subject(account, device)

    def holds(self, password: str, credentials: Credentials | None) -> bool:
        """True if *password* is correct; without credentials, the same work is done."""
        found = self.passwords.verify(password, credentials.password_hash if credentials else None)
        if found.is_malformed and credentials is not None:
            self.audit.record(Event(Action.HASH_MALFORMED, user_id=credentials.user.id))
        return found.is_match

    def rehash(self, password: str, credentials: Credentials) -> Rehash | None:
        """
        A hash of the configured scheme and cost, if the stored one differs; None while the hashing lane is
        busy.
        """
        if not self.passwords.needs_rehash(credentials.password_hash):
            return None
        try:
            return Rehash(old=credentials.password_hash, new=self.passwords.hash(password))
        except HashingBusy:
            return None


def device_of(credentials: Credentials, known: Device | None = None) -> Device:
    """The device *known*, or a new one, after a login of the user of *credentials*."""
    version = credentials.device_version
    return Device.of(credentials.user.id, credentials.password_version, known, device_version=version)


def known_device(devices: DeviceTokens, text: str, credentials: Credentials, now: datetime) -> Device | None:
    """The device of the token *text*; None if it is not a token of this account."""
    device = devices.read(text, account_subject(credentials.user.email), now=now) if text else None
    if device is None:
        return None
    is_theirs = device.belongs_to(
        credentials.user.id, credentials.password_version, device_version=credentials.device_version
    )
    return device if is_theirs else None


def required_email(text: str) -> Email:
    """The canonical form of *text*; raises Invalid."""
    try:
        return canonical_email(text)
    except InvalidEmail as error:
        raise Invalid({"email": [str(error)]}) from error


def require_policy(policy: PasswordPolicy, password: str, *, email: Email, field: str) -> None:
    """Raise Invalid for *field* unless *password* fulfils the policy for *email*."""
    problems = policy.problems(password, email=email)
    if problems:
        raise Invalid({field: problems})


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAccount:
    """Operations on an account that need its password, or an operator."""

    credentials: CredentialStore
    users: UserDirectory
    proof: PasswordProof
    policy: PasswordPolicy
    revocations: Revocations
    devices: DeviceTokens
    audit: AuditLog
    clock: Clock

    def change_password(self, token: AccessToken, current: str, new: str) -> Outcome[str]:
        """
        Replace the password; all other sessions end, and all known devices are forgotten.

        Returns a new device token: the caller has just authenticated.

        Raises:
            WrongPassword: *current* is wrong, or the password was changed meanwhile.
            TokenInvalid: the session has ended meanwhile.
            Invalid: *new* breaks the policy.
            RateLimited, HashingBusy, StoreUnavailable.
        """
        verified = self.prove(token, current)
        require_policy(self.policy, new, email=verified.user.email, field="new_password")
        new_hash = self.proof.passwords.hash(new)
        committed = self.credentials.replace_password(verified, new_hash, keep=token.session_id)
        if committed is None:
            raise WrongPassword
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.PASSWORD_CHANGED, user_id=token.user_id, session_id=token.session_id))
        device = device_of(replace(verified, password_version=verified.password_version + 1))
        return Outcome(self.devices.issue(device, now=self.clock()), outcome.is_complete)

    def set_password(self, email: Email, new: str) -> Outcome[User]:
        """
        Replace the password of a user, for operators; every session and token ends, devices are forgotten.

        Raises:
            NotFound: no user has that address.
            Invalid: *new* breaks the policy.
            HashingBusy, StoreUnavailable.
        """
        user = self.users.called(email)
        require_policy(self.policy, new, email=email, field="password")
        committed = self.credentials.set_password(user.id, self.proof.passwords.hash(new))
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.PASSWORD_CHANGED, user_id=user.id))
        return outcome

    def close(self, token: AccessToken, password: str) -> Outcome[User]:
        """Delete the account; raises WrongPassword, LastAdmin, RateLimited, HashingBusy, TokenInvalid."""
        self.prove(token, password)
        return self.users.remove(token.user_id, actor=token.user_id, within=token.session_id)

    def prove(self, token: AccessToken, password: str) -> Credentials:
        """The caller's credentials; raises WrongPassword unless *password* is theirs, HashingBusy."""
        self.proof.passwords.require_room()
        credentials = self.credentials.by_user(token.user_id)
        with self.proof.attempt_of_session(credentials.user.email, token.session_id):
            if not self.proof.holds(password, credentials):
                self.audit.record(Event(Action.PASSWORD_REFUSED, user_id=token.user_id))
                raise WrongPassword
        return credentials
