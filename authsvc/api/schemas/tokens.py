"""The shapes of introspection and revocation, for the description: forms are read by ``read_form``."""

from __future__ import annotations

from marshmallow import fields

from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.kinds import View
from authsvc.domain.values.levels import Acr
from authsvc.settings.kinds import ROLE_PATTERN


class TokenForm(Shape):
    """What a client sends; other parameters are ignored."""

    token = fields.String(required=True)
    token_type_hint = fields.String(metadata={"description": "Not needed, and never in the way."})


class GrantForm(Shape):
    """What a client sends for a token of its own."""

    grant_type = fields.String(required=True, metadata={"enum": ["client_credentials"]})
    scope = fields.String(metadata={"description": "With spaces between; without it all of them."})


class MachineTokenView(Shape):
    """A token of a client (RFC 6749 §5.1)."""

    access_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata={"enum": ["Bearer"]})
    expires_in = fields.Integer(required=True)
    scope = fields.String(metadata={"description": "Left out for a client without scopes."})


class IntrospectionView(Shape):
    """A token; one that is not active has ``active`` alone."""

    active = fields.Boolean(required=True)
    token_type = fields.String(metadata={"enum": ["access_token", "refresh_token"]})
    sub = fields.UUID(metadata={"description": "The user, or the machine's client"})
    client_id = fields.UUID(metadata={"description": "Of machines alone"})
    scope = fields.String(metadata={"description": "Of machines alone"})
    sid = fields.UUID(metadata={"description": "The session, or the secret that the machine showed"})
    roles = fields.List(fields.String(metadata={"pattern": f"^{ROLE_PATTERN}$"}))
    iss = fields.String()
    aud = fields.String()
    iat = fields.Integer()
    exp = fields.Integer()
    jti = fields.UUID(metadata={"description": "Of access tokens alone"})
    acr = fields.String(
        metadata={"description": "The level that the token says", "enum": [acr.value for acr in Acr]}
    )
    amr = fields.List(fields.String(), metadata={"description": "How the user logged in (RFC 8176)"})
    auth_time = fields.Integer(metadata={"description": "When they last proved who they are"})


class MetadataView(View):
    """Where the endpoints are, and what they take (RFC 8414 §2)."""

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
