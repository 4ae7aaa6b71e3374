"""The shapes that go in and out; load() returns a frozen value of the domain, rules live there."""

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
    """Refuse NUL and lone surrogates in *value*, however deep: no database takes them."""
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
    """A string of at most *most* characters that a database takes."""
    return fields.String(validate=[validate.Length(max=most), storable], **options)


def role_name() -> fields.String:
    """The name of a role; whether there is such a role is the domain's to say."""
    return fields.String(
        validate=_named_like_a_role, metadata={"pattern": f"^{ROLE_PATTERN}$", "example": "user"}
    )


def _named_like_a_role(name: str) -> None:
    if not is_role_name(name):
        raise ValidationError("Not the name of a role.")


class ProfileFields(Body):
    """What a user says of themselves."""

    name = text(200, allow_none=True, metadata={"example": "Ada Lovelace"})
    phone = text(64, allow_none=True, metadata={"example": "+44 20 7946 0000"})
    device_id = text(200, allow_none=True, metadata={"example": "laptop-1"})


class RegisterBody(ProfileFields):
    """What somebody signs up with."""

    email = text(1024, required=True, metadata={"example": "ada@example.com"})
    password = fields.String(required=True, metadata={"example": "correct horse battery staple"})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Registration:
        """As the domain takes it."""
        return Registration(email=data["email"], password=data["password"], profile=profile_of(data))


@dataclass(frozen=True, slots=True, repr=False)
class LoginForm:
    """What somebody signs in with."""

    email: str
    password: str
    device_id: str | None = None


class LoginBody(Body):
    """Address and password: any string will do, what fits nobody is a failure like any other."""

    email = fields.String(required=True, metadata={"example": "ada@example.com"})
    password = fields.String(required=True, metadata={"example": "correct horse battery staple"})
    device_id = text(200, allow_none=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> LoginForm:
        """As a value."""
        return LoginForm(**data)


@dataclass(frozen=True, slots=True, repr=False)
class RefreshForm:
    """A refresh token, as presented; None where the body names none and need not."""

    refresh_token: str | None = None


class RefreshBody(Body):
    """A refresh token."""

    refresh_token = fields.String(required=True, validate=storable)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> RefreshForm:
        """As a value."""
        return RefreshForm(**data)


class ProfilePatch(ProfileFields):
    """The fields to change; null clears one."""

    @validates_schema
    def not_empty(self, data: dict[str, Any], **_: Any) -> None:
        """A patch that changes nothing is a mistake."""
        _require_some(data)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Profile:
        """As the domain takes it."""
        return profile_of(data)


@dataclass(frozen=True, slots=True, repr=False)
class PasswordForm:
    """The password in use and the one to come."""

    current_password: str
    new_password: str


class PasswordBody(Body):
    """A change of password."""

    current_password = fields.String(required=True)
    new_password = fields.String(required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PasswordForm:
        """As a value."""
        return PasswordForm(**data)


@dataclass(frozen=True, slots=True, repr=False)
class ClosingForm:
    """The password that closes an account."""

    password: str


class ClosingBody(Body):
    """The current password."""

    password = fields.String(required=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> ClosingForm:
        """As a value."""
        return ClosingForm(**data)


class PreferencesBody(Body):
    """Any JSON object within the limits."""

    class Meta:
        """Every member is welcome."""

        unknown = "include"

    @validates_schema
    def all_storable(self, data: dict[str, Any], **_: Any) -> None:
        """No NUL and no lone surrogate anywhere."""
        storable(data)

    @post_load(pass_original=True)
    def as_sent(self, _data: dict[str, Any], original: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Members in the caller's order: marshmallow hands unknown ones on in the order of a set."""
        return original


class PreferencesPatch(PreferencesBody):
    """A merge patch (RFC 7396)."""

    media_types: ClassVar[tuple[str, ...]] = (MERGE_PATCH, JSON)


@dataclass(frozen=True, slots=True)
class UserPatchForm:
    """Roles, status or both."""

    roles: tuple[Role, ...] | None = None
    status: Status | None = None


class UserPatch(Body):
    """What an admin changes of a user."""

    roles = fields.List(role_name(), validate=validate.Length(min=1, max=len(BUILT_IN) + MAX_ROLES))
    status = fields.String(validate=validate.OneOf(("active", "disabled")))

    @validates_schema
    def not_empty(self, data: dict[str, Any], **_: Any) -> None:
        """A patch that changes nothing is a mistake."""
        _require_some(data)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserPatchForm:
        """As a value."""
        roles = tuple(data["roles"]) if "roles" in data else None
        return UserPatchForm(roles=roles, status=data.get("status"))


class UserQuery(Shape):
    """Which users, and which page of them."""

    class Meta:
        """A typing error is not a filter."""

        unknown = RAISE

    email = text(1024, metadata={"description": "The one user with that address, or none."})
    role = role_name()
    status = fields.String(validate=validate.OneOf(("active", "disabled")))
    limit = Whole(1, MAX_PAGE, load_default=50)
    cursor = Identifier(error_messages={"invalid_uuid": "Not a cursor of this list."})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserFilter:
        """As the domain takes it."""
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
    """Every living session of a user."""

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
    """The fields of a profile that *data* has."""
    given = frozenset(name for name in PROFILE_FIELDS if name in data)
    return Profile(given=given, **{name: data[name] for name in given})


def _require_some(data: dict[str, Any]) -> None:
    if not data:
        raise ValidationError("Name at least one field.")
