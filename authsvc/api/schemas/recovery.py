"""Schemas of verification, password reset, registration by mail and change of address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from marshmallow import ValidationError, fields, post_load, validate, validates_schema

from authsvc.api.frame.bodies import Body
from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.accounts import profile_of, role_name, text
from authsvc.api.schemas.kinds import Identifier
from authsvc.domain.accounts.requests import Shown
from authsvc.domain.users import BUILT_IN, Profile, Role
from authsvc.settings.kinds import MAX_ROLES

_TICKET = {"example": "0198f7a2-5c5e-4c1e-9d1c-3a1f4c0e6b1d"}


@dataclass(frozen=True, slots=True, repr=False)
class TicketForm:
    """The body that redeems a ticket: the code or token, and the data that the operation needs."""

    shown: Shown
    email: str | None = None
    password: str | None = None
    new_password: str | None = None


class TicketBody(Body):
    """A token or a code; both in one body are an error."""

    token = fields.String(metadata={"description": "From the link in the mail."})
    ticket = fields.String(
        metadata={"description": "From the answer to the request for the mail.", **_TICKET}
    )
    code = fields.String(
        metadata={"example": "WDJB-MJHT", "description": "From the mail; case and hyphens are ignored."}
    )

    @validates_schema
    def one_proof(self, data: dict[str, Any], **_: Any) -> None:
        """Require a token alone, or a code (with its ticket, if the route needs one)."""
        if ("token" in data) == ("code" in data):
            raise ValidationError("Send one of token and code.")
        if "token" in data and "ticket" in data:
            raise ValidationError("A token needs no ticket.", "ticket")
        if "code" in data and "ticket" in self.fields and "ticket" not in data:
            raise ValidationError("Missing data for required field.", "ticket")

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> TicketForm:
        """The value for the view."""
        names = ("token", "ticket", "code", "old_code")
        shown = Shown(**{name: data.pop(name) for name in names if name in data})
        return TicketForm(shown=shown, **data)


class ResetBody(TicketBody):
    """A code or token from the mail, and the new password."""

    new_password = fields.String(required=True, metadata={"example": "correct horse battery staple"})


class ConfirmBody(TicketBody):
    """A code or token from the mail; with a token also the password that was chosen at registration."""

    password = fields.String()


class VerifyBody(TicketBody):
    """A code or token from the mail; without a session also address and password."""

    class Meta:
        """The session names the user, so that a code needs no ticket."""

        exclude = ("ticket",)

    email = text(1024)
    password = fields.String()

    @validates_schema
    def both_or_none(self, data: dict[str, Any], **_: Any) -> None:
        """Require both, or neither."""
        if ("email" in data) != ("password" in data):
            raise ValidationError("Send email and password, or neither.")


class ChangeConfirmBody(Body):
    """The code that went to the new address, and the one to the old where one went there."""

    ticket = fields.String(required=True, metadata=_TICKET)
    code = fields.String(required=True, metadata={"example": "WDJB-MJHT"})
    old_code = fields.String(metadata={"example": "WDJB-MJHT"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> TicketForm:
        """The value for the view."""
        return TicketForm(shown=Shown(**data))


@dataclass(frozen=True, slots=True, repr=False)
class AddressForm:
    """An address; for a change of address also the current password."""

    email: str
    password: str = ""


class AddressBody(Body):
    """The body with an address. It is not validated: a malformed one gets the same answer as a known one."""

    email = fields.String(required=True, metadata={"example": "ada@example.com"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> AddressForm:
        """The value for the view."""
        return AddressForm(**data)


class ChangeBody(AddressBody):
    """The new address, and the current password."""

    password = fields.String(required=True)


@dataclass(frozen=True, slots=True, repr=False)
class InviteForm:
    """The invitation of a user."""

    email: str
    profile: Profile
    roles: tuple[Role, ...]


class InviteBody(Body):
    """The body of an invitation: address and roles."""

    email = text(1024, required=True, metadata={"example": "ada@example.com"})
    name = text(200, allow_none=True, metadata={"example": "Ada Lovelace"})
    roles = fields.List(role_name(), validate=validate.Length(min=1, max=len(BUILT_IN) + MAX_ROLES))

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> InviteForm:
        """The value for the view."""
        roles = tuple(data.pop("roles", ("user",)))
        return InviteForm(email=data["email"], profile=profile_of(data), roles=roles)


class LockBody(Body):
    """Whether to make the current password unusable at once."""

    lock = fields.Boolean(truthy={True}, falsy={False})


class AskedView(Shape):
    """The answer to every request for a mail."""

    ticket = Identifier(required=True)
    expires_in = fields.Integer(required=True, metadata={"description": "Seconds."})


class ChangeAskedView(AskedView):
    """The same, and which codes the confirmation needs."""

    needs = fields.List(fields.String(), required=True, metadata={"example": ["code", "old_code"]})
