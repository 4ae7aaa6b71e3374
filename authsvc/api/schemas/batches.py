"""The shapes of batches and of the cache's administration."""

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
    """Users to create; each is judged by itself."""

    users = fields.List(
        fields.Raw(allow_none=True), required=True, validate=validate.Length(min=1, max=MAX_CREATED)
    )

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[Registration | AuthError]:
        """Each as the domain takes it, or its refusal."""
        return [_registration(item) for item in data["users"]]


class IdsBody(Body):
    """Some users."""

    ids = fields.List(Identifier(), required=True, validate=validate.Length(min=1, max=MAX_IDS))

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[UserId]:
        """Their ids, each once."""
        return [UserId(one) for one in dict.fromkeys(data["ids"])]


class IdsQuery(Shape):
    """Some users, in a query: ``ids=a,b``."""

    class Meta:
        """A typing error is not a filter."""

        unknown = RAISE

    ids = fields.String(required=True, metadata={"description": "Ids with commas between them, 100 at most."})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> list[UserId]:
        """Their ids, each once."""
        named = data["ids"].split(",")
        if len(named) > MAX_IDS:
            raise ValidationError(f"At most {MAX_IDS} ids.", "ids")
        ids = [UserId(one) for one in map(canonical_id, named) if one]
        if len(ids) != len(named):
            raise ValidationError("Not an id.", "ids")
        return list(dict.fromkeys(ids))


class ClearBody(Body):
    """Whose copies to drop; everybody's without a name."""

    user_id = Identifier()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> UserId | None:
        """The user's id, if one is named."""
        return UserId(data["user_id"]) if "user_id" in data else None


class ItemError(View):
    """Why one item failed."""

    sometimes = frozenset({"errors"})

    code = fields.String()
    detail = fields.String()
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))


class ItemResult(View):
    """What became of one item."""

    sometimes = frozenset({"user", "error"})

    index = fields.Integer()
    status = fields.String(validate=validate.OneOf(("created", "failed")))
    user = fields.Nested(UserView)
    error = fields.Nested(ItemError)


class CreateBatchView(View):
    """What became of every item, in order."""

    results = fields.List(fields.Nested(ItemResult))
    created = fields.Integer()
    failed = fields.Integer()


class PlainUser(fields.Nested):
    """As UserView shows a user, without its walk over the fields, which was a third of a look-up's work."""

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
    """Who was found, and the ids that nobody has."""

    items = fields.List(PlainUser())
    missing = fields.List(fields.String())


class LastLoginView(View):
    """Whose last login is now, and the ids that nobody has."""

    updated = fields.List(fields.String())
    missing = fields.List(fields.String())


def _registration(item: Any) -> Registration | AuthError:
    """*item* as the domain takes it, or what is wrong with it."""
    try:
        form: Registration = RegisterBody().load(item)
    except ValidationError as error:
        return Invalid(flat(error.messages))
    return form
