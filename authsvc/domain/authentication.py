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
from authsvc.domain.groups import Postponed, Steps, alone, by_itself, call
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import Limits, Rule, account_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.sessions import (
    Presented,
    RefreshToken,
    RefreshTokens,
    Rotation,
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

#: Attempts of a refresh. One that loses a race reads the session again: it has a successor, was reused or
#: ended.  The first attempt does not wait for the one that is faster.
REFRESH_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The data of a registration."""

    email: str
    password: str
    profile: Profile
    #: True if an operator confirms the address.
    email_verified: bool = False

    def __repr__(self) -> str:
        """Without address and password."""
        return "Registration()"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAttempt:
    """The data of a login: credentials and origin."""

    email: str
    password: str
    device_id: str | None
    ip: str
    user_agent: str | None
    #: As presented; anything that is not a token of this account is ignored.
    device_token: str = ""

    def __repr__(self) -> str:
        """Without address, password and token."""
        return f"LoginAttempt(ip={self.ip!r})"


class SecondStep(Protocol):
    """The second step of a login, for users who have a second factor."""

    def required(self, proven: Credentials, device_id: str | None) -> AuthError:
        """The error that asks for a second factor; contains a challenge."""


class Verification(Protocol):
    """Mails that verify the addresses of accounts."""

    @property
    def is_required(self) -> bool:
        """True if a login needs a verified address."""

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert *user* and a mail to verify their address; raises EmailTaken."""

    def remind(self, credentials: Credentials) -> None:
        """Send another mail after a login with the correct password, unless one was sent lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """The use cases, over users, sessions, tokens and limits; every method documents its errors."""

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
    #: None if no mails are sent.
    verification: Verification | None = None
    #: False if only operators create accounts.
    is_open: bool = True

    def register(self, form: Registration, *, by_operator: bool = False) -> User:
        """
        Create an account; a user who registers gets a mail to verify their address.

        Raises:
            RegistrationClosed: only operators create accounts.
            Invalid: address or password break a rule.
            EmailTaken: by the unique index, so also in a race.
            HashingBusy, StoreUnavailable.
        """
        if not (self.is_open or by_operator):
            raise RegistrationClosed
        email = required_email(form.email)
        # Check before other work: under overload most requests are refused here.
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
        Log in with address and password; the work is the same whether or not the address is known.

        Raises:
            InvalidCredentials: unknown address, wrong password or disabled user.
            EmailUnverified: the password is correct, but the address must be verified first.
            SecondFactorRequired: the password is correct; no session is open yet.
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
            RefreshInvalid: not a token of this service; no session is affected.
            SessionOver: the session has ended or expired.
            RefreshReused: used before, and outside the grace time; the session has now ended.
            RateLimited, StoreUnavailable.
        """
        return alone(self.refreshing(presented))

    def refreshing(self, presented: str) -> Steps[TokenPair]:
        """The steps of :meth:`refresh`."""
        # Check before the token is used: without a signing key there is no new pair.
        self.opening.signer.require_key(self.clock())
        token = parse_refresh_token(presented)
        standing = yield from self._genuine(token)
        taken = yield from self.limits.taking(Rule.REFRESH, token.session_id)
        try:
            return (yield from self._pair_after(token, standing))
        except Postponed:
            self.limits.refund(taken)  # it will be counted again
            raise

    def log_out(self, access: str | None, refresh: str | None) -> Outcome[Session | None]:
        """
        End the session that *access* (it may have expired) or *refresh* belongs to; idempotent.

        Raises:
            TokenInvalid: neither is given, one is forged, or they name two sessions; nothing ends.
            Forbidden: *access* is a machine's.
            StoreUnavailable.
        """
        return alone(self.logging_out(access, refresh))

    def logging_out(self, access: str | None, refresh: str | None) -> Steps[Outcome[Session | None]]:
        """The steps of :meth:`log_out`."""
        shown = self.reader.read_expired(access, now=self.clock()) if access is not None else None
        token = require_person(shown) if shown is not None else None
        named = {token.session_id} if token else set()
        if refresh is not None:
            named.add((yield from self._refreshable(refresh)))
        if len(named) != 1:
            raise TokenInvalid("no session, or two of them")
        return (yield from self._end(named.pop(), token))

    def _known_device(self, attempt: LoginAttempt, email: Email | None) -> Device | None:
        """The known device of *attempt*; an invalid device token has the same effect as none."""
        if email is None or not attempt.device_token:
            return None
        if self.devices.read(attempt.device_token, account_subject(email), now=self.clock()) is None:
            return None
        # Before the attempt is counted, but only after a correct password: no other caller gets here.
        found = self.credentials.by_email(email)
        return known_device(self.devices, attempt.device_token, found, self.clock()) if found else None

    def require_proven_address(self, proven: Credentials) -> None:
        """
        Raise EmailUnverified if the address must be verified first; sends a mail, unless one was sent lately.
        """
        if self.verification is None or not self.verification.is_required or proven.user.email_verified:
            return
        self.verification.remind(proven)
        raise EmailUnverified

    def _refused(self, attempt: LoginAttempt, credentials: Credentials | None) -> InvalidCredentials:
        """Record the failed login and return its error."""
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
        """
        Open a session for an authenticated user, unless they were disabled or changed their password
        meanwhile.
        """
        origin = LoginOrigin(
            ip=attempt.ip, user_agent=attempt.user_agent, device_id=attempt.device_id, device=device
        )
        rehash = self.proof.rehash(attempt.password, verified)
        pair = self.opening.open(verified, origin, Method.PASSWORD, rehash=rehash)
        if pair is None:
            raise self._refused(attempt, verified)
        return pair

    def _genuine(self, token: RefreshToken) -> Steps[Standing]:
        """The session of *token*, if this service made it; raises RefreshInvalid."""
        standing = yield from call(self.sessions.standings, token.session_id)
        if standing is None or not self.refresh_tokens.is_genuine(token, standing.session.salt):
            raise RefreshInvalid("forged, or its session is gone")
        return standing

    def _pair_after(self, token: RefreshToken, standing: Standing) -> Steps[TokenPair]:
        """The next pair after *token*, however many requests use it at the same time."""
        for attempt in range(REFRESH_ROUNDS):
            pair = yield from self._rotate(token, standing, waits=attempt > 0)
            if pair is not None:
                return pair
            standing = yield from self._genuine(token)
        raise SessionOver

    def _rotate(self, token: RefreshToken, standing: Standing, *, waits: bool) -> Steps[TokenPair | None]:
        """One attempt to refresh, which *waits* for locks or not; None if another request was faster."""
        now = self.clock()
        session = standing.session
        if not standing.is_good(now):
            raise SessionOver
        presented = recognise(token.counter, session, now=now, grace_s=self.session_policy.grace_s)
        if presented is Presented.REUSED:
            raise (yield from self._reused(session))
        if presented is Presented.REPEATED:
            return (yield from self.opening.pairing(standing.user, session))
        idle_end = self.session_policy.idle_end(now, session.expires_at)
        rotation = Rotation(session=session, now=now, idle_expires_at=idle_end)
        if waits:
            yield from by_itself()
            rotated = self.sessions.rotate(rotation)
        else:
            rotated = yield from call(self.sessions.rotate_free, rotation)
        return (yield from self.opening.pairing(standing.user, rotated)) if rotated else None

    def _reused(self, session: Session) -> Steps[RefreshReused]:
        """End the session whose token was reused, before the request is answered."""
        event = Event(Action.REFRESH_REUSED, user_id=session.user_id, session_id=session.id)
        yield from self._ends.ending(event, reason="refresh_reused")
        return RefreshReused()

    def _refreshable(self, refresh: str) -> Steps[SessionId]:
        """The session of a genuine refresh token, alive or not; raises TokenInvalid."""
        try:
            standing = yield from self._genuine(parse_refresh_token(refresh))
        except RefreshInvalid as error:
            raise TokenInvalid("refresh token") from error
        return standing.session.id

    def _end(self, session_id: SessionId, token: AccessToken | None) -> Steps[Outcome[Session | None]]:
        shown: TokenId | None = token.token_id if token else None
        event = Event(
            Action.SESSION_ENDED,
            user_id=token.user_id if token else None,
            session_id=session_id,
            once=session_id,
        )
        return (yield from self._ends.ending(event, reason="logout", token_id=shown))

    @property
    def _ends(self) -> SessionEnds:
        return SessionEnds(store=self.sessions, revocations=self.revocations, audit=self.audit)
