"""Schemas of passkeys, in the JSON form of browsers (WebAuthn Level 3 §5.1.8, §5.1.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import fields, post_load, validate

from authsvc.api.frame.bodies import Body
from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.accounts import text
from authsvc.api.schemas.kinds import Time, View
from authsvc.domain.accounts.ceremonies import Assertion, Attestation

#: Characters of base64url.  Real values are much shorter; decoding more would cost time.
_MOST, _MOST_OF_ATTESTATION = 4096, 16_384
#: Transports of an authenticator, as browsers report them: a few short words.
_MOST_TRANSPORTS, _MOST_OF_TRANSPORT = 8, 32


def _bytes(most: int = _MOST, **options: Any) -> fields.String:
    """Bytes in base64url. The ceremony in the domain decodes them, and has one answer for all faults."""
    return fields.String(validate=validate.Length(max=most), **options)


class _Lenient(Shape):
    """Ignores unknown members: browsers add new ones as the specification grows."""

    class Meta:
        """Unknown members are ignored."""

        unknown = "exclude"


class AttestationResponse(_Lenient):
    """``AuthenticatorAttestationResponseJSON``."""

    clientDataJSON = _bytes(required=True)
    attestationObject = _bytes(_MOST_OF_ATTESTATION, required=True)
    transports = fields.List(
        fields.String(validate=[validate.Length(max=_MOST_OF_TRANSPORT), validate.Regexp(r"[a-z-]+\Z")]),
        validate=validate.Length(max=_MOST_TRANSPORTS),
    )


class AssertionResponse(_Lenient):
    """``AuthenticatorAssertionResponseJSON``."""

    clientDataJSON = _bytes(required=True)
    authenticatorData = _bytes(required=True)
    signature = _bytes(required=True)
    userHandle = _bytes(allow_none=True)


class _Credential(_Lenient):
    id = _bytes(required=True)
    rawId = _bytes(required=True)
    type = fields.String(required=True, metadata={"example": "public-key"})


class AttestationCredential(_Credential):
    """What ``navigator.credentials.create`` gives, by ``toJSON()``."""

    response = fields.Nested(AttestationResponse, required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Attestation:
        """The value for the domain."""
        response = data["response"]
        return Attestation(
            **_common(data),
            attestation_object=response["attestationObject"],
            transports=tuple(response.get("transports", ())),
        )


class AssertionCredential(_Credential):
    """What ``navigator.credentials.get`` gives, by ``toJSON()``."""

    response = fields.Nested(AssertionResponse, required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Assertion:
        """The value for the domain."""
        response = data["response"]
        return Assertion(
            **_common(data),
            authenticator_data=response["authenticatorData"],
            signature=response["signature"],
            user_handle=response.get("userHandle"),
        )


@dataclass(frozen=True, slots=True, repr=False)
class PasskeyForm:
    """A new passkey and its name."""

    credential: Attestation
    name: str | None = None


class PasskeyBody(Body):
    """The body that registers a passkey."""

    credential = fields.Nested(AttestationCredential, required=True)
    name = text(200, allow_none=True, metadata={"example": "Ada's phone"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PasskeyForm:
        """The value for the view."""
        return PasskeyForm(**data)


@dataclass(frozen=True, slots=True, repr=False)
class PasskeyLoginForm:
    """The passkey answer of a login."""

    credential: Assertion
    device_id: str | None = None


class PasskeyLoginBody(Body):
    """The body of a login with a passkey: an assertion over options of this service."""

    credential = fields.Nested(AssertionCredential, required=True)
    device_id = text(200, allow_none=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PasskeyLoginForm:
        """The value for the view."""
        return PasskeyLoginForm(**data)


class ChallengeBody(Body):
    """The body with the challenge of a login."""

    challenge = fields.String(required=True)


class NewPasskeyView(View):
    """A new factor; the first one comes with recovery codes."""

    id = fields.String(attribute="factor.id")
    kind = fields.String(attribute="factor.kind.value", metadata={"example": "passkey"})
    name = fields.String(attribute="factor.name", allow_none=True)
    created_at = Time(attribute="factor.created_at")
    last_used_at = Time(attribute="factor.last_used_at", allow_none=True)
    locked = fields.Boolean(attribute="factor.is_locked")
    recovery_codes = fields.List(fields.String(), allow_none=True)


class RelyingPartyView(View):
    """``PublicKeyCredentialRpEntity``."""

    id = fields.String(metadata={"example": "example.com"})
    name = fields.String()


class PasskeyUserView(View):
    """``PublicKeyCredentialUserEntityJSON``."""

    id = fields.String(metadata={"description": "The 16 bytes of the user's id, in base64url."})
    name = fields.String()
    displayName = fields.String()


class AlgorithmView(View):
    """``PublicKeyCredentialParameters``."""

    type = fields.String(metadata={"example": "public-key"})
    alg = fields.Integer(metadata={"example": -7})


class DescriptorView(View):
    """``PublicKeyCredentialDescriptorJSON``."""

    sometimes: ClassVar[frozenset[str]] = frozenset({"transports"})

    type = fields.String(metadata={"example": "public-key"})
    id = fields.String()
    transports = fields.List(fields.String())


class SelectionView(View):
    """``AuthenticatorSelectionCriteria``."""

    residentKey = fields.String(metadata={"example": "preferred"})
    requireResidentKey = fields.Boolean()
    userVerification = fields.String(metadata={"example": "preferred"})


class CreationOptionsView(View):
    """``PublicKeyCredentialCreationOptionsJSON``, with no object around it."""

    rp = fields.Nested(RelyingPartyView)
    user = fields.Nested(PasskeyUserView)
    challenge = fields.String()
    pubKeyCredParams = fields.List(fields.Nested(AlgorithmView))
    timeout = fields.Integer(metadata={"description": "Milliseconds."})
    excludeCredentials = fields.List(fields.Nested(DescriptorView))
    authenticatorSelection = fields.Nested(SelectionView)
    attestation = fields.String(metadata={"example": "none"})


class RequestOptionsView(View):
    """``PublicKeyCredentialRequestOptionsJSON``, with no object around it."""

    challenge = fields.String()
    timeout = fields.Integer(metadata={"description": "Milliseconds."})
    rpId = fields.String(metadata={"example": "example.com"})
    allowCredentials = fields.List(fields.Nested(DescriptorView))
    userVerification = fields.String(metadata={"example": "required"})


class RelatedOriginsView(View):
    """
    The document that browsers read before a page of another origin uses passkeys of the RP ID (WebAuthn Level
    3 §5.11).
    """

    origins = fields.List(fields.String(), metadata={"example": ["https://app.example.com"]})


def _common(data: dict[str, Any]) -> dict[str, str]:
    return {
        "id": data["id"],
        "raw_id": data["rawId"],
        "type": data["type"],
        "client_data": data["response"]["clientDataJSON"],
    }
