"""Second factors of an account, and how users and admins add and remove them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.accounts.ceremonies import Passkey
from authsvc.domain.accounts.codes import (
    RecoveryDigests,
    base32,
    matching_step,
    new_recovery_codes,
    new_totp_secret,
    totp_uri,
)
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.credentials import CredentialStore
from authsvc.domain.errors import CodeInvalid, EmailUnverified, Forbidden, NotFound, StoreUnavailable
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.encryption import DataKeys, Encrypted, Undecryptable
from authsvc.domain.values.identifiers import SessionId, UserId, new_id

FactorId = NewType("FactorId", str)

#: Life of an unconfirmed enrolment, in seconds.
ENROLMENT_LIFE_S = 600
#: Consecutive wrong codes after which a TOTP is locked (NIST SP 800-63B §3.2.2).
MOST_FAILURES = 100


class Kind(StrEnum):
    """Kinds of second factors."""

    TOTP = "totp"
    PASSKEY = "passkey"


class AnswerKind(StrEnum):
    """Ways to answer a request for a second factor."""

    TOTP = "totp"
    PASSKEY = "passkey"
    RECOVERY_CODE = "recovery_code"


@dataclass(frozen=True, slots=True, kw_only=True)
class TotpSecret:
    """The data that verifies codes of an authenticator app."""

    secret: Encrypted = field(repr=False)
    #: The newest time step whose code was used; codes of this and all earlier steps are refused.
    last_step: int | None = None
    #: Consecutive wrong codes, including those being compared now.
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One row: a TOTP or a passkey."""

    id: FactorId
    user_id: UserId
    name: str | None
    created_at: datetime
    #: None until the enrolment is confirmed by its first code.
    confirmed_at: datetime | None
    last_used_at: datetime | None = None
    locked_at: datetime | None = None
    totp: TotpSecret | None = None
    passkey: Passkey | None = None
    #: For a passkey: the RP ID that it belongs to.
    rp_id: str | None = None

    @property
    def kind(self) -> Kind:
        """What it is."""
        return Kind.TOTP if self.totp is not None else Kind.PASSKEY

    @property
    def is_locked(self) -> bool:
        """True if it is not accepted any more."""
        return self.locked_at is not None or (self.totp is not None and self.totp.failures >= MOST_FAILURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorList:
    """The confirmed second factors of a user."""

    factors: Sequence[Factor]
    recovery_codes_left: int

    def methods(self, rp_id: str | None) -> tuple[AnswerKind, ...]:
        """The possible ways to answer; a passkey works only for its own RP ID."""
        open_ones = [factor for factor in self.factors if not factor.is_locked]
        usable = {
            AnswerKind(one.kind.value) for one in open_ones if one.passkey is None or one.rp_id == rp_id
        }
        if self.recovery_codes_left:
            usable.add(AnswerKind.RECOVERY_CODE)
        return tuple(method for method in AnswerKind if method in usable)


class FactorStore(Protocol):
    """The rows, in SQL; each method is one transaction.  Raises StoreUnavailable."""

    def of_user(self, user_id: UserId) -> FactorList:
        """The confirmed factors of the user, without enrolments."""

    def rename(self, user_id: UserId, factor_id: FactorId, name: str | None) -> Factor:
        """Set the name; raises NotFound."""

    def remove(self, user_id: UserId, factor_id: FactorId, *, keep: SessionId) -> Committed[Factor]:
        """
        Delete it. With the last one, delete the recovery codes, too, and end all sessions but *keep*.

        Raises NotFound, and TokenInvalid if *keep* has ended.
        """

    def reset(self, user_id: UserId) -> Committed[User]:
        """
        Delete all of them, end every session, raise the epoch and forget the known devices.

        Raises NotFound.
        """

    def renew_codes(self, user_id: UserId, session_id: SessionId, digests: Sequence[bytes]) -> None:
        """Replace the recovery codes; raises NotFound if the user has no factor, TokenInvalid."""


class EnrolmentStore(Protocol):
    """Authenticator apps, in SQL; each method is one transaction.  Raises StoreUnavailable."""

    def enrol(self, factor: Factor) -> None:
        """Store an enrolment of a TOTP and drop any earlier one; raises NotFound."""

    def enrolment(self, user_id: UserId, factor_id: FactorId, *, since: datetime) -> Factor | None:
        """The unconfirmed enrolment of that user, if it was made after *since*."""

    def confirm(
        self, enrolment: Factor, step: int, digests: Sequence[bytes], *, keep: SessionId
    ) -> Committed[bool]:
        """
        Confirm *enrolment*, which replaces any other TOTP; the code of *step* cannot be used again.

        True if it is the first factor: then recovery codes with these *digests* are stored, and every session
        but *keep* ends.  Raises CodeInvalid if another request was faster, TokenInvalid if *keep* has ended.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The secret for an authenticator app, shown once; ``expires_in`` in seconds."""

    id: FactorId
    secret: str = field(repr=False)
    uri: str = field(repr=False)
    expires_in: int


def totp_owner(user_id: UserId, factor_id: FactorId) -> bytes:
    """The owner of a secret, which its encryption authenticates."""
    return uuid.UUID(user_id).bytes + uuid.UUID(factor_id).bytes


def totp_step(keys: DataKeys, factor: Factor, typed: str, now: datetime) -> int:
    """
    The time step of the code *typed*; raises CodeInvalid, and StoreUnavailable if the secret cannot be
    decrypted.
    """
    if factor.totp is None:
        raise CodeInvalid("no TOTP")
    try:
        secret = keys.decrypt(factor.totp.secret, totp_owner(factor.user_id, factor.id))
    except Undecryptable as error:
        raise StoreUnavailable(f"second factors: {error}") from error
    step = matching_step(secret, typed, now)
    if step is None:
        raise CodeInvalid("wrong TOTP code")
    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorBook:
    """Operations of users and admins on second factors."""

    store: FactorStore
    credentials: CredentialStore
    digests: RecoveryDigests
    revocations: Revocations
    audit: AuditLog
    #: True if mails are sent: then an address must be verified before the account gets a factor.
    needs_proven_address: bool

    def of_user(self, user_id: UserId) -> FactorList:
        """The confirmed factors of the user."""
        return self.store.of_user(user_id)

    def require_may_add(self, user_id: UserId) -> User:
        """The user; raises EmailUnverified if they must verify their address first."""
        user = self.credentials.by_user(user_id).user
        if self.needs_proven_address and not user.email_verified:
            raise EmailUnverified
        return user

    def rename(self, user_id: UserId, factor_id: FactorId, name: str | None) -> Factor:
        """Set the name of a factor; raises NotFound."""
        return self.store.rename(user_id, factor_id, name)

    def remove(self, token: AccessToken, factor_id: FactorId) -> Outcome[Factor]:
        """Remove a factor of the caller; raises NotFound, TokenInvalid."""
        outcome = self.revocations.publish(self.store.remove(token.user_id, factor_id, keep=token.session_id))
        self.note(Action.FACTOR_REMOVED, token, outcome.value.kind)
        return outcome

    def renew_codes(self, token: AccessToken) -> list[str]:
        """
        New recovery codes; the older ones stop working.

        Raises NotFound if the user has no factor, TokenInvalid if the session has ended.
        """
        codes = new_recovery_codes()
        digests = self.digests.of_all(token.user_id, codes)
        self.store.renew_codes(token.user_id, token.session_id, digests)
        self.audit.record(Event(Action.RECOVERY_RENEWED, user_id=token.user_id))
        return codes

    def reset(self, user_id: UserId, *, actor: UserId | None) -> Outcome[User]:
        """
        Delete all factors of a user who lost them, for admins and operators.

        Raises NotFound, and Forbidden for the caller's own account: they can remove factors by using one.
        """
        if actor == user_id:
            raise Forbidden
        outcome = self.revocations.publish(self.store.reset(user_id))
        self.audit.record(Event(Action.FACTORS_RESET, user_id=user_id, actor_id=actor))
        return outcome

    def note(self, action: Action, token: AccessToken, kind: Kind) -> None:
        """Record in the audit trail what the caller did to a factor."""
        event = Event(action, user_id=token.user_id, session_id=token.session_id, detail=kind.value)
        self.audit.record(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class TotpEnrolments:
    """Enrolment of authenticator apps."""

    store: EnrolmentStore
    factors: FactorBook
    keys: DataKeys
    clock: Clock
    #: The issuer's name, which an app shows.
    issuer: str

    def enrol(self, user_id: UserId, name: str | None) -> Enrolment:
        """Begin to enrol an authenticator app; an earlier app works until :meth:`confirm`."""
        user = self.factors.require_may_add(user_id)
        secret, factor_id = new_totp_secret(), FactorId(new_id())
        encrypted = self.keys.encrypt(secret, totp_owner(user_id, factor_id))
        enrolment = Factor(
            id=factor_id,
            user_id=user_id,
            name=name,
            created_at=self.clock(),
            confirmed_at=None,
            totp=TotpSecret(secret=encrypted),
        )
        self.store.enrol(enrolment)
        uri = totp_uri(secret, issuer=self.issuer, account=user.email)
        return Enrolment(id=factor_id, secret=base32(secret), uri=uri, expires_in=ENROLMENT_LIFE_S)

    def confirm(self, token: AccessToken, factor_id: FactorId, code: str) -> Outcome[list[str] | None]:
        """
        Confirm an enrolment by its first code; the first factor brings recovery codes.

        Raises CodeInvalid, EmailUnverified, NotFound, TokenInvalid.
        """
        self.factors.require_may_add(token.user_id)
        now = self.clock()
        since = now - timedelta(seconds=ENROLMENT_LIFE_S)
        enrolment = self.store.enrolment(token.user_id, factor_id, since=since)
        if enrolment is None:
            raise NotFound
        step, codes = totp_step(self.keys, enrolment, code, now), new_recovery_codes()
        digests = self.factors.digests.of_all(token.user_id, codes)
        committed = self.store.confirm(enrolment, step, digests, keep=token.session_id)
        outcome = self.factors.revocations.publish(committed)
        self.factors.note(Action.FACTOR_ADDED, token, Kind.TOTP)
        return Outcome(codes if outcome.value else None, outcome.is_complete)
