"""What other software expects to find by RFC: the signing keys."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import public

blp = Blueprint("oauth2", __name__, description="Standard endpoints for standard clients.")

#: How long verifiers may keep the keys (seconds); a key signs only when it is older.
JWKS_MAX_AGE_S = 300

_KEYS: dict[str, Any] = {
    "type": "object",
    "properties": {"keys": {"type": "array", "items": {"type": "object"}}},
}


@blp.get("/.well-known/jwks.json")
@public
@blp.doc(responses={"200": {"description": "The keys", "content": {"application/json": {"schema": _KEYS}}}})
def jwks() -> Response:
    """Every public key that tokens of this service verify with (RFC 7517)."""
    response = jsonify(services().ring().jwks())
    response.headers["Cache-Control"] = f"public, max-age={JWKS_MAX_AGE_S}"
    return response
