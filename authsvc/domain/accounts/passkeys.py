"""
Passkeys: registration, and use for a login, as a second factor, and for a step-up.

Beginning a ceremony stores nothing: its authenticated challenge contains user, purpose and expiry
(:mod:`authsvc.domain.accounts.challenges`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from authsvc.domain.accounts.ceremonies import (
    Assertion,
    Attestation,
    Ceremonies,
    Passkey,
    creation_options,
    request_options,
)
from authsvc.domain.accounts.challenges import Aim, Challenge, ChallengeTexts, new_challenge
from authsvc.domain.accounts.codes import new_recovery_codes
from authsvc.domain.accounts.factors import AnswerKind, Factor, FactorBook, FactorId, Kind
from authsvc.domain.accounts.opening import LoginOrigin, SessionOpening, TokenPair
from authsvc.domain.accounts.second_factor import Answer, SecondFactors, Tried
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.credentials import Credentials, CredentialStore, UsedUp, known_device
from authsvc.domain.errors import CodeInvalid, NotFound, TooMany
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.tokens.devices import DeviceTokens
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.domain.values.levels import Method

MOST_PASSKEYS = 10


class PasskeyStore(Protocol):
    """The rows, in SQL; each method is one transaction.  Raises StoreUnavailable."""

    def of_credential(self, credential_id: bytes) -> Factor | None:
        """The passkey with that id, even if it is locked."""

    def add(
        self, factor: Factor, challenge: Challenge, digests: Sequence[bytes], *, keep: SessionId
    ) -> Committed[bool]:
        """
        Add *factor* and mark *challenge* as used.

        True if it is the first factor: then recovery codes with these *digests* are stored, and every session
        but *keep* ends.  Raises CodeInvalid, NotFound, PasskeyKnown, TokenInvalid, TooMany.
        """


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """A registered passkey; the first factor comes with recovery codes."""

    factor: Factor
    recovery_codes: list[str] | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyBook:
    """Passkeys of a known account: registration, and use as a second factor or for a step-up."""

    ceremonies: Ceremonies
    store: PasskeyStore
    factors: FactorBook
    challenges: ChallengeTexts
    revocations: Revocations
    audit: AuditLog
    clock: Clock

    def begin_registration(self, user_id: UserId) -> dict[str, Any]:
        """Options to register a passkey; raises EmailUnverified, TooMany."""
        user, known = self.factors.require_may_add(user_id), self._passkeys_of(user_id)
        if len(known) >= MOST_PASSKEYS:
            raise TooMany
        text = self._challenge(Aim.PASSKEY_REGISTRATION, user_id)
        return creation_options(self.ceremonies.party, user, text, self._at_this_site(known))

    def register(self, token: AccessToken, answer: Attestation, name: str | None) -> Outcome[NewPasskey]:
        """
        Add the passkey of *answer*; the first factor brings recovery codes.

        Raises CodeInvalid, EmailUnverified, PasskeyKnown, TokenInvalid, TooMany.
        """
        self.factors.require_may_add(token.user_id)
        challenge = self._answered(answer, Aim.PASSKEY_REGISTRATION, token.user_id)
        factor = self._new_factor(token.user_id, self.ceremonies.registered(answer), name)
        codes = new_recovery_codes()
        digests = self.factors.digests.of_all(token.user_id, codes)
        committed = self.store.add(factor, challenge, digests, keep=token.session_id)
        outcome = self.revocations.publish(committed)
        event = Event(Action.FACTOR_ADDED, user_id=token.user_id, session_id=token.session_id)
        self.audit.record(replace(event, detail=Kind.PASSKEY.value))
        return Outcome(NewPasskey(factor, codes if outcome.value else None), outcome.is_complete)

    def begin(self, aim: Aim, user_id: UserId | None = None) -> dict[str, Any]:
        """
        Options to sign with a passkey of the account *user_id*; without it with any passkey, with user
        verification.

        Raises NotFound if the account has no usable passkey.
        """
        party, text = self.ceremonies.party, self._challenge(aim, user_id)
        if user_id is None:
            return request_options(party, text, (), verify_user=True)
        usable = self._at_this_site(one for one in self._passkeys_of(user_id) if not one.is_locked)
        if not usable:
            raise NotFound
        return request_options(party, text, usable, verify_user=False)

    def answer(self, assertion: Assertion, aim: Aim) -> Answer:
        """An assertion as a second factor."""

        def judge(credentials: Credentials, _tried: Tried) -> UsedUp:
            return self.judge(assertion, aim, credentials.user.id)

        return Answer(AnswerKind.PASSKEY, judge)

    def judge(self, assertion: Assertion, aim: Aim, owner: UserId | None) -> UsedUp:
        """
        Verify *assertion*, whose challenge was made for *owner*; returns what it uses up.  Raises
        CodeInvalid.
        """
        challenge = self._answered(assertion, aim, owner)
        factor = self.store.of_credential(assertion.credential_id())
        if factor is None or factor.passkey is None or factor.is_locked:
            raise CodeInvalid("no such passkey, or it is locked")
        if owner not in {None, factor.user_id}:
            raise CodeInvalid("a passkey of another user")
        shown = self.ceremonies.verified(assertion, factor.passkey, factor.user_id)
        return UsedUp(
            user_id=factor.user_id,
            shown=Method.VERIFIED_PASSKEY if shown.is_user_verified else Method.PASSKEY,
            challenges=((challenge.id, challenge.expires_at),),
            passkey=(factor.id, shown.sign_count),
            tries=None,
        )

    def _challenge(self, aim: Aim, user_id: UserId | None) -> str:
        return self.challenges.text(new_challenge(aim, now=self.clock(), user_id=user_id))

    def _answered(self, answer: Attestation | Assertion, aim: Aim, owner: UserId | None) -> Challenge:
        """The challenge in *answer*, if we made it for *owner* and for *aim*."""
        text = self.ceremonies.challenge_of(answer)
        challenge = self.challenges.read(text, aim, now=self.clock())
        if challenge.user_id != owner:
            raise CodeInvalid("a challenge of another user")
        return challenge

    def _passkeys_of(self, user_id: UserId) -> list[Factor]:
        return [factor for factor in self.factors.of_user(user_id).factors if factor.kind is Kind.PASSKEY]

    def _at_this_site(self, found: Iterable[Factor]) -> list[Passkey]:
        """The passkeys among *found* that belong to this RP ID."""
        rp_id = self.ceremonies.party.id
        return [one.passkey for one in found if one.passkey is not None and one.rp_id == rp_id]

    def _new_factor(self, user_id: UserId, passkey: Passkey, name: str | None) -> Factor:
        now = self.clock()
        return Factor(
            id=FactorId(new_id()),
            user_id=user_id,
            name=name,
            created_at=now,
            confirmed_at=now,
            passkey=passkey,
            rp_id=self.ceremonies.party.id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyLogin:
    """Login with a passkey alone: two factors in one, so that user verification is required."""

    book: PasskeyBook
    second: SecondFactors
    credentials: CredentialStore
    opening: SessionOpening
    devices: DeviceTokens
    audit: AuditLog
    clock: Clock
    #: Raises EmailUnverified if a login needs a verified address and this one is not.
    require_proven_address: Callable[[Credentials], None]

    def log_in(self, assertion: Assertion, origin: LoginOrigin, device_token: str) -> TokenPair:
        """
        Open a session for the owner of the passkey, whom its user handle names.

        Raises CodeInvalid, EmailUnverified, StoreUnavailable.
        """
        self.opening.signer.require_key(self.clock())
        try:
            pair = self._opened(assertion, origin, device_token)
        except CodeInvalid as refusal:
            self.audit.record(
                Event(
                    Action.LOGIN_FAILED,
                    client_ip=origin.ip,
                    device_id=origin.device_id,
                    detail=AnswerKind.PASSKEY.value,
                )
            )
            self.second.on_result(AnswerKind.PASSKEY.value, refusal.code)
            self.second.lock_copied(refusal)
            raise
        self.second.on_result(AnswerKind.PASSKEY.value, "ok")
        return pair

    def _opened(self, assertion: Assertion, origin: LoginOrigin, device_token: str) -> TokenPair:
        used_up = self.book.judge(assertion, Aim.PASSKEY_LOGIN, None)
        if assertion.user_handle is None or used_up.shown is not Method.VERIFIED_PASSKEY:
            raise CodeInvalid("no user handle, or no user verification")
        credentials = self._owner(used_up.user_id)
        self.require_proven_address(credentials)
        device = known_device(self.devices, device_token, credentials, self.clock())
        known = replace(origin, device=device)
        pair = self.opening.open(credentials, known, used_up.shown, used_up=used_up)
        if pair is None:
            raise CodeInvalid("the user has changed meanwhile")
        return pair

    def _owner(self, user_id: UserId) -> Credentials:
        try:
            found = self.credentials.by_user(user_id)
        except NotFound as error:
            raise CodeInvalid("the user is gone") from error
        if not found.user.is_active:
            raise CodeInvalid("the user is disabled")
        return found
