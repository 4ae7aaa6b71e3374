"""Sessions and their refresh tokens: rotation, grace, reuse (RFC 9700 §4.14)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from authsvc.domain.audit import Action, Entry, Event, TransactionalAuditLog
from authsvc.domain.errors import AuthError, NotFound, RefreshInvalid
from authsvc.domain.groups import Steps, alone, by_itself, call
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.domain.values.levels import Level

SALT_BYTES = 16
#: Largest expected difference between the clocks of two nodes (seconds).
CLOCK_SKEW_S = 5

_SID_BYTES, _COUNTER_BYTES, _TAG_BYTES = 16, 4, 32
_TOKEN_BYTES = _SID_BYTES + _COUNTER_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    One login. ``counter`` is the number of the current refresh token; ``salt`` never leaves SQL and this
    process.
    """

    id: SessionId
    user_id: UserId
    device_id: str | None
    ip: str
    user_agent: str | None
    created_at: datetime
    last_used_at: datetime
    #: The session expires at this time unless it is used.
    idle_expires_at: datetime
    #: The session expires at this time even if it is used.
    expires_at: datetime
    counter: int
    #: When ``counter`` became the current one.
    rotated_at: datetime
    salt: bytes
    #: None if an earlier version opened it and there was no step-up since.
    level: Level | None = None
    revoked_at: datetime | None = None
    reason: str | None = None

    @property
    def ends_at(self) -> datetime:
        """When the session ends if it is not used again."""
        return min(self.idle_expires_at, self.expires_at)

    def is_alive(self, now: datetime) -> bool:
        """Neither ended nor expired."""
        return self.revoked_at is None and now < self.ends_at


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPolicy:
    """How long sessions last, in seconds, and how many a user may have."""

    idle_ttl_s: int
    max_ttl_s: int
    max_per_user: int
    grace_s: int

    def idle_end(self, now: datetime, absolute_end: datetime) -> datetime:
        """The idle end of a session used *now*; never beyond its absolute end."""
        return min(now + timedelta(seconds=self.idle_ttl_s), absolute_end)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The content of a refresh token; not to be trusted until its tag is verified."""

    session_id: SessionId
    counter: int
    tag: bytes


@dataclass(frozen=True, slots=True, repr=False)
class RefreshTokens:
    """
    Makes and reads refresh tokens: base64url of session id, counter and HMAC-SHA-256 tag.

    The tag is keyed by the server's secret and covers the session's salt, so that the database alone cannot
    forge it, and the same session and counter always give the same token.
    """

    secret: bytes

    def mint(self, session_id: SessionId, counter: int, salt: bytes) -> str:
        """The token number *counter* of the session."""
        body = uuid.UUID(session_id).bytes + counter.to_bytes(_COUNTER_BYTES)
        return base64.urlsafe_b64encode(body + self._tag(body, salt)).rstrip(b"=").decode()

    def is_genuine(self, token: RefreshToken, salt: bytes) -> bool:
        """True if this service made *token*; compared in constant time."""
        body = uuid.UUID(token.session_id).bytes + token.counter.to_bytes(_COUNTER_BYTES)
        return hmac.compare_digest(token.tag, self._tag(body, salt))

    def _tag(self, body: bytes, salt: bytes) -> bytes:
        return hmac.digest(self.secret, b"authsvc refresh token 1" + salt + body, hashlib.sha256)


def parse_refresh_token(text: str) -> RefreshToken:
    """
    Parse *text*, which must be in canonical encoding.

    Raises:
        RefreshInvalid: it is not.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefreshInvalid("not base64url") from error
    if len(raw) != _TOKEN_BYTES or base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
        raise RefreshInvalid("length or encoding")
    counter = int.from_bytes(raw[_SID_BYTES : _SID_BYTES + _COUNTER_BYTES])
    session_id = SessionId(str(uuid.UUID(bytes=raw[:_SID_BYTES])))
    return RefreshToken(session_id, counter, raw[_SID_BYTES + _COUNTER_BYTES :])


class Presented(Enum):
    """Kinds of genuine refresh tokens of a live session."""

    CURRENT = "current"
    #: The direct predecessor within the grace time: parallel tabs, or a lost response.
    REPEATED = "repeated"
    REUSED = "reused"


def recognise(counter: int, session: Session, *, now: datetime, grace_s: int) -> Presented:
    """
    The kind of the token *counter* at *now*; *grace_s* in seconds, 0: no grace time.

    A rotation time in the future is accepted within CLOCK_SKEW_S: the clock of another node may be ahead.
    Beyond that the time is not trustworthy, and the token counts as reused.
    """
    if counter == session.counter:
        return Presented.CURRENT
    if not grace_s or counter != session.counter - 1:
        return Presented.REUSED
    age = now - session.rotated_at
    if timedelta(seconds=-CLOCK_SKEW_S) <= age <= timedelta(seconds=grace_s):
        return Presented.REPEATED
    return Presented.REUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A session and its user, as they are in SQL now."""

    session: Session
    user: User

    def is_good(self, now: datetime) -> bool:
        """True if the session is live and the user is active."""
        return self.user.is_active and self.session.is_alive(now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A session as it was read, whose refresh token is to be replaced *now*, and its idle end after that."""

    session: Session
    now: datetime
    idle_expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A session that is to be ended, and the audit event that is to be stored with it."""

    session_id: SessionId
    reason: str
    #: The access token that was shown, which is revoked by name, too.
    token_id: TokenId | None = None
    event: Entry | None = None


class SessionStore(Protocol):
    """Stores sessions; each method is one transaction. Raises StoreUnavailable."""

    def standing(self, session_id: SessionId) -> Standing | None:
        """The session with its user, in one query; None if either is deleted."""

    def standings(self, session_ids: Sequence[SessionId]) -> Sequence[Standing | AuthError | None]:
        """The same for many; an error where a row is damaged."""

    def rotate(self, rotation: Rotation) -> Session | None:
        """
        Replace ``session.counter`` if it is current and the session live: one conditional update.

        Returns the updated session, with its level: a step-up may have raised it since *session* was read.
        """

    def rotate_free(self, rotations: Sequence[Rotation]) -> Sequence[Session | None]:
        """The same for many, without waiting for locks: None also for a session that another one changes."""

    def end(self, ending: Ending) -> Committed[Session | None]:
        """
        End it, and store its event if the audit trail stores such events.

        For an ended session, return its entry of the log again; the event is not stored.  None:
        there is no such session.
        """

    def end_free(self, endings: Sequence[Ending]) -> Sequence[Committed[Session | None] | None]:
        """
        The same for many with events, without waiting for locks; None for each that :meth:`end` has to do.
        """

    def end_all(self, user_id: UserId, *, reason: str, keep: SessionId | None) -> Committed[int]:
        """End all sessions of the user, except *keep* if given; without *keep* their epoch rises, too."""

    def of_user(self, user_id: UserId, *, now: datetime) -> Sequence[Session]:
        """The live sessions, the most recently used first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnds:
    """Ends one session: in SQL with its audit event, and in Redis."""

    store: SessionStore
    revocations: Revocations
    audit: TransactionalAuditLog

    def end(self, event: Event, *, reason: str, token_id: TokenId | None = None) -> Outcome[Session | None]:
        """End the session of *event*; idempotent."""
        return alone(self.ending(event, reason=reason, token_id=token_id))

    def ending(
        self, event: Event, *, reason: str, token_id: TokenId | None = None
    ) -> Steps[Outcome[Session | None]]:
        """The steps of :meth:`end`."""
        draft = self.audit.draft(event)
        ending = Ending(
            session_id=SessionId(event.session_id or ""), reason=reason, token_id=token_id, event=draft
        )
        committed = yield from call(self.store.end_free, ending)
        if committed is None:
            yield from by_itself()
            committed = self.store.end(ending)
        outcome = yield from self.revocations.publishing(committed)
        ended = committed.value
        user_id = ended.user_id if ended else event.user_id
        if committed.is_noted:
            self.audit.stored(replace(draft, user_id=user_id))
        else:
            self.audit.record(replace(event, user_id=user_id))
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDirectory:
    """Operations of users and admins on sessions."""

    store: SessionStore
    revocations: Revocations
    audit: TransactionalAuditLog
    clock: Clock

    @property
    def ends(self) -> SessionEnds:
        """Ends single sessions."""
        return SessionEnds(store=self.store, revocations=self.revocations, audit=self.audit)

    def of_user(self, user_id: UserId) -> Sequence[Session]:
        """The live sessions, the most recently used first."""
        return self.store.of_user(user_id, now=self.clock())

    def end(self, session_id: SessionId, *, owner: UserId) -> Outcome[Session | None]:
        """End one session of *owner*; raises NotFound if it belongs to another user, or has ended."""
        standing = self.store.standing(session_id)
        if standing is None or standing.user.id != owner or not standing.session.is_alive(self.clock()):
            raise NotFound
        event = Event(Action.SESSION_ENDED, user_id=owner, session_id=session_id, once=session_id)
        return self.ends.end(event, reason="ended")

    def end_all(self, user_id: UserId, *, keep: SessionId | None, actor: UserId) -> Outcome[int]:
        """End all sessions of the user, except *keep* if given."""
        outcome = self.revocations.publish(self.store.end_all(user_id, reason="ended", keep=keep))
        self.audit.record(Event(Action.SESSIONS_ENDED, user_id=user_id, actor_id=actor, session_id=keep))
        return outcome
