"""The shapes of introspection and revocation, for the description: forms are read by ``read_form``."""

from __future__ import annotations

from marshmallow import Schema, fields

from authsvc.api.schemas.kinds import View
from authsvc.domain.values.levels import Acr
from authsvc.settings.kinds import ROLE_PATTERN


class TokenForm(Schema):
    """What a client sends; other parameters are ignored."""

    token = fields.String(required=True)
    token_type_hint = fields.String(metadata={"description": "Not needed, and never in the way."})


class IntrospectionView(Schema):
    """A token; one that is not active has ``active`` alone."""

    active = fields.Boolean(required=True)
    token_type = fields.String(metadata={"enum": ["access_token", "refresh_token"]})
    sub = fields.UUID(metadata={"description": "The user"})
    sid = fields.UUID(metadata={"description": "The session"})
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

    issuer = fields.URL()
    jwks_uri = fields.URL()
    introspection_endpoint = fields.URL()
    introspection_endpoint_auth_methods_supported = fields.List(fields.String())
    revocation_endpoint = fields.URL()
    revocation_endpoint_auth_methods_supported = fields.List(fields.String())
    response_types_supported = fields.List(fields.String())
    grant_types_supported = fields.List(fields.String())
