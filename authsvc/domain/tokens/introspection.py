"""Introspection and revocation of tokens, for clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from authsvc.domain.clients import Client, Right
from authsvc.domain.errors import RefreshInvalid, RightMissing, StoreUnavailable, TokenInvalid
from authsvc.domain.revocations import Committed, Outcome
from authsvc.domain.sessions import (
    Presented,
    RefreshToken,
    RefreshTokens,
    Session,
    parse_refresh_token,
    recognise,
)
from authsvc.domain.tokens.access import AccessToken, MachineToken, TokenProfile
from authsvc.domain.tokens.checks import Standings, TokenChecks
from authsvc.domain.tokens.machines import MachineTokens
from authsvc.domain.users import Role
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.domain.values.levels import Level

#: Ends the session of an access token, of a refresh token, or of both; raises TokenInvalid.
LogOut = Callable[[str | None, str | None], Outcome[Session | None]]


class Kind(StrEnum):
    """Kinds of tokens."""

    ACCESS = "access_token"
    REFRESH = "refresh_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveToken:
    """A token that is valid now; times in seconds since the epoch."""

    kind: Kind
    user_id: UserId
    session_id: SessionId
    roles: tuple[Role, ...]
    issued_at: int
    expires_at: int
    issuer: str
    audience: str
    #: Refresh tokens have none.
    token_id: TokenId | None = None
    #: The level of authentication, if the token has one.
    level: Level | None = None


class _Away:
    """Stands for SQL after a failed query of the same request."""

    def standing(self, _whose: object, /) -> None:
        raise StoreUnavailable("sql: found away")

    def revoke(self, _token: MachineToken, /) -> Committed[None]:
        raise StoreUnavailable("sql: found away")

    def log_out(self, _access: str | None, _refresh: str | None) -> Outcome[Session | None]:
        raise StoreUnavailable("sql: found away")


@dataclass(frozen=True, slots=True, kw_only=True)
class Introspection:
    """
    Answers for access and refresh tokens (RFC 7662) and revokes them (RFC 7009).

    The form of a token shows its kind; a hint is not needed, and a wrong one has no effect.
    """

    checks: TokenChecks
    machines: MachineTokens
    sessions: Standings
    refresh_tokens: RefreshTokens
    log_out: LogOut
    profile: TokenProfile
    #: How long the predecessor of a refresh token still yields its successor (seconds).
    grace_s: int
    clock: Clock

    def describe(self, text: str, *, sees_refresh: bool) -> ActiveToken | MachineToken | None:
        """
        Describe *text* if it is valid now; rotates, uses and ends nothing.

        Access tokens are checked in Redis or SQL as usual, refresh tokens only in SQL. Without
        *sees_refresh*, refresh tokens are inactive: a resource server would accept them as bearer tokens.

        Raises:
            StoreUnavailable: neither store can prove an answer.
        """
        try:
            refresh = parse_refresh_token(text)
        except RefreshInvalid:
            return self._access(text)
        return self._refresh(refresh) if sees_refresh else None

    def revoke(self, text: str, *, by: Client) -> None:
        """
        End the session of *text*, an access token (it may have expired) or a refresh token.

        Of a machine, only this token ends, and only its own client may revoke it. Unknown tokens are ignored.
        Idempotent.

        Raises:
            RightMissing: another client's token; or *by* lacks the right, and the token is not its own.
            StoreUnavailable: SQL is away and nothing has ended; or it has ended, and Redis could not be
            updated yet.
        """
        machine = self._machine(text)
        if not (machine.client_id == by.id if machine else by.has(Right.REVOKE)):
            raise RightMissing
        is_complete = self.machines.revoke(machine).is_complete if machine else self._end_session(text)
        if not is_complete:
            # RFC 7009 §2.2.1: the client must assume that the token is still valid, and retry.
            raise StoreUnavailable("redis: revoked in SQL alone")

    def _machine(self, text: str) -> MachineToken | None:
        """The machine's token in *text*; None if it is not one."""
        try:
            token = self.checks.reader.read_expired(text, now=self.clock())
        except TokenInvalid:
            return None
        return token if isinstance(token, MachineToken) else None

    def _end_session(self, text: str) -> bool:
        """End the session of *text*, if there is one; False if Redis could not be updated yet."""
        access, refresh = (None, text) if _is_refresh_token(text) else (text, None)
        try:
            return self.log_out(access, refresh).is_complete
        except TokenInvalid:
            return True

    def without_sql(self) -> Introspection:
        """The same for a request that has just waited for SQL without an answer: it does not wait again."""
        away = _Away()
        checks = replace(self.checks, sessions=away, machines=away)
        machines = replace(self.machines, store=away)
        return replace(self, checks=checks, machines=machines, sessions=away, log_out=away.log_out)

    def _access(self, text: str) -> ActiveToken | MachineToken | None:
        try:
            token = self.checks.check_any(text)
        except TokenInvalid:
            return None
        return token if isinstance(token, MachineToken) else _described(token)

    def _refresh(self, token: RefreshToken) -> ActiveToken | None:
        """
        Valid are the tokens that a refresh would accept: the current one, or its predecessor within the grace
        time.
        """
        standing = self.sessions.standing(token.session_id)
        now = self.clock()
        if standing is None or not self.refresh_tokens.is_genuine(token, standing.session.salt):
            return None
        session = standing.session
        presented = recognise(token.counter, session, now=now, grace_s=self.grace_s)
        if not standing.is_good(now) or presented is Presented.REUSED:
            return None
        return ActiveToken(
            kind=Kind.REFRESH,
            user_id=standing.user.id,
            session_id=session.id,
            roles=self.profile.roles.shown(standing.user.roles),
            issued_at=int(session.rotated_at.timestamp()),
            expires_at=int(self._end(session, presented).timestamp()),
            issuer=self.profile.issuer,
            audience=self.profile.audience,
        )

    def _end(self, session: Session, presented: Presented) -> datetime:
        if presented is Presented.CURRENT:
            return session.ends_at
        return min(session.ends_at, session.rotated_at + timedelta(seconds=self.grace_s))


def _described(token: AccessToken) -> ActiveToken:
    return ActiveToken(
        kind=Kind.ACCESS,
        user_id=token.user_id,
        session_id=token.session_id,
        roles=token.roles,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        issuer=token.issuer,
        audience=token.audience,
        token_id=token.token_id,
        level=token.level,
    )


def _is_refresh_token(text: str) -> bool:
    try:
        parse_refresh_token(text)
    except RefreshInvalid:
        return False
    return True
