"""OAuth 2.0 endpoints defined by RFCs: introspection, revocation, tokens, metadata, keys."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint as FlaskBlueprint
from flask import Response, jsonify, request
from werkzeug.exceptions import BadRequest

from authsvc.api.frame.bodies import FORM, Blueprint, read_form
from authsvc.api.frame.context import caller, issuer_of_tokens, services
from authsvc.api.frame.errors import OAUTH_PREFIX, OAuthErrorView
from authsvc.api.frame.guards import counted, public, requires_client
from authsvc.api.schemas.tokens import (
    GrantForm,
    IntrospectionView,
    MachineTokenView,
    MetadataView,
    TokenForm,
)
from authsvc.domain.clients import Right
from authsvc.domain.errors import GrantUnsupported, NotFound
from authsvc.domain.tokens.access import MachineToken
from authsvc.domain.tokens.introspection import ActiveToken, Introspection, Kind
from authsvc.domain.tokens.machines import NewMachineToken

blp = Blueprint("oauth2", __name__, description="OAuth 2.0 endpoints for standard clients.")
#: The route exists only with MACHINES on.
machines = Blueprint("oauth2_token", __name__, description="Tokens for services.")
#: Where RFC 8414 §3 puts the metadata of an issuer that has a path.
of_path = FlaskBlueprint("metadata_of_path", __name__)

#: How long verifiers may keep the keys (seconds); a key signs only when it is older.
JWKS_MAX_AGE_S = 300
#: How long clients may keep the metadata (seconds); they change with a release or a setting.
METADATA_MAX_AGE_S = 3600

INTROSPECT, REVOKE, JWKS = OAUTH_PREFIX + "introspect", OAUTH_PREFIX + "revoke", "/.well-known/jwks.json"
TOKEN, CLIENT_CREDENTIALS = OAUTH_PREFIX + "token", "client_credentials"
METADATA = "/.well-known/oauth-authorization-server"
AUTH_METHODS = ["client_secret_basic"]

_KEYS: dict[str, Any] = {
    "type": "object",
    "required": ["keys"],
    "properties": {"keys": {"type": "array", "items": {"type": "object"}}},
}


def _json(description: str, schema: object) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_FORM = {"required": True, "content": {FORM: {"schema": TokenForm}}}
_REFUSALS = {
    "401": _json("`invalid_client`", OAuthErrorView),
    "503": _json("`temporarily_unavailable`", OAuthErrorView),
    "default": _json(
        "`invalid_request` (400, 413, 415); `unauthorized_client` (400); `temporarily_unavailable` (429);"
        " for tokens also `unsupported_grant_type`, `invalid_scope` (400)",
        OAuthErrorView,
    ),
}


@blp.post(INTROSPECT)
@requires_client(Right.INTROSPECT)
@blp.doc(requestBody=_FORM, responses={"200": _json("The token", IntrospectionView), **_REFUSALS})
def introspect() -> Response:
    """Tell whether a token is valid now, and whose it is (RFC 7662)."""
    sees_refresh = caller().client.has(Right.INTROSPECT_REFRESH)
    found = _introspection().describe(_token(), sees_refresh=sees_refresh)
    if found is None:
        return jsonify(active=False)
    return jsonify(_described_machine(found) if isinstance(found, MachineToken) else _described(found))


@blp.post(REVOKE)
@requires_client()
@blp.doc(
    requestBody=_FORM,
    responses={"200": {"description": "The token is not valid any more, or never was."}, **_REFUSALS},
)
def revoke() -> Response:
    """End the session of an access or a refresh token, or a client's own token (RFC 7009)."""
    _introspection().revoke(_token(), by=caller().client)
    response = Response()
    del response.headers["Content-Type"]
    return response


@machines.post(TOKEN)
@counted(lambda metrics: metrics.machine_token)
@requires_client(Right.TOKEN)
@machines.doc(
    requestBody={"required": True, "content": {FORM: {"schema": GrantForm}}},
    responses={"200": _json("The token", MachineTokenView), **_REFUSALS},
)
def token() -> Response:
    """Issue an access token to the client that asks (RFC 6749 §4.4)."""
    form = read_form(request)
    if "grant_type" not in form or "client_secret" in form:
        raise BadRequest
    if form["grant_type"] != CLIENT_CREDENTIALS:
        raise GrantUnsupported
    return jsonify(_issued(issuer_of_tokens().issue(caller(), form.get("scope"))))


@blp.get(METADATA)
@public
@blp.doc(responses={"200": _json("The metadata", MetadataView)})
def metadata() -> Response:
    """Show the endpoints and what they support (RFC 8414)."""
    issuer = services().introspection.profile.issuer
    has_machines = services().machines is not None
    return _public(_metadata(issuer, issuer.rstrip("/"), has_machines=has_machines), METADATA_MAX_AGE_S)


@of_path.get(f"{METADATA}/<path:issuer_path>")
@public
def metadata_of_path(issuer_path: str) -> Response:
    """Show the metadata below the path of the issuer, with or without its last slash."""
    if urlsplit(services().introspection.profile.issuer).path.strip("/") != issuer_path.rstrip("/"):
        raise NotFound
    answer: Response = metadata()
    return answer


@blp.get(JWKS)
@public
@blp.doc(responses={"200": _json("The keys", _KEYS)})
def jwks() -> Response:
    """Show the public keys that verify tokens of this service (RFC 7517)."""
    return _public(services().ring().jwks(), JWKS_MAX_AGE_S)


def _introspection() -> Introspection:
    found = services().introspection
    return found.without_sql() if caller().is_remembered else found


def _public(value: object, max_age_s: int) -> Response:
    """*value* as JSON that any cache may keep for *max_age_s* seconds."""
    response = jsonify(value)
    response.headers["Cache-Control"] = f"public, max-age={max_age_s}"
    return response


def _token() -> str:
    """The token in the form; raises 400 without one, and if the form also has a client secret."""
    parameters = read_form(request)
    if "token" not in parameters or "client_secret" in parameters:
        raise BadRequest
    return parameters["token"]


def _described(token: ActiveToken) -> dict[str, object]:
    """An active token with the member names of RFC 7662 §2.2."""
    members: dict[str, object] = {
        "active": True,
        "token_type": token.kind.value,
        "sub": token.user_id,
        "sid": token.session_id,
        "roles": list(token.roles),
        "iss": token.issuer,
        "aud": token.audience,
        "iat": token.issued_at,
        "exp": token.expires_at,
    }
    members |= {"jti": token.token_id} if token.token_id else {}
    return members | (token.level.claims() if token.level else {})


def _described_machine(token: MachineToken) -> dict[str, object]:
    """
    The active token of a machine. Without scopes, ``scope`` is left out: RFC 6749 §3.3 allows no empty text.
    """
    members: dict[str, object] = {
        "active": True,
        "token_type": Kind.ACCESS.value,
        "client_id": token.client_id,
        "sub": token.client_id,
        "sid": token.session_id,
        "iss": token.issuer,
        "aud": token.audience,
        "iat": token.issued_at,
        "exp": token.expires_at,
        "jti": token.token_id,
    }
    return members | _scope(token.scopes)


def _issued(made: NewMachineToken) -> dict[str, object]:
    """A new token, as RFC 6749 §5.1 defines the answer."""
    members = {"access_token": made.access_token, "token_type": "Bearer", "expires_in": made.expires_in}
    return members | _scope(made.scopes)


def _scope(scopes: tuple[str, ...]) -> dict[str, object]:
    return {"scope": " ".join(scopes)} if scopes else {}


def _metadata(issuer: str, base: str, *, has_machines: bool) -> dict[str, object]:
    """What this service supports; there is no authorization endpoint."""
    token = {"token_endpoint": base + TOKEN, "token_endpoint_auth_methods_supported": AUTH_METHODS}
    return {
        "issuer": issuer,
        "jwks_uri": base + JWKS,
        **(token if has_machines else {}),
        "introspection_endpoint": base + INTROSPECT,
        "introspection_endpoint_auth_methods_supported": AUTH_METHODS,
        "revocation_endpoint": base + REVOKE,
        "revocation_endpoint_auth_methods_supported": AUTH_METHODS,
        # Required, but empty: no flow has an authorization endpoint. The default of grants would name two
        # that we lack.
        "response_types_supported": [],
        "grant_types_supported": [CLIENT_CREDENTIALS] if has_machines else [],
    }
