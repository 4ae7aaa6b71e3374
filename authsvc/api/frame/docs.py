"""The API's own description: OpenAPI 3.1, and a page over it that needs no internet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, abort, send_from_directory
from flask_smorest import Api

from authsvc.api.frame.errors import MEDIA_TYPE, ProblemView
from authsvc.api.frame.guards import public
from authsvc.domain.users import ROLES

blp = Blueprint("docs", __name__)

#: Where the package keeps Swagger UI as published.
SWAGGER_UI = Path(str(files("flask_swagger_ui"))) / "dist"
#: What the page needs, and where it lies.
_ASSETS = {
    "swagger-ui.css": SWAGGER_UI,
    "swagger-ui-bundle.js": SWAGGER_UI,
    "init.js": Path(__file__).parents[1] / "static",
}

#: Where gateways ask; answered before Flask.
VERIFY_PATH = "/v1/auth/verify"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>authsvc API</title>
  <link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <noscript>This page needs JavaScript; what it shows is <a href="/openapi.json">/openapi.json</a>.</noscript>
  <script src="/docs/assets/swagger-ui-bundle.js"></script>
  <script src="/docs/assets/init.js"></script>
</body>
</html>
"""

_COMMON_REFUSALS = {"DEFAULT_ERROR": "Any other refusal.", "UNPROCESSABLE_ENTITY": "`validation_failed`"}
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


def _verify_paths() -> dict[str, Any]:
    """The check, which is answered before Flask and so is unknown to it."""
    role = {
        "in": "query",
        "name": "role",
        "schema": {"type": "array", "items": {"type": "string", "enum": list(ROLES)}},
    }
    below = {"in": "path", "name": "path", "required": True, "schema": {"type": "string"}}
    return {
        VERIFY_PATH: {method: _operation(method, [role]) for method in _METHODS},
        f"{VERIFY_PATH}/{{path}}": {
            method: _operation(f"{method}_below", [below, role]) for method in _METHODS
        },
    }


def _operation(name: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{ProblemView.__name__}"}
    problem = {"content": {MEDIA_TYPE: {"schema": schema}}}
    return {
        "tags": ["auth"],
        "summary": "Check an access token for a gateway; any method, any sub-path.",
        "operationId": f"verify_{name}",
        "security": [{"bearer": []}],
        "parameters": parameters,
        "responses": {
            "200": {"description": "Good: `X-Auth-User-Id`, `X-Auth-Session-Id`, `X-Auth-Roles` say whose."},
            "401": {"description": "`token_missing`, `token_invalid`", **problem},
            "403": {"description": "`forbidden`: a role is missing", **problem},
            "503": {"description": "`unavailable`", **problem},
        },
    }


OPENAPI: dict[str, Any] = {
    "API_TITLE": "authsvc",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {"description": "Auth and sessions for microservices; errors are RFC 9457 problems."},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "at+jwt"},
                "client": {"type": "http", "scheme": "basic"},
            }
        },
        "paths": _verify_paths(),
    },
}
PUBLISHED = {"OPENAPI_URL_PREFIX": "/", "OPENAPI_JSON_PATH": "openapi.json"}


class DescribedApi(Api):
    """flask-smorest's description, with our problems where it has errors of its own."""

    ERROR_SCHEMA = ProblemView

    def __init__(self, app: Flask) -> None:
        super().__init__(app)
        components = self.spec.components
        content = {"content": {MEDIA_TYPE: {"schema": ProblemView}}}
        for name, description in _COMMON_REFUSALS.items():
            # Registered again: the latest description is the one that operations refer to.
            components.response(name, {"description": description, **content}, lazy=True)
        components.schemas.pop("PaginationMetadata", None)


@blp.get("/docs/assets/<name>")
@public
def asset(name: str) -> Response:
    """Send a file of the page, and no other of the package."""
    if name not in _ASSETS:
        abort(404)
    return send_from_directory(_ASSETS[name], name)


@blp.get("/docs")
@public
def page() -> Response:
    """Show the description."""
    response = Response(_PAGE, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = POLICY
    return response
