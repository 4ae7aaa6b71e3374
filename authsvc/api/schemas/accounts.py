"""Schemas of accounts; load() returns a frozen value of the domain, which has the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import RAISE, ValidationError, fields, post_load, validate, validates_schema

from authsvc.api.frame.bodies import JSON, MERGE_PATCH, Body
from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.kinds import Identifier, Time, View, Whole
from authsvc.domain.authentication import Registration
from authsvc.domain.users import BUILT_IN, Profile, Role, Status, UserFilter, is_role_name
from authsvc.domain.values.emails import Email, InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import UserId
from authsvc.settings.kinds import MAX_ROLES, ROLE_PATTERN

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
PROFILE_FIELDS = ("name", "phone", "device_id")
MAX_PAGE = 200


def storable(value: object) -> None:
    """Reject NUL and lone surrogates anywhere in *value*: the database cannot store them."""
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise ValidationError("Must not contain NUL or lone surrogates.")
    if isinstance(value, dict):
        for name, member in value.items():
            storable(name)
            storable(member)
    elif isinstance(value, list):
        for member in value:
            storable(member)


def text(most: int, **options: Any) -> fields.String:
    """A string of at most *most* characters that the database can store."""
    return fields.String(validate=[validate.Length(max=most), storable], **options)


def role_name() -> fields.String:
    """The name of a role; the domain checks whether that role exists."""
    return fields.String(
        validate=_named_like_a_role, metadata={"pattern": f"^{ROLE_PATTERN}$", "example": "user"}
    )


def _named_like_a_role(name: str) -> None:
    if not is_role_name(name):
        raise ValidationError("Not the name of a role.")


class ProfileFields(Body):
    """Fields of a user's profile."""

    name = text(200, allow_none=True, metadata={"example": "Ada Lovelace"})
    phone = text(64, allow_none=True, metadata={"example": "+44 20 7946 0000"})
    device_id = text(200, allow_none=True, metadata={"example": "laptop-1"})


class RegisterBody(ProfileFields):
    """The body of a registration."""

    email = text(1024, required=True, metadata={"example": "ada@example.com"})
    password = fields.String(required=True, metadata={"example": "correct horse battery staple"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Registration:
        """The value for the domain."""
        return Registration(email=data["email"], password=data["password"], profile=profile_of(data))


@dataclass(frozen=True, slots=True, repr=False)
class LoginForm:
    """The address and password of a login."""

    email: str
    password: str
    device_id: str | None = None


class LoginBody(Body):
    """The body of a login. Any strings are accepted: those that no account can have fail like wrong ones."""

    email = fields.String(required=True, metadata={"example": "ada@example.com"})
    password = fields.String(required=True, metadata={"example": "correct horse battery staple"})
    device_id = text(200, allow_none=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> LoginForm:
        """The value for the view."""
        return LoginForm(**data)


@dataclass(frozen=True, slots=True, repr=False)
class RefreshForm:
    """A refresh token; None if the body has none and may leave it out."""

    refresh_token: str | None = None


class RefreshBody(Body):
    """The body with a refresh token."""

    refresh_token = fields.String(required=True, validate=storable)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> RefreshForm:
        """The value for the view."""
        return RefreshForm(**data)


class ProfilePatch(ProfileFields):
    """The fields to change; null clears one."""

    @validates_schema
    def not_empty(self, data: dict[str, Any], **_: Any) -> None:
        """Reject a patch without any field."""
        _require_some(data)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Profile:
        """The value for the domain."""
        return profile_of(data)


@dataclass(frozen=True, slots=True, repr=False)
class PasswordForm:
    """The current password and the new one."""

    current_password: str
    new_password: str


class PasswordBody(Body):
    """A change of password."""

    current_password = fields.String(required=True)
    new_password = fields.String(required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PasswordForm:
        """The value for the view."""
        return PasswordForm(**data)


@dataclass(frozen=True, slots=True, repr=False)
class ClosingForm:
    """The password of a request to close the account."""

    password: str


class ClosingBody(Body):
    """The body of a request to close the account."""

    password = fields.String(required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> ClosingForm:
        """The value for the view."""
        return ClosingForm(**data)


class PreferencesBody(Body):
    """Any JSON object within the limits."""

    class Meta:
        """Members may have any name."""

        unknown = "include"

    @validates_schema
    def all_storable(self, data: dict[str, Any], **_: Any) -> None:
        """Reject NUL and lone surrogates anywhere."""
        storable(data)

    @post_load(pass_original=True)
    def as_sent(self, _data: dict[str, Any], original: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Members in the caller's order: marshmallow passes unknown ones in the order of a set."""
        return original


class PreferencesPatch(PreferencesBody):
    """A merge patch (RFC 7396)."""

    media_types: ClassVar[tuple[str, ...]] = (MERGE_PATCH, JSON)


@dataclass(frozen=True, slots=True)
class UserPatchForm:
    """New roles, a new status, or both."""

    roles: tuple[Role, ...] | None = None
    status: Status | None = None


class UserPatch(Body):
    """The body of an admin's change of a user."""

    roles = fields.List(role_name(), validate=validate.Length(min=1, max=len(BUILT_IN) + MAX_ROLES))
    status = fields.String(validate=validate.OneOf(("active", "disabled")))

    @validates_schema
    def not_empty(self, data: dict[str, Any], **_: Any) -> None:
        """Reject a patch without any field."""
        _require_some(data)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserPatchForm:
        """The value for the view."""
        roles = tuple(data["roles"]) if "roles" in data else None
        return UserPatchForm(roles=roles, status=data.get("status"))


class UserQuery(Shape):
    """The filters and the page of a list of users."""

    class Meta:
        """An unknown parameter is an error, not ignored."""

        unknown = RAISE

    email = text(1024, metadata={"description": "Only the user with this address."})
    role = role_name()
    status = fields.String(validate=validate.OneOf(("active", "disabled")))
    limit = Whole(1, MAX_PAGE, load_default=50)
    cursor = Identifier(error_messages={"invalid_uuid": "Not a cursor of this list."})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserFilter:
        """The value for the domain."""
        after = UserId(data["cursor"]) if "cursor" in data else None
        email = _address(data["email"]) if "email" in data else None
        return UserFilter(
            email=email, role=data.get("role"), status=data.get("status"), limit=data["limit"], after=after
        )


def _address(typed: str) -> Email:
    try:
        return canonical_email(typed)
    except InvalidEmail as error:
        raise ValidationError(str(error), "email") from error


class UserView(View):
    """A user as they themselves and admins see them."""

    id = fields.String()
    email = fields.String()
    name = fields.String(allow_none=True)
    phone = fields.String(allow_none=True)
    device_id = fields.String(allow_none=True)
    roles = fields.List(role_name())
    status = fields.String()
    preferences = fields.Dict(keys=fields.String())
    created_at = Time()
    updated_at = Time()
    last_login = Time(allow_none=True)
    email_verified = fields.Boolean()


class UserPage(View):
    """One page of users."""

    items = fields.List(fields.Nested(UserView))
    next_cursor = fields.String(allow_none=True)


class SessionView(View):
    """A session as its user sees it."""

    id = fields.String()
    current = fields.Boolean()
    device_id = fields.String(allow_none=True)
    ip = fields.String()
    user_agent = fields.String(allow_none=True)
    created_at = Time()
    last_used_at = Time()
    expires_at = Time()


class SessionList(View):
    """All live sessions of a user."""

    items = fields.List(fields.Nested(SessionView))


class TokenPairView(View):
    """The answer to a login or a refresh (RFC 6749 §5.1)."""

    access_token = fields.String()
    token_type = fields.Constant("Bearer", metadata={"type": "string", "enum": ["Bearer"]})
    expires_in = fields.Integer()
    refresh_token = fields.String()
    refresh_expires_in = fields.Integer()
    session_id = fields.String()


def profile_of(data: dict[str, Any]) -> Profile:
    """The profile fields that *data* contains."""
    given = frozenset(name for name in PROFILE_FIELDS if name in data)
    return Profile(given=given, **{name: data[name] for name in given})


def _require_some(data: dict[str, Any]) -> None:
    if not data:
        raise ValidationError("Name at least one field.")
