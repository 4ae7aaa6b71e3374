"""Schemas of registered clients."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, post_load, validate, validates_schema

from authsvc.api.frame.bodies import JSON, MERGE_PATCH, Body
from authsvc.api.schemas.accounts import storable
from authsvc.api.schemas.kinds import Time, View
from authsvc.domain.clients import (
    MOST_SCOPES,
    NAME_LENGTH,
    SCOPE_PATTERN,
    Client,
    ClientChange,
    NewClient,
    Right,
)


def _name(**options: Any) -> fields.String:
    return fields.String(
        validate=[validate.Length(max=NAME_LENGTH), storable], metadata={"example": "orders"}, **options
    )


def _scopes(**options: Any) -> fields.List[Any]:
    scope = fields.String(metadata={"pattern": f"^{SCOPE_PATTERN}$", "example": "orders:read"})
    return fields.List(scope, validate=validate.Length(max=MOST_SCOPES), **options)


def _rights(**options: Any) -> fields.List[Any]:
    return fields.List(
        fields.String(validate=validate.OneOf(list(Right))), validate=validate.Length(max=16), **options
    )


class ClientBody(Body):
    """The body that creates a client."""

    name = _name(required=True)
    scopes = _scopes(load_default=())
    may = _rights(metadata={"description": "Default: `token` if scopes are given, else the default rights."})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> ClientChange:
        """The value for the domain."""
        return _change(data)


class ClientPatch(Body):
    """Changes of a client; removing one of its scopes ends its tokens."""

    media_types = (JSON, MERGE_PATCH)

    name = _name()
    scopes = _scopes()
    may = _rights()

    @validates_schema
    def not_empty(self, data: dict[str, Any], **_: Any) -> None:
        """Reject a patch without any field."""
        if not data:
            raise ValidationError("Name at least one field.")

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> ClientChange:
        """The value for the domain."""
        return _change(data)


class SecretView(View):
    """A secret of a client, without the secret itself."""

    id = fields.UUID()
    created_at = Time()
    last_used_on = fields.Date(allow_none=True, metadata={"description": "A day, in UTC"})


class ClientView(View):
    """A client."""

    client_id = fields.UUID(attribute="id")
    name = fields.String()
    scopes = fields.List(fields.String())
    may = fields.List(fields.String())
    created_at = Time()
    secrets = fields.List(fields.Nested(SecretView))


class NewClientView(ClientView):
    """A new client with its secret, which is never shown again."""

    client_secret = fields.String()


class NewSecretView(View):
    """A new secret, which is never shown again."""

    id = fields.UUID()
    client_secret = fields.String(attribute="secret")


class ClientList(View):
    """All clients, the oldest first."""

    items = fields.List(fields.Nested(ClientView))


def _change(data: dict[str, Any]) -> ClientChange:
    may, scopes = data.get("may"), data.get("scopes")
    return ClientChange(
        name=data.get("name"),
        scopes=None if scopes is None else tuple(scopes),
        may=None if may is None else tuple(map(Right, may)),
    )


def with_secret(made: NewClient) -> dict[str, object]:
    """The members of NewClientView for a new client."""
    client: Client = made.client
    return {
        "id": client.id,
        "name": client.name,
        "scopes": client.scopes,
        "may": client.may,
        "created_at": client.created_at,
        "secrets": client.secrets,
        "client_secret": made.secret,
    }
