"""
The second step of a login, and the verification of second factors for logins and step-ups.

Tries are counted in SQL before anything is compared. MOST_TRIES of them are one *round* of an account.
A challenge contains the round in which it was issued, and is invalid once the next round has begun.  A
correct answer sets the count back to the beginning of its round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from authsvc.domain.accounts.challenges import (
    CHALLENGE_LIFE_S,
    Aim,
    Challenge,
    ChallengeTexts,
    new_challenge,
)
from authsvc.domain.accounts.codes import RecoveryDigests
from authsvc.domain.accounts.factors import (
    MOST_FAILURES,
    AnswerKind,
    Factor,
    FactorStore,
    totp_step,
)
from authsvc.domain.accounts.mails import Template
from authsvc.domain.accounts.opening import LoginOrigin, SessionOpening, TokenPair
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.credentials import Credentials, CredentialStore, UsedUp, known_device
from authsvc.domain.errors import (
    AuthError,
    CodeInvalid,
    CounterNotRisen,
    NotFound,
    SecondFactorRequired,
    StoreUnavailable,
)
from authsvc.domain.ratelimits import Limits, OnOutage, Rule, account_subject, device_subject
from authsvc.domain.tokens.devices import Device, DeviceTokens
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.encryption import DataKeys
from authsvc.domain.values.identifiers import UserId
from authsvc.domain.values.levels import Method

#: Consecutive wrong answers after which all open challenges of the account are invalid.
MOST_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One try, counted in SQL and not verified yet."""

    #: The count of the account, including this try.
    tries: int
    #: The TOTP to compare with, including this try in its count; None if there is none or it is locked.
    totp: Factor | None = None

    @property
    def ends_round(self) -> bool:
        """True for the last try of a round."""
        return self.tries % MOST_TRIES == 0

    @property
    def before_round(self) -> int:
        """The count at the beginning of the round."""
        return (self.tries - 1) // MOST_TRIES * MOST_TRIES


class TryStore(Protocol):
    """Counts tries, in SQL; each method is one transaction.  Raises StoreUnavailable."""

    def count(self, user_id: UserId, kind: AnswerKind, challenge: Challenge | None) -> Tried | None:
        """
        Count a try before it is verified; None if the user may not try.

        With *challenge*: None if it is of an earlier round, or if the password has changed.
        """

    def give_back(self, user_id: UserId, tried: Tried) -> None:
        """Take back *tried*, which was not judged, or was right and opened nothing; never below its round."""

    def failed(self, user_id: UserId, notices: tuple[Template, ...], *, lock: str | None) -> None:
        """Store the consequences of wrong answers: *notices* to the user, and a lock of the factor *lock*."""


#: Verifies an answer and returns what it uses up.  Raises CodeInvalid.
Judge = Callable[[Credentials, Tried], UsedUp]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to verify, with its kind."""

    kind: AnswerKind
    judge: Judge


def _unheard(_kind: str, _result: str) -> None:
    """The default callback: does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactors:
    """Counts and verifies second factors, for every purpose."""

    tries: TryStore
    keys: DataKeys
    digests: RecoveryDigests
    limits: Limits
    audit: AuditLog
    clock: Clock
    #: Called for each verification with its kind, and ``ok`` or the error code.
    on_result: Callable[[str, str], None] = _unheard

    def code(self, typed: str) -> Answer:
        """A code of an authenticator app."""

        def judge(credentials: Credentials, tried: Tried) -> UsedUp:
            if tried.totp is None:
                raise CodeInvalid("no TOTP, or it is locked")
            step = totp_step(self.keys, tried.totp, typed, self.clock())
            return UsedUp(user_id=credentials.user.id, shown=Method.CODE, totp=(tried.totp.id, step))

        return Answer(AnswerKind.TOTP, judge)

    def recovery_code(self, typed: str) -> Answer:
        """A recovery code; its use, in SQL, shows whether it exists."""

        def judge(credentials: Credentials, _tried: Tried) -> UsedUp:
            digest = self.digests.of(credentials.user.id, typed)
            if digest is None:
                raise CodeInvalid("not a recovery code")
            return UsedUp(user_id=credentials.user.id, shown=Method.CODE, recovery_digest=digest)

        return Answer(AnswerKind.RECOVERY_CODE, judge)

    @contextmanager
    def attempt(
        self,
        credentials: Credentials,
        answer: Answer,
        *,
        challenge: Challenge | None = None,
        device: Device | None = None,
    ) -> Iterator[UsedUp]:
        """
        Verify *answer* and yield what it uses up, for the transaction that acts on it.

        A CodeInvalid raised within counts as a wrong answer: another request was faster.

        Raises:
            CodeInvalid: it is wrong, or no try is left.
            RateLimited: too many wrong ones of this account, or of this known *device*.
            StoreUnavailable: the try cannot be counted.
        """
        tried = None
        try:
            with self._limited(credentials, answer.kind, device):
                tried = self._counted(credentials, answer.kind, challenge)
                with self._given_back(credentials, tried):
                    used_up = answer.judge(credentials, tried)
                    challenges = ((challenge.id, challenge.expires_at),) if challenge is not None else ()
                    yield replace(
                        used_up, challenges=(*challenges, *used_up.challenges), tries=tried.before_round
                    )
        except CodeInvalid as refusal:
            self.on_result(answer.kind.value, refusal.code)
            self._failed(credentials, answer.kind, tried)
            self.lock_copied(refusal)
            raise
        except AuthError as refusal:
            self.on_result(answer.kind.value, refusal.code)
            raise
        self.on_result(answer.kind.value, "ok")
        if answer.kind is AnswerKind.RECOVERY_CODE:
            self.audit.record(Event(Action.RECOVERY_USED, user_id=credentials.user.id))

    def lock_copied(self, refusal: CodeInvalid) -> None:
        """Lock the passkey in *refusal* if it may have been copied, and notify its owner."""
        if isinstance(refusal, CounterNotRisen):
            self._lock(refusal.user_id, AnswerKind.PASSKEY, refusal.factor_id, ())

    def _counted(self, credentials: Credentials, kind: AnswerKind, challenge: Challenge | None) -> Tried:
        tried = self.tries.count(credentials.user.id, kind, challenge)
        if tried is None:
            raise CodeInvalid("the challenge has ended, or its user has changed")
        return tried

    @contextmanager
    def _given_back(self, credentials: Credentials, tried: Tried) -> Iterator[None]:
        """
        Take *tried* back in SQL unless it was wrong, or it was right and what it opens was committed.

        An outage must not end challenges or lock an app.  It brings no further guesses: no answer that was
        compared and found wrong gets here.
        """
        try:
            yield
        except CodeInvalid:
            raise
        except BaseException:
            self.tries.give_back(credentials.user.id, tried)
            raise

    @contextmanager
    def _limited(self, credentials: Credentials, kind: AnswerKind, device: Device | None) -> Iterator[None]:
        """Count a try by account, or by known device; uncount it unless it was wrong."""
        account = account_subject(credentials.user.email)
        subject = device_subject(account, device) if device is not None else account
        # Only a TOTP code is short enough to guess: the other kinds are accepted even while nothing can be
        # counted.
        on_outage = OnOutage.REFUSE if kind is AnswerKind.TOTP else OnOutage.ALLOW
        taken = self.limits.take(Rule.SECOND_FACTOR, subject, on_outage=on_outage)
        try:
            yield
        except CodeInvalid:
            raise
        except BaseException:
            self.limits.refund(taken)
            raise
        self.limits.refund(taken)

    def _failed(self, credentials: Credentials, kind: AnswerKind, tried: Tried | None) -> None:
        """Record a wrong answer and its consequences."""
        user_id = credentials.user.id
        self.audit.record(Event(Action.SECOND_FACTOR_FAILED, user_id=user_id, detail=kind.value))
        if tried is None:
            return
        totp, notices = tried.totp, (Template.SECOND_FACTOR_FAILED,) if tried.ends_round else ()
        if totp is not None and totp.totp is not None and totp.totp.failures >= MOST_FAILURES:
            self._lock(user_id, kind, totp.id, notices)
        elif notices:
            self.tries.failed(user_id, notices, lock=None)

    def _lock(self, user_id: UserId, kind: AnswerKind, factor_id: str, notices: tuple[Template, ...]) -> None:
        self.audit.record(Event(Action.FACTOR_LOCKED, user_id=user_id, detail=kind.value))
        self.tries.failed(user_id, (*notices, Template.FACTOR_LOCKED), lock=factor_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLogin:
    """The second step of a login; no session exists before it."""

    factors: FactorStore
    second: SecondFactors
    challenges: ChallengeTexts
    credentials: CredentialStore
    opening: SessionOpening
    devices: DeviceTokens
    clock: Clock
    #: The RP ID whose passkeys can answer; None without passkeys.
    rp_id: str | None

    def required(self, proven: Credentials, device_id: str | None) -> AuthError:
        """The error for a correct password without second factor; contains the challenge to answer."""
        challenge = new_challenge(
            Aim.LOGIN,
            now=self.clock(),
            user_id=proven.user.id,
            password_version=proven.password_version,
            tries_round=proven.factor_tries // MOST_TRIES,
            device_id=device_id,
        )
        methods = self.factors.of_user(proven.user.id).methods(self.rp_id)
        return SecondFactorRequired(self.challenges.text(challenge), CHALLENGE_LIFE_S, methods)

    def open_challenge(self, text: str) -> tuple[Challenge, Credentials]:
        """The challenge in *text* and its user; raises CodeInvalid."""
        challenge = self.challenges.read(text, Aim.LOGIN, now=self.clock())
        if challenge.user_id is None:
            raise CodeInvalid("challenge: of nobody")
        try:
            found = self.credentials.by_user(challenge.user_id)
        except NotFound as error:
            raise CodeInvalid("challenge: its user is gone") from error
        if not found.user.is_active or found.password_version != challenge.password_version:
            raise CodeInvalid("challenge: its user has changed")
        return challenge, found

    def log_in(
        self, text: str, answer: Answer, *, ip: str, user_agent: str | None, device_token: str
    ) -> TokenPair:
        """
        Finish the login of the challenge *text*.

        Raises CodeInvalid, RateLimited, StoreUnavailable.
        """
        self.opening.signer.require_key(self.clock())
        challenge, credentials = self.open_challenge(text)
        device = known_device(self.devices, device_token, credentials, self.clock())
        origin = LoginOrigin(ip=ip, user_agent=user_agent, device_id=challenge.device_id, device=device)
        with self.second.attempt(credentials, answer, challenge=challenge, device=device) as used_up:
            pair = self.opening.open(credentials, origin, Method.PASSWORD, used_up.shown, used_up=used_up)
            if pair is None:
                raise CodeInvalid("the user has changed meanwhile")
            return pair


class SecondFactorsOff:
    """Used if this process has no second factors, in case another process already has them on."""

    def required(self, _proven: Credentials, _device_id: str | None) -> AuthError:
        """A temporary error: another process can continue this login."""
        return StoreUnavailable("second factors: off in this process")
