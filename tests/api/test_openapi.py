"""The API's own description: right, complete, and shown without the internet."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import checks
from schemathesis.core.result import Ok

from authsvc.api.frame.docs import SWAGGER_UI
from tests.api.driver import Api, MakeApi, Person
from tests.api.gateway import Gateway
from tests.api.test_routes import ROUTES
from tests.lengths import times
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

#: The page, its files and the description itself are not described; the alias is known by its full name.
NOT_DESCRIBED = {"/openapi.json", "/docs", "/docs/assets/<name>", "/health"}
NOT_DESCRIBED |= {"/.well-known/oauth-authorization-server/<path:issuer_path>"}
#: Any method is one and the same check: one of them will do.
VERIFY, ALIKE = "^/v1/auth/verify", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
#: For each operation and role; the same ones on every run unless a number is set.
EXAMPLES = times("OPENAPI_EXAMPLES", 4)
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="OPENAPI_EXAMPLES" not in os.environ,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def specification(api: Api):
    """The description."""
    answer = api.call("GET", "/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    return answer.json


def test_the_description_is_valid(pg_api):
    """OpenAPI 3.1 by the validator of the specification's own schema."""
    found = specification(pg_api)

    assert found["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(found).iter_errors()) == []


def test_every_route_is_described_with_what_it_asks_for(pg_api):
    """The same table as the guards': a token where one is needed, none where not."""
    found = {
        f"{method.upper()} {path.replace('{', '<').replace('}', '>')}": operation.get("security", [])
        for path, item in specification(pg_api)["paths"].items()
        for method, operation in item.items()
        if method != "parameters" and not path.startswith("/v1/auth/verify")
    }

    wanted = {route: role for route, role in ROUTES.items() if route.split(" ")[1] not in NOT_DESCRIBED}
    assert found.keys() == wanted.keys()
    for route, role in wanted.items():
        either_will_do: list[dict[str, list[str]]] = (
            [{"bearer": []}, {}] if route == "POST /v1/auth/logout" else []
        )
        asked_for = {"public": either_will_do, "client": [{"client": []}]}
        assert found[route] == asked_for.get(role, [{"bearer": []}]), route


def test_the_check_is_described_though_flask_does_not_know_it(pg_api):
    """Every method, with and without a path below."""
    paths = specification(pg_api)["paths"]

    for path in ("/v1/auth/verify", "/v1/auth/verify/{path}"):
        assert {"get", "head", "post", "put", "patch", "delete", "options"} <= set(paths[path])


def test_every_refusal_is_described_as_a_problem(pg_api):
    """No other form of error is mentioned but that of OAuth, below its path."""
    found = specification(pg_api)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemView"}}}
    of_oauth = {"application/json": {"schema": {"$ref": "#/components/schemas/OAuthErrorView"}}}
    for path, item in found["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            for status, response in operation["responses"].items():
                if status == "default" or status >= "400":
                    name = response.get("$ref", "").rpartition("/")[2]
                    content = (
                        found["components"]["responses"][name]["content"] if name else response["content"]
                    )
                    is_probe = path.startswith("/v1/health") and status == "503"
                    expected = of_oauth if path.startswith("/v1/oauth2/") else problem
                    assert is_probe or content == expected, (method, path, status)
    assert set(found["components"]["schemas"]["ProblemView"]["properties"]) == {
        "type", "title", "status", "detail", "code", "request_id", "errors",
    }  # fmt: skip


def test_nothing_secret_or_internal_is_described(pg_api):
    """No field of a stored user that is not his to see."""
    found = pg_api.call("GET", "/openapi.json").get_json()
    # Registered clients compare it with the claim of that name in the tokens that they are shown.
    del found["components"]["schemas"]["FeedItem"]["properties"]["epoch"]
    text = json.dumps(found)

    for word in ("password_hash", "epoch", "salt", "psycopg", "redis://", "/work", "Traceback"):
        assert word not in text


def test_the_page_needs_no_internet(pg_api):
    """Every address in it is of this service and answers; its policy forbids all others."""
    page = pg_api.call("GET", "/docs")

    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert page.mimetype == "text/html"
    assert "//" not in "".join(addresses)
    assert len(addresses) >= 4
    for address in addresses:
        assert pg_api.call("GET", address).status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "'unsafe-eval'" not in policy
    start = pg_api.call("GET", "/docs/assets/init.js").text
    assert "/openapi.json" in start
    assert "http" not in start


def test_the_files_of_the_page_are_what_they_say(pg_api):
    """Scripts and styles with their types, under ``nosniff``; no other file of the package is sent."""
    for name, media_type in (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "text/javascript")):
        answer = pg_api.call("GET", f"/docs/assets/{name}")

        assert (answer.status_code, answer.mimetype) == (200, media_type)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (SWAGGER_UI / "oauth2-redirect.html").exists()
    assert pg_api.call("GET", "/docs/assets/oauth2-redirect.html").status_code == 404


def test_switched_off_there_is_neither_description_nor_page(make_api):
    """404, as for any other path; the rest works."""
    api = make_api(API_DOCS="off")

    for path in ("/openapi.json", "/docs", "/docs/assets/init.js", "/docs/"):
        assert api.call("GET", path).status_code == 404
    assert api.someone().is_accepted()


@pytest.fixture(scope="module")
def started(make_module_api: MakeApi) -> Api:
    """Start an application as the server does: one that only stands there is not ready, which is a 503."""
    api = make_module_api()
    api.services.start()
    ready = "/v1/health/ready"
    wait_until(lambda: api.call("GET", ready).status_code == 200, what="the first comparison")
    return api


def assert_conforms(
    operation: schemathesis.APIOperation[Any, Any, Any, Any],
    make_caller: Callable[[], Person] | None = None,
    *,
    client: dict[str, str] | None = None,
) -> None:
    """
    Send *operation* EXAMPLES requests of any content.

    As a caller who lives as long as they let him, with the headers of a *client*, or as nobody.
    """
    caller = make_caller() if make_caller else None

    @given(case=operation.as_strategy())
    @FEW
    def each_conforms(case: schemathesis.Case[Any]) -> None:
        headers = {"Authorization": f"Bearer {caller.access}"} if caller else client
        answer = case.call_and_validate(checks=CHECKS, headers=headers)
        if caller and make_caller and answer.status_code == 204:
            # What worked may have been his last request, and nothing but 401 would come after it.
            caller.pair = make_caller().pair

    each_conforms()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["nobody", "user", "admin"])
def test_whoever_asks_for_whatever_gets_what_is_described(started, role):
    """No 5xx, and status, type and body as the description has them."""
    make_caller = {"nobody": None, "user": started.someone, "admin": started.an_admin}[role]
    described = schemathesis.openapi.from_wsgi("/openapi.json", started.application.flask)

    for found in described.exclude(path_regex=VERIFY, method=ALIKE).get_all_operations():
        assert isinstance(found, Ok)
        assert_conforms(found.ok(), make_caller)


@pytest.mark.slow
def test_whatever_a_client_asks_for_it_gets_what_is_described(started):
    """The same for those who come with the secret of a client."""
    described = schemathesis.openapi.from_wsgi("/openapi.json", started.application.flask)
    operations = list(described.include(path_regex="^/v1/oauth2/").get_all_operations())

    assert len(operations) == 2
    for found in operations:
        assert isinstance(found, Ok)
        assert_conforms(found.ok(), client=Gateway.of(started).headers)
