"""
Verification of authenticators' answers by WebAuthn Level 3 §7.

fido2 reads authenticator data and keys and verifies signatures.  The rules here are stricter than those of
its server class. This module is not loaded unless passkeys are on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from fido2 import cbor
from fido2.cose import RS256, CoseKey
from fido2.webauthn import AttestationObject, AuthenticatorData

from authsvc.domain.accounts.ceremonies import (
    ALGORITHMS,
    Answer,
    Assertion,
    Attestation,
    Passkey,
    RelyingParty,
    Verified,
    decoded,
)
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.values import jsontext
from authsvc.domain.values.identifiers import UserId

#: Bytes of a credential's id (WebAuthn Level 3 §4, §5.8.3).
MIN_ID_BYTES, MAX_ID_BYTES = 16, 1023
#: Bits of an RSA modulus; larger ones would only cost time.
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
CLIENT_DATA_DEPTH = 4

#: Labels of a COSE key (RFC 9052 §7, RFC 8230 §4).
_KEY_TYPE, _ALGORITHM, _RSA_MODULUS = 1, 3, -1
#: A signature that no key made. Its 64 bytes make verification fail for its content, not for its length.
_WRONG_SIGNATURE = bytes(64)


@dataclass(frozen=True, slots=True)
class WebAuthn:
    """Verifies answers for one relying party; every failure is CodeInvalid."""

    party: RelyingParty

    def challenge_of(self, answer: Answer) -> str:
        """
        The challenge in *answer*, in base64url.

        Its type and origin are checked here; the caller checks whether we made the challenge.
        """
        if answer.type != "public-key" or answer.raw_id != answer.id:
            raise CodeInvalid("another kind of credential, or two ids")
        with _refusing():
            members = jsontext.parse(decoded(answer.client_data), max_depth=CLIENT_DATA_DEPTH)
            if not isinstance(members, dict) or members.get("type") != answer.client_data_type:
                raise CodeInvalid("another type of client data")
            if members.get("origin") not in self.party.origins:
                raise CodeInvalid("another origin")
            if members.get("crossOrigin", False) is not False or "topOrigin" in members:
                raise CodeInvalid("from a frame in a page of another origin")
            return str(members["challenge"])

    def registered(self, answer: Attestation) -> Passkey:
        """The passkey that *answer* registers; the attestation statement is ignored."""
        with _refusing():
            credential_id = answer.credential_id()
            data = self._authenticator_data(AttestationObject(decoded(answer.attestation_object)).auth_data)
            attested = data.credential_data
            if attested is None or attested.credential_id != credential_id:
                raise CodeInvalid("another credential than the answer names")
            if not MIN_ID_BYTES <= len(credential_id) <= MAX_ID_BYTES:
                raise CodeInvalid("an id that is too short or too long")
            _check_key(attested.public_key)
            return Passkey(
                credential_id=credential_id,
                public_key=cbor.encode(dict(attested.public_key)),
                sign_count=data.counter,
                is_backup_eligible=data.is_backup_eligible(),
                verified_user=data.is_user_verified(),
                transports=answer.transports,
            )

    def verified(self, answer: Assertion, passkey: Passkey, owner: UserId) -> Verified:
        """
        The result of *answer*, which must be signed with *passkey*, for its *owner*.

        The store checks whether the counter has risen.
        """
        with _refusing():
            data = self._authenticator_data(decoded(answer.authenticator_data))
            if answer.credential_id() != passkey.credential_id:
                raise CodeInvalid("another credential")
            if data.is_backup_eligible() != passkey.is_backup_eligible:
                raise CodeInvalid("backup eligibility has changed")
            handle = answer.user_handle
            if handle is not None and decoded(handle) != UUID(owner).bytes:
                raise CodeInvalid("another user")
            message = bytes(data) + sha256(decoded(answer.client_data)).digest()
            key = CoseKey.parse(cbor.decode(passkey.public_key))  # type: ignore[arg-type]  # a map, as stored
            key.verify(message, decoded(answer.signature))
            return Verified(
                sign_count=data.counter,
                # A credential without user verification at registration cannot add it later.
                is_user_verified=data.is_user_verified() and passkey.verified_user,
            )

    def _authenticator_data(self, raw: bytes) -> AuthenticatorData:
        """*raw*, if it is for this relying party and the user was present."""
        data = AuthenticatorData(raw)
        if data.rp_id_hash != sha256(self.party.id.encode()).digest():
            raise CodeInvalid("another relying party")
        if not data.is_user_present():
            raise CodeInvalid("nobody was present")
        if data.is_backed_up() and not data.is_backup_eligible():
            raise CodeInvalid("backed up without being eligible for it")
        return data


def _check_key(key: CoseKey) -> None:
    """Refuse a key whose algorithm was not requested, and one that cannot verify safely."""
    if ALGORITHMS.get(key.get(_ALGORITHM, 0)) != key.get(_KEY_TYPE):
        raise CodeInvalid("a key of an algorithm that was not asked for")
    if (
        isinstance(key, RS256)
        and not MIN_RSA_BITS <= int.from_bytes(key[_RSA_MODULUS]).bit_length() <= MAX_RSA_BITS
    ):
        raise CodeInvalid("an RSA key that is too short or too long")
    try:
        key.verify(b"", _WRONG_SIGNATURE)
    except InvalidSignature:
        return
    raise CodeInvalid("a key that takes any signature")


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn every exception of parsing an answer, which any caller may send, into CodeInvalid."""
    try:
        yield
    except CodeInvalid:
        raise
    except Exception as error:
        # The library documents no list of exceptions: malformed input raises KeyError, IndexError and others.
        raise CodeInvalid(f"malformed ({type(error).__name__})") from error
