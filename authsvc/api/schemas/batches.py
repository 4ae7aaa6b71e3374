"""Schemas of batches and of cache administration."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, ValidationError, fields, post_load, validate

from authsvc.api.frame.bodies import Body
from authsvc.api.frame.errors import Shape, flat
from authsvc.api.schemas.accounts import RegisterBody, UserView
from authsvc.api.schemas.kinds import Identifier, View
from authsvc.domain.authentication import Registration
from authsvc.domain.errors import AuthError, Invalid
from authsvc.domain.users import User
from authsvc.domain.values.clocks import rfc3339
from authsvc.domain.values.identifiers import UserId, canonical_id

MAX_CREATED = 20
MAX_IDS = 100


class CreateBatchBody(Body):
    """Users to create; each is validated by itself."""

    users = fields.List(
        fields.Raw(allow_none=True), required=True, validate=validate.Length(min=1, max=MAX_CREATED)
    )

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[Registration | AuthError]:
        """For each item the value for the domain, or its error."""
        return [_registration(item) for item in data["users"]]


class IdsBody(Body):
    """Some users."""

    ids = fields.List(Identifier(), required=True, validate=validate.Length(min=1, max=MAX_IDS))

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[UserId]:
        """The ids, without duplicates."""
        return [UserId(one) for one in dict.fromkeys(data["ids"])]


class IdsQuery(Shape):
    """Some users, in a query: ``ids=a,b``."""

    class Meta:
        """An unknown parameter is an error, not ignored."""

        unknown = RAISE

    ids = fields.String(required=True, metadata={"description": "Ids with commas between them, 100 at most."})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[UserId]:
        """The ids, without duplicates."""
        named = data["ids"].split(",")
        if len(named) > MAX_IDS:
            raise ValidationError(f"At most {MAX_IDS} ids.", "ids")
        ids = [UserId(one) for one in map(canonical_id, named) if one]
        if len(ids) != len(named):
            raise ValidationError("Not an id.", "ids")
        return list(dict.fromkeys(ids))


class ClearBody(Body):
    """The user whose cached data to drop; without one, all users."""

    user_id = Identifier()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserId | None:
        """The user's id; None for all users."""
        return UserId(data["user_id"]) if "user_id" in data else None


class ItemError(View):
    """Why one item failed."""

    sometimes = frozenset({"errors"})

    code = fields.String()
    detail = fields.String()
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))


class ItemResult(View):
    """The result of one item."""

    sometimes = frozenset({"user", "error"})

    index = fields.Integer()
    status = fields.String(validate=validate.OneOf(("created", "failed")))
    user = fields.Nested(UserView)
    error = fields.Nested(ItemError)


class CreateBatchView(View):
    """The results of all items, in order."""

    results = fields.List(fields.Nested(ItemResult))
    created = fields.Integer()
    failed = fields.Integer()


class PlainUser(fields.Nested):
    """
    The same as UserView, written out: marshmallow's loop over the fields took a third of a look-up's time.
    """

    def __init__(self) -> None:
        super().__init__(UserView)

    def _serialize(self, *values: Any, **_: Any) -> dict[str, object]:
        user: User = values[0]
        return {
            "id": user.id,
            "email": user.email,
            "name": user.name,
            "phone": user.phone,
            "device_id": user.device_id,
            "roles": user.roles,
            "status": user.status,
            "preferences": user.preferences,
            "created_at": rfc3339(user.created_at),
            "updated_at": rfc3339(user.updated_at),
            "last_login": rfc3339(user.last_login) if user.last_login else None,
            "email_verified": user.email_verified,
        }


class LookupView(View):
    """The users found, and the ids that no user has."""

    items = fields.List(PlainUser())
    missing = fields.List(fields.String())


class LastLoginView(View):
    """The ids that were updated, and those that no user has."""

    updated = fields.List(fields.String())
    missing = fields.List(fields.String())


def _registration(item: Any) -> Registration | AuthError:
    """*The value of *item* for the domain, or its validation error."""
    try:
        form: Registration = RegisterBody().load(item)
    except ValidationError as error:
        return Invalid(flat(error.messages))
    return form
