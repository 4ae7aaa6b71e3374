"""Proving again who one is, in a session: what asks for it, and what it brings (RFC 9470)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from authsvc.domain.accounts.opening import SessionOpening
from authsvc.domain.accounts.second_factor import Answer, SecondFactors
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.credentials import Credentials, CredentialStore, OwnAccount, UsedUp, known_device
from authsvc.domain.errors import Forbidden, StepUpRequired, TokenInvalid
from authsvc.domain.sessions import Standing
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId
from authsvc.domain.values.levels import Acr, Level, Method, Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Asks for a proof that is recent, and as strong as the account allows."""

    credentials: CredentialStore
    max_age_s: int
    clock: Clock

    def require(self, token: AccessToken, *, of_everybody: bool = True) -> None:
        """
        Raise StepUpRequired unless the user of *token* has proven a short while ago who they are.

        Not *of_everybody*: of those who have a second factor.  SQL is asked only where the token is not
        good enough for everybody.
        """
        now_s = self.clock().timestamp()
        strong = Requirement(acr=Acr.AAL2, max_age_s=self.max_age_s)
        if strong.is_met_by(token.level, now_s):
            return
        if self.credentials.by_user(token.user_id).has_factor:
            raise StepUpRequired(strong)
        recent = Requirement(max_age_s=self.max_age_s)
        if of_everybody and not recent.is_met_by(token.level, now_s):
            raise StepUpRequired(recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedUp:
    """The answer to a step-up; ``expires_in`` in seconds."""

    access_token: str
    expires_in: int
    level: Level

    def __repr__(self) -> str:
        """Without the token."""
        return f"SteppedUp(level={self.level!r})"


class LevelStore(Protocol):
    """Where sessions have their levels.  Raises StoreUnavailable."""

    def raise_level(
        self, session_id: SessionId, proven: Credentials, method: Method, used_up: UsedUp | None
    ) -> Standing | None:
        """
        Note in the session that *method* was shown; the session with its user, as they are then.

        One transaction, in which *used_up* is used up; raises CodeInvalid where somebody was faster.  None:
        the session is over, or its user has changed.  Without *used_up* their password and having no second
        factor must still be as *proven*.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUps:
    """
    Raises the level of a session, and issues an access token that says so.

    No step-up ends a session or lowers its level.
    """

    credentials: CredentialStore
    levels: LevelStore
    account: OwnAccount
    second: SecondFactors
    opening: SessionOpening
    audit: AuditLog

    def by_password(self, token: AccessToken, password: str) -> SteppedUp:
        """
        For accounts without a second factor.

        Raises:
            Forbidden: the account has one.
            WrongPassword, TokenInvalid, RateLimited, HashingBusy, StoreUnavailable.
        """
        if self.credentials.by_user(token.user_id).has_factor:
            raise Forbidden
        return self._raised(token, self.account.prove(token, password), Method.PASSWORD)

    def by_factor(self, token: AccessToken, answer: Answer, device_token: str) -> SteppedUp:
        """By a second factor; raises CodeInvalid, TokenInvalid, RateLimited, StoreUnavailable."""
        credentials = self.credentials.by_user(token.user_id)
        device = known_device(self.opening.devices, device_token, credentials, self.opening.clock())
        with self.second.attempt(credentials, answer, device=device) as used_up:
            return self._raised(token, credentials, used_up.shown, used_up)

    def _raised(
        self, token: AccessToken, proven: Credentials, method: Method, used_up: UsedUp | None = None
    ) -> SteppedUp:
        # Before anything is used up: without a key there would be nothing to give for it.
        self.opening.signer.require_key(self.opening.clock())
        standing = self.levels.raise_level(token.session_id, proven, method, used_up)
        if standing is None or standing.session.level is None:
            raise TokenInvalid("the session is over, or its user has changed")
        text, issued = self.opening.access_token(standing.user, standing.session)
        self.audit.record(
            Event(
                Action.SESSION_STEPPED_UP,
                user_id=token.user_id,
                session_id=token.session_id,
                detail=standing.session.level.acr,
            )
        )
        return SteppedUp(
            access_token=text,
            expires_in=issued.expires_at - issued.issued_at,
            level=standing.session.level,
        )
