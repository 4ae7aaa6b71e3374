"""Opening a session for an authenticated user, and its tokens."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from authsvc.domain.audit import Action, Event, TransactionalAuditLog
from authsvc.domain.credentials import Credentials, CredentialStore, Rehash, UsedUp, device_of
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.groups import Steps, alone, call
from authsvc.domain.revocations import Revocations
from authsvc.domain.sessions import SALT_BYTES, RefreshTokens, Session, SessionPolicy
from authsvc.domain.tokens.access import AccessToken, TokenSigner
from authsvc.domain.tokens.devices import Device, DeviceTokens
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, new_id
from authsvc.domain.values.levels import Method, level_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """The answer to a login or a refresh (RFC 6749 §5.1); lifetimes in seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    session_id: SessionId
    #: Issued by a login, to be sent with the next one.
    device_token: str | None = None

    def __repr__(self) -> str:
        """Without the tokens."""
        return f"TokenPair(session_id={self.session_id!r})"


class IssuedTokens(Protocol):
    """The record in Redis of issued tokens."""

    def remember(self, issued: Sequence[tuple[AccessToken, Email]]) -> Sequence[None]:
        """Note the tokens as issued to the users with these addresses; raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginOrigin:
    """The origin of a login; *device* is set if it has logged in before."""

    ip: str
    user_agent: str | None
    device_id: str | None = None
    device: Device | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpening:
    """The last step of every kind of login; also issues the token pair of a refresh."""

    credentials: CredentialStore
    policy: SessionPolicy
    signer: TokenSigner
    refresh_tokens: RefreshTokens
    devices: DeviceTokens
    issued: IssuedTokens
    revocations: Revocations
    audit: TransactionalAuditLog
    clock: Clock

    def open(
        self,
        verified: Credentials,
        origin: LoginOrigin,
        *shown: Method,
        rehash: Rehash | None = None,
        used_up: UsedUp | None = None,
    ) -> TokenPair | None:
        """
        Open a session for *verified*, authenticated by the methods *shown*; None if the user changed
        meanwhile.

        Raises CodeInvalid if another request has used what is in *used_up*.
        """
        session = self._new_session(verified.user, origin, shown)
        committed = self.credentials.open_session(
            verified, session, rehash=rehash, max_sessions=self.policy.max_per_user, used_up=used_up
        )
        if committed is None:
            return None
        user = self.revocations.publish(committed).value
        if rehash is not None:
            self.audit.record(Event(Action.PASSWORD_REHASHED, user_id=user.id))
        self.audit.record(
            Event(
                Action.LOGIN_SUCCEEDED,
                user_id=user.id,
                session_id=session.id,
                client_ip=origin.ip,
                device_id=origin.device_id,
            )
        )
        device_token = self.devices.issue(device_of(verified, origin.device), now=self.clock())
        return replace(self.pair(user, session), device_token=device_token)

    def pair(self, user: User, session: Session) -> TokenPair:
        """A token pair for *session* as it is now."""
        return alone(self.pairing(user, session))

    def pairing(self, user: User, session: Session) -> Steps[TokenPair]:
        """The steps of :meth:`pair`."""
        text, token = yield from self._issuing(user, session)
        return TokenPair(
            access_token=text,
            expires_in=token.expires_at - token.issued_at,
            refresh_token=self.refresh_tokens.mint(session.id, session.counter, session.salt),
            refresh_expires_in=_seconds_until(session.ends_at, self.clock()),
            session_id=session.id,
        )

    def access_token(self, user: User, session: Session) -> tuple[str, AccessToken]:
        """One access token for *session* as it is now."""
        return alone(self._issuing(user, session))

    def _issuing(self, user: User, session: Session) -> Steps[tuple[str, AccessToken]]:
        text, token = self.signer.issue(
            user, session.id, now=self.clock(), not_after=session.ends_at, level=session.level
        )
        try:
            yield from call(self.issued.remember, (token, user.email))
        except StoreUnavailable:
            # Nothing is lost: the first check of this token asks SQL and writes the record.
            self.audit.record(Event(Action.TOKEN_UNRECORDED, user_id=user.id, session_id=session.id))
        return text, token

    def _new_session(self, user: User, origin: LoginOrigin, shown: Sequence[Method]) -> Session:
        now = self.clock()
        absolute_end = now + timedelta(seconds=self.policy.max_ttl_s)
        return Session(
            id=SessionId(new_id()),
            user_id=user.id,
            device_id=origin.device_id,
            ip=origin.ip,
            user_agent=origin.user_agent,
            created_at=now,
            last_used_at=now,
            idle_expires_at=self.policy.idle_end(now, absolute_end),
            expires_at=absolute_end,
            counter=0,
            rotated_at=now,
            salt=secrets.token_bytes(SALT_BYTES),
            level=level_of(*shown, at=now),
        )


def _seconds_until(end: datetime, now: datetime) -> int:
    """Seconds from *now* to *end*, rounded up, never negative."""
    return max(0, math.ceil((end - now).total_seconds()))
