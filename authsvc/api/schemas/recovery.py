"""The shapes of verification, reset, quiet registration and change of address."""

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
    """What a ticket's body holds: what is shown of the ticket, and what is to be done with it."""

    shown: Shown
    email: str | None = None
    password: str | None = None
    new_password: str | None = None


class TicketBody(Body):
    """A token, or a code; both in one body are a mistake."""

    token = fields.String(metadata={"description": "From the link in the mail."})
    ticket = fields.String(
        metadata={"description": "As it was answered when the mail was asked for.", **_TICKET}
    )
    code = fields.String(
        metadata={"example": "WDJB-MJHT", "description": "From the mail; case and hyphens are ignored."}
    )

    @validates_schema
    def one_proof(self, data: dict[str, Any], **_: Any) -> None:
        """Token alone, or code (with its ticket, where the route wants one)."""
        if ("token" in data) == ("code" in data):
            raise ValidationError("Send one of token and code.")
        if "token" in data and "ticket" in data:
            raise ValidationError("A token needs no ticket.", "ticket")
        if "code" in data and "ticket" in self.fields and "ticket" not in data:
            raise ValidationError("Missing data for required field.", "ticket")

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> TicketForm:
        """As a value."""
        names = ("token", "ticket", "code", "old_code")
        shown = Shown(**{name: data.pop(name) for name in names if name in data})
        return TicketForm(shown=shown, **data)


class ResetBody(TicketBody):
    """A proof from the mail, and the password to come."""

    new_password = fields.String(required=True, metadata={"example": "correct horse battery staple"})


class ConfirmBody(TicketBody):
    """A proof from the mail; with a token the password that was chosen at registration, too."""

    password = fields.String()


class VerifyBody(TicketBody):
    """A proof from the mail; without a session address and password, too."""

    class Meta:
        """The user is known: their code needs no ticket."""

        exclude = ("ticket",)

    email = text(1024)
    password = fields.String()

    @validates_schema
    def both_or_none(self, data: dict[str, Any], **_: Any) -> None:
        """An address without its password proves nothing."""
        if ("email" in data) != ("password" in data):
            raise ValidationError("Send email and password, or neither.")


class ChangeConfirmBody(Body):
    """The code that went to the new address, and the one to the old where one went there."""

    ticket = fields.String(required=True, metadata=_TICKET)
    code = fields.String(required=True, metadata={"example": "WDJB-MJHT"})
    old_code = fields.String(metadata={"example": "WDJB-MJHT"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> TicketForm:
        """As a value."""
        return TicketForm(shown=Shown(**data))


@dataclass(frozen=True, slots=True, repr=False)
class AddressForm:
    """An address; and the current password, where a user asks to change theirs."""

    email: str
    password: str = ""


class AddressBody(Body):
    """An address.  It is not checked: a malformed one gets the same answer as a known one."""

    email = fields.String(required=True, metadata={"example": "ada@example.com"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> AddressForm:
        """As a value."""
        return AddressForm(**data)


class ChangeBody(AddressBody):
    """The new address, and the current password."""

    password = fields.String(required=True)


@dataclass(frozen=True, slots=True, repr=False)
class InviteForm:
    """Whom an admin invites."""

    email: str
    profile: Profile
    roles: tuple[Role, ...]


class InviteBody(Body):
    """Whom to invite, and as what."""

    email = text(1024, required=True, metadata={"example": "ada@example.com"})
    name = text(200, allow_none=True, metadata={"example": "Ada Lovelace"})
    roles = fields.List(role_name(), validate=validate.Length(min=1, max=len(BUILT_IN) + MAX_ROLES))

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> InviteForm:
        """As a value."""
        roles = tuple(data.pop("roles", ("user",)))
        return InviteForm(email=data["email"], profile=profile_of(data), roles=roles)


class LockBody(Body):
    """Whether the password must not be used any more from now on."""

    lock = fields.Boolean(truthy={True}, falsy={False})


class AskedView(Shape):
    """What everybody gets who asks for a mail."""

    ticket = Identifier(required=True)
    expires_in = fields.Integer(required=True, metadata={"description": "Seconds."})


class ChangeAskedView(AskedView):
    """The same, and which codes the confirmation takes."""

    needs = fields.List(fields.String(), required=True, metadata={"example": ["code", "old_code"]})
