"""The use cases: register, log in, refresh, log out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from authsvc.domain.accounts.opening import LoginOrigin, SessionOpening, TokenPair
from authsvc.domain.audit import Action, Event, TransactionalAuditLog
from authsvc.domain.credentials import (
    Credentials,
    CredentialStore,
    PasswordProof,
    known_device,
    require_policy,
    required_email,
)
from authsvc.domain.errors import (
    AuthError,
    EmailUnverified,
    InvalidCredentials,
    RefreshInvalid,
    RefreshReused,
    RegistrationClosed,
    SessionOver,
    TokenInvalid,
)
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import Limits, Rule, account_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.sessions import (
    Presented,
    RefreshToken,
    RefreshTokens,
    Session,
    SessionEnds,
    SessionPolicy,
    SessionStore,
    Standing,
    parse_refresh_token,
    recognise,
)
from authsvc.domain.tokens.access import AccessToken, TokenReader
from authsvc.domain.tokens.checks import require_person
from authsvc.domain.tokens.devices import Device, DeviceTokens
from authsvc.domain.users import Profile, User, UserStore
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import NOBODY, Email, typed_email
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id
from authsvc.domain.values.levels import Method

#: A refresh that loses a race reads the session again, and finds a successor, a reuse or an end.
REFRESH_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What somebody signs up with."""

    email: str
    password: str
    profile: Profile
    #: True where an operator vouches for the address.
    email_verified: bool = False

    def __repr__(self) -> str:
        """Without address and password."""
        return "Registration()"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAttempt:
    """What somebody signs in with, and from where."""

    email: str
    password: str
    device_id: str | None
    ip: str
    user_agent: str | None
    #: As presented; whatever is no token of this account is as good as none.
    device_token: str = ""

    def __repr__(self) -> str:
        """Without address, password and token."""
        return f"LoginAttempt(ip={self.ip!r})"


class SecondStep(Protocol):
    """What a login goes on with where somebody has a second factor."""

    def required(self, proven: Credentials, device_id: str | None) -> AuthError:
        """The refusal that says so, with a challenge."""


class Verification(Protocol):
    """Mails that prove the addresses of accounts."""

    @property
    def is_required(self) -> bool:
        """True where nobody logs in without a proven address."""

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert *user* with a mail to prove their address; raises EmailTaken."""

    def remind(self, credentials: Credentials) -> None:
        """Send another mail to somebody who knows the password, now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Combines users, sessions, tokens and limits; every method names its refusals."""

    users: UserStore
    credentials: CredentialStore
    sessions: SessionStore
    session_policy: SessionPolicy
    password_policy: PasswordPolicy
    proof: PasswordProof
    reader: TokenReader
    refresh_tokens: RefreshTokens
    devices: DeviceTokens
    opening: SessionOpening
    second_step: SecondStep
    revocations: Revocations
    limits: Limits
    audit: TransactionalAuditLog
    clock: Clock
    #: None where no mails are sent.
    verification: Verification | None = None
    #: False where accounts are made by operators alone.
    is_open: bool = True

    def register(self, form: Registration, *, by_operator: bool = False) -> User:
        """
        Create an account; who registers by themselves gets a mail to prove their address with.

        Raises:
            RegistrationClosed: accounts are made by operators alone.
            Invalid: address or password break a rule.
            EmailTaken: the unique index says so, whoever raced.
            HashingBusy, StoreUnavailable.
        """
        if not (self.is_open or by_operator):
            raise RegistrationClosed
        email = required_email(form.email)
        # Refuse before other work: in a storm of requests most are refused.
        self.proof.passwords.require_room()
        require_policy(self.password_policy, form.password, email=email, field="password")
        now = self.clock()
        draft = User(
            id=UserId(new_id()),
            email=email,
            created_at=now,
            updated_at=now,
            email_verified=form.email_verified,
        )
        user = form.profile.applied_to(draft)
        password_hash = self.proof.passwords.hash(form.password)
        store = self.users if self.verification is None or by_operator else self.verification
        committed = store.add(user, password_hash)
        outcome = self.revocations.publish(committed)
        self.audit.record(Event(Action.USER_REGISTERED, user_id=user.id))
        return outcome.value

    def log_in(self, attempt: LoginAttempt) -> TokenPair:
        """
        Trade address and password for a session; the same work is done whether the address is known.

        Raises:
            InvalidCredentials: unknown address, wrong password or disabled user.
            EmailUnverified: the password is right, the address must be proven first.
            SecondFactorRequired: the password is right; nothing has happened yet.
            RateLimited, HashingBusy, StoreUnavailable.
        """
        self.opening.signer.require_key(self.clock())
        self.proof.passwords.require_room()
        email = typed_email(attempt.email)
        device = self._known_device(attempt, email)
        with self.proof.attempt(email or attempt.email, device):
            credentials = self.credentials.by_email(email or NOBODY)
            is_right = self.proof.holds(attempt.password, credentials)
            if credentials is None or not is_right or not credentials.user.is_active:
                raise self._refused(attempt, credentials)
            self.require_proven_address(credentials)
            if credentials.has_factor:
                raise self.second_step.required(credentials, attempt.device_id)
            return self._open_session(credentials, attempt, device)

    def refresh(self, presented: str) -> TokenPair:
        """
        Rotate the refresh token *presented* and issue a new pair: one query and one conditional update.

        Raises:
            RefreshInvalid: not one of ours; nothing is harmed.
            SessionOver: the session has ended or expired.
            RefreshReused: consumed before, outside the grace rule; the session has now ended.
            RateLimited, StoreUnavailable.
        """
        # Checked before the token is used up: without a signing key there is no new pair.
        self.opening.signer.require_key(self.clock())
        token = parse_refresh_token(presented)
        standing = self._genuine(token)
        self.limits.take(Rule.REFRESH, token.session_id)
        for _ in range(REFRESH_ROUNDS):
            pair = self._rotate(token, standing)
            if pair is not None:
                return pair
            standing = self._genuine(token)
        raise SessionOver

    def log_out(self, access: str | None, refresh: str | None) -> Outcome[Session | None]:
        """
        End the session that *access* (it may have expired) or *refresh* belongs to; repeating is harmless.

        Raises:
            TokenInvalid: neither is given, one is forged, or they name two sessions; nothing ends.
            Forbidden: *access* is a machine's.
            StoreUnavailable.
        """
        shown = self.reader.read_expired(access, now=self.clock()) if access is not None else None
        token = require_person(shown) if shown is not None else None
        named = {token.session_id} if token else set()
        if refresh is not None:
            named.add(self._refreshable(refresh))
        if len(named) != 1:
            raise TokenInvalid("no session, or two of them")
        return self._end(named.pop(), token)

    def _known_device(self, attempt: LoginAttempt, email: Email | None) -> Device | None:
        """The device whose token *attempt* shows; a bad one does the work of none, and tells nobody why."""
        if email is None or not attempt.device_token:
            return None
        if self.devices.read(attempt.device_token, account_subject(email), now=self.clock()) is None:
            return None
        # Before anything is counted, but only for who has logged in somewhere: nobody else gets this far.
        found = self.credentials.by_email(email)
        return known_device(self.devices, attempt.device_token, found, self.clock()) if found else None

    def require_proven_address(self, proven: Credentials) -> None:
        """Raise EmailUnverified where the address must be proven, and send a mail now and then."""
        if self.verification is None or not self.verification.is_required or proven.user.email_verified:
            return
        self.verification.remind(proven)
        raise EmailUnverified

    def _refused(self, attempt: LoginAttempt, credentials: Credentials | None) -> InvalidCredentials:
        """Record the failed login and return its refusal."""
        user_id = credentials.user.id if credentials else None
        account = account_subject(typed_email(attempt.email) or attempt.email)
        self.audit.record(
            Event(
                Action.LOGIN_FAILED,
                user_id=user_id,
                client_ip=attempt.ip,
                account=account,
                device_id=attempt.device_id,
            )
        )
        return InvalidCredentials()

    def _open_session(self, verified: Credentials, attempt: LoginAttempt, device: Device | None) -> TokenPair:
        """A new session for a proven user, unless they were disabled or changed their password meanwhile."""
        origin = LoginOrigin(
            ip=attempt.ip, user_agent=attempt.user_agent, device_id=attempt.device_id, device=device
        )
        rehash = self.proof.rehash(attempt.password, verified)
        pair = self.opening.open(verified, origin, Method.PASSWORD, rehash=rehash)
        if pair is None:
            raise self._refused(attempt, verified)
        return pair

    def _genuine(self, token: RefreshToken) -> Standing:
        """The session of *token*, if this server made it; raises RefreshInvalid."""
        standing = self.sessions.standing(token.session_id)
        if standing is None or not self.refresh_tokens.is_genuine(token, standing.session.salt):
            raise RefreshInvalid("forged, or its session is gone")
        return standing

    def _rotate(self, token: RefreshToken, standing: Standing) -> TokenPair | None:
        """One attempt to refresh; None if another request was faster."""
        now = self.clock()
        session = standing.session
        if not standing.is_good(now):
            raise SessionOver
        presented = recognise(token.counter, session, now=now, grace_s=self.session_policy.grace_s)
        if presented is Presented.REUSED:
            raise self._reused(session)
        if presented is Presented.REPEATED:
            return self.opening.pair(standing.user, session)
        idle_end = self.session_policy.idle_end(now, session.expires_at)
        rotated = self.sessions.rotate(session, now=now, idle_expires_at=idle_end)
        return self.opening.pair(standing.user, rotated) if rotated else None

    def _reused(self, session: Session) -> RefreshReused:
        """End the session whose token came back, before anybody is answered."""
        event = Event(Action.REFRESH_REUSED, user_id=session.user_id, session_id=session.id)
        self._ends.end(event, reason="refresh_reused")
        return RefreshReused()

    def _refreshable(self, refresh: str) -> SessionId:
        """The session of a genuine refresh token, alive or not; raises TokenInvalid."""
        try:
            return self._genuine(parse_refresh_token(refresh)).session.id
        except RefreshInvalid as error:
            raise TokenInvalid("refresh token") from error

    def _end(self, session_id: SessionId, token: AccessToken | None) -> Outcome[Session | None]:
        shown: TokenId | None = token.token_id if token else None
        event = Event(
            Action.SESSION_ENDED,
            user_id=token.user_id if token else None,
            session_id=session_id,
            once=session_id,
        )
        return self._ends.end(event, reason="logout", token_id=shown)

    @property
    def _ends(self) -> SessionEnds:
        return SessionEnds(store=self.sessions, revocations=self.revocations, audit=self.audit)
