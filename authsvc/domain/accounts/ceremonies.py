"""
The data that this service and browsers exchange to register and use passkeys (WebAuthn Level 3).

Options go out and answers come in as the JSON of the specification.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from uuid import UUID

from authsvc.domain.errors import CodeInvalid
from authsvc.domain.users import User
from authsvc.domain.values.identifiers import UserId

#: Requested COSE algorithms, preferred first, with the key type of each: ES256, EdDSA, RS256.
ALGORITHMS = {-7: 2, -8: 1, -257: 3}
#: Time limit for the browser, in milliseconds: the life of the challenge.
TIMEOUT_MS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RelyingParty:
    """The relying party: the RP ID, its name, and the origins whose pages may use its passkeys."""

    id: str
    name: str
    #: Compared exactly.
    origins: tuple[str, ...]

    @property
    def related_origins(self) -> tuple[str, ...]:
        """
        The web origins, for the document that browsers read before a page of another origin uses passkeys of
        the RP ID.
        """
        return tuple(origin for origin in self.origins if origin.startswith("https://"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey:
    """A public key with data about its authenticator (a credential record, §4)."""

    credential_id: bytes
    #: A COSE key.
    public_key: bytes = field(repr=False)
    sign_count: int
    is_backup_eligible: bool
    #: User verification was shown at registration; without this, later user verification does not count.
    verified_user: bool
    transports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a valid assertion."""

    sign_count: int
    is_user_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Answer:
    """A credential in the JSON form of browsers, with bytes in base64url; nothing is checked yet."""

    client_data_type: ClassVar[str]

    id: str
    raw_id: str
    type: str
    client_data: str

    def credential_id(self) -> bytes:
        """The id as bytes; raises CodeInvalid."""
        return decoded(self.id)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Attestation(Answer):
    """The answer to a registration."""

    client_data_type: ClassVar[str] = "webauthn.create"

    attestation_object: str
    transports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Assertion(Answer):
    """The answer to an authentication."""

    client_data_type: ClassVar[str] = "webauthn.get"

    authenticator_data: str
    signature: str
    user_handle: str | None = None


class Ceremonies(Protocol):
    """Verifies answers of authenticators; every failure is CodeInvalid."""

    @property
    def party(self) -> RelyingParty:
        """The relying party."""

    def challenge_of(self, answer: Answer) -> str:
        """The challenge in *answer*; the caller checks whether we made it."""

    def registered(self, answer: Attestation) -> Passkey:
        """The passkey that *answer* registers."""

    def verified(self, answer: Assertion, passkey: Passkey, owner: UserId) -> Verified:
        """The result of *answer*, which must be signed with *passkey*, for its *owner*."""


def creation_options(
    party: RelyingParty, user: User, challenge: str, known: Iterable[Passkey]
) -> dict[str, Any]:
    """``PublicKeyCredentialCreationOptionsJSON`` for another passkey of *user*."""
    return {
        "rp": {"id": party.id, "name": party.name},
        "user": {
            "id": encoded(UUID(user.id).bytes),
            "name": user.email,
            "displayName": user.name or user.email,
        },
        "challenge": challenge,
        "pubKeyCredParams": [{"type": "public-key", "alg": number} for number in ALGORITHMS],
        "timeout": TIMEOUT_MS,
        "excludeCredentials": _descriptors(known),
        "authenticatorSelection": {
            "residentKey": "preferred",
            "requireResidentKey": False,
            "userVerification": "preferred",
        },
        "attestation": "none",
    }


def request_options(
    party: RelyingParty, challenge: str, allowed: Iterable[Passkey], *, verify_user: bool
) -> dict[str, Any]:
    """``PublicKeyCredentialRequestOptionsJSON``; none *allowed*: any passkey of this site."""
    return {
        "challenge": challenge,
        "timeout": TIMEOUT_MS,
        "rpId": party.id,
        "allowCredentials": _descriptors(allowed),
        "userVerification": "required" if verify_user else "preferred",
    }


def decoded(text: str) -> bytes:
    """The bytes of *text*, base64url in its one canonical form without padding; raises CodeInvalid."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodeInvalid("not base64url") from error
    if encoded(raw) != text:
        raise CodeInvalid("not the canonical base64url")
    return raw


def encoded(raw: bytes) -> str:
    """*raw* in base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _descriptors(passkeys: Iterable[Passkey]) -> list[dict[str, Any]]:
    return [
        {
            "type": "public-key",
            "id": encoded(passkey.credential_id),
            **({"transports": list(passkey.transports)} if passkey.transports else {}),
        }
        for passkey in passkeys
    ]
