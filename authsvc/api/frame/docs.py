"""The OpenAPI 3.1 description of the API, and a page that shows it without access to the internet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apispec import BasePlugin
from flask import Blueprint, Flask, Response, abort, current_app, jsonify, send_from_directory
from flask_smorest import Api

from authsvc.api.frame.bodies import Blueprint as DescribedBlueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.errors import ProblemView
from authsvc.api.frame.guards import public
from authsvc.domain.clients import SCOPE_PATTERN
from authsvc.domain.values.levels import Acr
from authsvc.domain.values.problems import MEDIA_TYPE
from authsvc.settings.kinds import ROLE_PATTERN

blp = Blueprint("docs", __name__)
#: Where an application keeps what makes its description.
_DESCRIPTION = "authsvc.description"
#: Routes that exist whether or not the description is published.
root = Blueprint("root", __name__)

_LINKS = {
    "health": "v1/health",
    "keys": ".well-known/jwks.json",
    "metadata": ".well-known/oauth-authorization-server",
}

#: The folder of Swagger UI in its package.
SWAGGER_UI = Path(str(files("flask_swagger_ui"))) / "dist"
#: Files of the page, and where they are.
_ASSETS = {
    "swagger-ui.css": SWAGGER_UI,
    "swagger-ui-bundle.js": SWAGGER_UI,
    "init.js": Path(__file__).parents[1] / "static",
}

#: Paths of token checks, answered before Flask.
VERIFY_PATH = "/v1/auth/verify"
VERIFY_MACHINE_PATH = f"{VERIFY_PATH}-machine"
VERIFY_ANY_PATH = f"{VERIFY_PATH}-any"
#: Paths on which any caller can cause a password hash.
HASHING_PATHS = (
    *("/v1/auth/login", "/v1/auth/register", "/v1/auth/register/confirm"),
    *("/v1/auth/password/reset", "/v1/auth/email/verify"),
)

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
  <link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <noscript>This page needs JavaScript; what it shows is <a href="openapi.json">openapi.json</a>.</noscript>
  <script src="docs/assets/swagger-ui-bundle.js"></script>
  <script src="docs/assets/init.js"></script>
</body>
</html>
"""

_COMMON_REFUSALS = {"DEFAULT_ERROR": "Any other error.", "UNPROCESSABLE_ENTITY": "`validation_failed`"}


def check_paths(*, has_machines: bool) -> tuple[str, ...]:
    """Paths of token checks; those for machines exist only where machines are on."""
    return (VERIFY_PATH, VERIFY_MACHINE_PATH, VERIFY_ANY_PATH) if has_machines else (VERIFY_PATH,)


def _check_operations(*, has_machines: bool, has_levels: bool) -> dict[str, Any]:
    """Describe the checks: they are answered before Flask, which does not know them."""
    person = "`X-Auth-User-Id`, `X-Auth-Session-Id`, `X-Auth-Roles`"
    machine = "`X-Auth-Client-Id`, `X-Auth-Scopes`"
    of_people = ("role", "acr", "max_age") if has_levels else ("role",)
    about = {
        VERIFY_PATH: ("Check a person's access token for a gateway.", of_people, person),
        VERIFY_MACHINE_PATH: ("Check a machine's access token for a gateway.", ("scope",), machine),
        VERIFY_ANY_PATH: (
            "Check a person's or a machine's access token for a gateway.",
            (*of_people, "scope"),
            f"{person}, or {machine}",
        ),
    }
    paths = check_paths(has_machines=has_machines)
    return {path: {"get": _check_operation(path, *about[path])} for path in paths}


_ITEMS: dict[str, dict[str, Any]] = {
    "role": {"type": "string", "pattern": f"^{ROLE_PATTERN}$"},
    "scope": {"type": "string", "pattern": f"^{SCOPE_PATTERN}$"},
    "acr": {"type": "string", "enum": [acr.value for acr in Acr]},
    "max_age": {"type": "integer", "minimum": 0},
}


def _check_operation(path: str, summary: str, parameters: tuple[str, ...], headers: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{ProblemView.__name__}"}
    problem = {"content": {MEDIA_TYPE: {"schema": schema}}}
    missing = " or ".join(f"a {name}" for name in parameters if name in {"role", "scope"})
    step_up = ", `step_up_required`" if "acr" in parameters else ""
    scope = "; `insufficient_scope`" if "scope" in parameters else ""
    return {
        "tags": ["auth"],
        "summary": summary,
        "description": "Any method, on this path or any below it, is the same check; no body is read.",
        "operationId": _operation_id("get", path),
        "security": [{"bearer": []}],
        "parameters": [_asked_for(name) for name in parameters],
        "responses": {
            "200": {"description": f"Good: {headers} say whose."},
            "401": {"description": f"`token_missing`, `token_invalid`{step_up}", **problem},
            "403": {"description": f"`forbidden`{scope}: {missing} is missing", **problem},
            "503": {"description": "`unavailable`", **problem},
        },
    }


def _asked_for(name: str) -> dict[str, Any]:
    return {"in": "query", "name": name, "schema": {"type": "array", "items": _ITEMS[name]}}


def publish(
    app: Flask,
    blueprints: Iterable[DescribedBlueprint],
    *,
    issuer: str,
    has_machines: bool,
    has_levels: bool,
) -> None:
    """
    Let *app* show the description of *blueprints*, as the service that is published as *issuer*.

    It is made on the first request for it: that takes 0.1 s, and most processes never get one.
    """
    config = _openapi(issuer, has_machines=has_machines, has_levels=has_levels)
    app.extensions[_DESCRIPTION] = cache(lambda: _described(config, blueprints))
    app.register_blueprint(blp)


def _described(config: dict[str, Any], blueprints: Iterable[DescribedBlueprint]) -> bytes:
    """The description as JSON, taken from an application of its own."""
    described = Flask(__name__, static_folder=None)
    described.config.update(config)
    api = DescribedApi(described)
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    return json.dumps(api.spec.to_dict(), indent=2).encode()


def _openapi(issuer: str, *, has_machines: bool, has_levels: bool) -> dict[str, Any]:
    """flask-smorest's configuration."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "at+jwt"},
        "client": {"type": "http", "scheme": "basic"},
    }
    options = {
        "info": {"description": "Auth and sessions for microservices; errors are RFC 9457 problems."},
        "servers": [{"url": urlsplit(issuer).path.rstrip("/") or "/"}],
        "components": {"securitySchemes": schemes},
        "paths": _check_operations(has_machines=has_machines, has_levels=has_levels),
    }
    return {
        "API_TITLE": "authsvc",
        "API_VERSION": "v1",
        "OPENAPI_VERSION": "3.1.0",
        "API_SPEC_OPTIONS": options,
    }


def _operation_id(method: str, path: str) -> str:
    return re.sub(r"\W+", "_", f"{method}{path}").rstrip("_")


class OperationIds(BasePlugin):
    """Gives every operation an id of method and path, as code generators do where there is none."""

    def operation_helper(
        self, path: str | None = None, operations: dict[str, Any] | None = None, **_: object
    ) -> None:
        """Add the ids."""
        for method, operation in (operations or {}).items():
            operation["operationId"] = _operation_id(method, path or "")


class DescribedApi(Api):
    """flask-smorest's description, with our problem bodies in place of its own error schema."""

    ERROR_SCHEMA = ProblemView

    def __init__(self, app: Flask) -> None:
        super().__init__(app, spec_kwargs={"extra_plugins": [OperationIds()]})
        components = self.spec.components
        content = {"content": {MEDIA_TYPE: {"schema": ProblemView}}}
        for name, description in _COMMON_REFUSALS.items():
            # Registered again: the latest description is the one that operations refer to.
            components.response(name, {"description": description, **content}, lazy=True)
        components.schemas.pop("PaginationMetadata", None)


@root.get("/")
@public
def begin() -> Response:
    """Redirect to the page, or list the entry points; addresses are relative, for any path prefix."""
    if services().http.api_docs:
        return Response(status=302, headers={"Location": "docs"}, content_type="text/plain")
    return jsonify(links=_LINKS)


@blp.get("/openapi.json")
@public
def description() -> Response:
    """Send the description."""
    made: Callable[[], bytes] = current_app.extensions[_DESCRIPTION]
    return Response(made(), content_type="application/json")


@blp.get("/docs/assets/<name>")
@public
def asset(name: str) -> Response:
    """Send a file of the page, and no other file of the package."""
    if name not in _ASSETS:
        abort(404)
    return send_from_directory(_ASSETS[name], name)


@blp.get("/docs")
@public
def page() -> Response:
    """Show the page."""
    response = Response(_PAGE, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = POLICY
    return response
