"""Schemas of introspection, revocation and tokens, for the description; ``read_form`` reads the forms."""

from __future__ import annotations

from marshmallow import fields

from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.kinds import View
from authsvc.domain.values.levels import Acr
from authsvc.settings.kinds import ROLE_PATTERN


class TokenForm(Shape):
    """The form of introspection and revocation; other parameters are ignored."""

    token = fields.String(required=True)
    token_type_hint = fields.String(metadata={"description": "Optional; it does not change the result."})


class GrantForm(Shape):
    """The form of a token request."""

    grant_type = fields.String(required=True, metadata={"enum": ["client_credentials"]})
    scope = fields.String(metadata={"description": "Separated by spaces; default: all scopes of the client."})


class MachineTokenView(Shape):
    """A token of a client (RFC 6749 §5.1)."""

    access_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata={"enum": ["Bearer"]})
    expires_in = fields.Integer(required=True)
    scope = fields.String(metadata={"description": "Left out for a client without scopes."})


class IntrospectionView(Shape):
    """A token; if it is not active, only ``active`` is present."""

    active = fields.Boolean(required=True)
    token_type = fields.String(metadata={"enum": ["access_token", "refresh_token"]})
    sub = fields.UUID(metadata={"description": "The user, or the machine's client"})
    client_id = fields.UUID(metadata={"description": "Only for machines"})
    scope = fields.String(metadata={"description": "Only for machines"})
    sid = fields.UUID(metadata={"description": "The session, or the secret that the machine showed"})
    roles = fields.List(fields.String(metadata={"pattern": f"^{ROLE_PATTERN}$"}))
    iss = fields.String()
    aud = fields.String()
    iat = fields.Integer()
    exp = fields.Integer()
    jti = fields.UUID(metadata={"description": "Only for access tokens"})
    acr = fields.String(
        metadata={"description": "The level of the token", "enum": [acr.value for acr in Acr]}
    )
    amr = fields.List(fields.String(), metadata={"description": "How the user logged in (RFC 8176)"})
    auth_time = fields.Integer(metadata={"description": "When the user last authenticated"})


class MetadataView(View):
    """The endpoints and what they support (RFC 8414 §2)."""

    sometimes = frozenset({"token_endpoint", "token_endpoint_auth_methods_supported"})

    issuer = fields.URL()
    jwks_uri = fields.URL()
    token_endpoint = fields.URL()
    token_endpoint_auth_methods_supported = fields.List(fields.String())
    introspection_endpoint = fields.URL()
    introspection_endpoint_auth_methods_supported = fields.List(fields.String())
    revocation_endpoint = fields.URL()
    revocation_endpoint_auth_methods_supported = fields.List(fields.String())
    response_types_supported = fields.List(fields.String())
    grant_types_supported = fields.List(fields.String())
