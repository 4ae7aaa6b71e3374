"""Step-up: authenticating again within a session, where recent or stronger proof is required (RFC 9470)."""

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
    """Requires recent authentication, as strong as the account allows."""

    credentials: CredentialStore
    max_age_s: int
    clock: Clock

    def require(self, token: AccessToken, *, of_everybody: bool = True) -> None:
        """
        Raise StepUpRequired unless the user of *token* has authenticated recently.

        Without *of_everybody* this is required only of users with a second factor. SQL is asked only if the
        token alone does not suffice.
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
    """The levels of sessions, in SQL. Raises StoreUnavailable."""

    def raise_level(
        self, session_id: SessionId, proven: Credentials, method: Method, used_up: UsedUp | None
    ) -> Standing | None:
        """
        Store in the session that *method* was used; returns the updated session with its user.

        One transaction, in which *used_up* is used up; raises CodeInvalid if another request was faster.
        Returns None if the session is over or its user has changed.  Without *used_up*, the password must
        still be that of *proven*, and there must be no second factor.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUps:
    """
    Raises the level of a session and issues an access token with the new level.

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
        Step up by password, for accounts without a second factor.

        Raises:
            Forbidden: the account has one.
            WrongPassword, TokenInvalid, RateLimited, HashingBusy, StoreUnavailable.
        """
        if self.credentials.by_user(token.user_id).has_factor:
            raise Forbidden
        return self._raised(token, self.account.prove(token, password), Method.PASSWORD)

    def by_factor(self, token: AccessToken, answer: Answer, device_token: str) -> SteppedUp:
        """Step up by a second factor; raises CodeInvalid, TokenInvalid, RateLimited, StoreUnavailable."""
        credentials = self.credentials.by_user(token.user_id)
        device = known_device(self.opening.devices, device_token, credentials, self.opening.clock())
        with self.second.attempt(credentials, answer, device=device) as used_up:
            return self._raised(token, credentials, used_up.shown, used_up)

    def _raised(
        self, token: AccessToken, proven: Credentials, method: Method, used_up: UsedUp | None = None
    ) -> SteppedUp:
        # Check before the factor is used up: without a signing key there is no token to issue.
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
