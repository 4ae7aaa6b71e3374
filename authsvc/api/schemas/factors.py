"""Schemas of second factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import ValidationError, fields, post_load, validate, validates_schema

from authsvc.api.frame.bodies import Body
from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.accounts import text
from authsvc.api.schemas.kinds import Identifier, Time, View
from authsvc.api.schemas.passkeys import AssertionCredential
from authsvc.domain.accounts.ceremonies import Assertion
from authsvc.domain.accounts.factors import Kind
from authsvc.domain.values.levels import Acr

_CODE = {"example": "492039", "description": "A code of the authenticator app."}
_RECOVERY_CODE = {"example": "XD4A-BCID-CPT4-L5C5-DQFI-2YIK"}


@dataclass(frozen=True, slots=True, repr=False)
class AnswerForm:
    """One second factor: exactly one field is set."""

    code: str | None = None
    recovery_code: str | None = None
    credential: Assertion | None = None


class AnswerBody(Body):
    """One second factor; more than one is an error."""

    proofs: ClassVar[tuple[str, ...]] = ("code", "recovery_code", "credential")

    code = fields.String(metadata=_CODE)
    recovery_code = fields.String(metadata=_RECOVERY_CODE)
    credential = fields.Nested(
        AssertionCredential,
        metadata={"description": "A passkey's answer to options of this service, by `toJSON()`."},
    )

    @validates_schema
    def one_answer(self, data: dict[str, Any], **_: Any) -> None:
        """Require exactly one field."""
        if len(data.keys() & set(self.proofs)) != 1:
            raise ValidationError(f"Send one of {', '.join(self.proofs[:-1])} and {self.proofs[-1]}.")


class SecondLoginBody(AnswerBody):
    """The challenge of a login, and a second factor."""

    challenge = fields.String(required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> tuple[str, AnswerForm]:
        """The value for the view."""
        return data.pop("challenge"), AnswerForm(**data)


class StepUpBody(AnswerBody):
    """A second factor; or the password, if the account has no second factor."""

    proofs = ("password", *AnswerBody.proofs)

    password = fields.String(metadata={"example": "correct horse battery staple"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> str | AnswerForm:
        """The password, or the second factor."""
        return str(data["password"]) if "password" in data else AnswerForm(**data)


class SteppedUpView(View):
    """A new access token of the session, with its level."""

    access_token = fields.String()
    expires_in = fields.Integer(metadata={"description": "Seconds"})
    acr = fields.String(metadata={"enum": [acr.value for acr in Acr]})
    amr = fields.List(fields.String(), metadata={"description": "How the user logged in (RFC 8176)"})
    auth_time = fields.Integer(metadata={"description": "Now, in seconds since the epoch"})


class FactorName(Body):
    """The name that a user gives to a factor; null for no name."""

    name = text(200, allow_none=True, metadata={"example": "My phone"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> str | None:
        """As the domain takes it."""
        return data.get("name")


class FactorPatch(FactorName):
    """The new name of a factor."""

    name = text(200, allow_none=True, required=True, metadata={"example": "My phone"})


class CodeBody(Body):
    """A code of the authenticator app."""

    code = fields.String(required=True, metadata=_CODE)


class FactorView(View):
    """A second factor as its owner sees it."""

    id = fields.String()
    kind = fields.String(validate=validate.OneOf(tuple(Kind)))
    name = fields.String(allow_none=True)
    created_at = Time()
    last_used_at = Time(allow_none=True)
    locked = fields.Boolean(attribute="is_locked")


class FactorListView(View):
    """Every second factor of the caller."""

    items = fields.List(fields.Nested(FactorView), attribute="factors")
    recovery_codes_left = fields.Integer()


class EnrolmentView(Shape):
    """The secret for an authenticator app; it is shown once."""

    id = Identifier(required=True)
    secret = fields.String(required=True, metadata={"example": "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"})
    uri = fields.String(
        required=True, metadata={"description": "An `otpauth:` address, to show as a QR code."}
    )
    expires_in = fields.Integer(required=True, metadata={"description": "Seconds."})


class RecoveryCodesView(View):
    """Recovery codes, shown once."""

    recovery_codes = fields.List(fields.String(metadata=_RECOVERY_CODE), allow_none=True)
