"""The API's own description: right, complete, and shown without the internet."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import checks
from schemathesis.core.result import Ok

from authsvc.api.frame.docs import HASHING_PATHS, SWAGGER_UI
from authsvc.domain.authentication import Registration
from authsvc.domain.users import Profile
from tests import times
from tests.api.driver import Api, MakeApi, Person, new_email
from tests.api.frame.ecmascript import refused
from tests.api.frame.test_routes import BY_MAIL, OF_MACHINES, QUIET, ROUTES
from tests.api.gateway import Gateway
from tests.api.mailing import MAIL
from tests.api.passkeys import PASSKEYS
from tests.processes import wait_until
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The page, its files and the description itself are not described; the alias is known by its full name.
NOT_DESCRIBED = {"/", "/openapi.json", "/docs", "/docs/assets/<name>", "/health"}
NOT_DESCRIBED |= {"/.well-known/oauth-authorization-server/<path:issuer_path>"}
VERIFY = "/v1/auth/verify"
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


def operations(api: Api) -> dict[str, dict[str, Any]]:
    """Every operation, by method and path."""
    return {
        f"{method} {path}": operation
        for path, item in specification(api)["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


def values_of(node: Any, wanted: str) -> Iterator[Any]:
    """What stands under the name *wanted*, wherever it is."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if name == wanted and isinstance(child, str):
            yield child
        yield from values_of(child, wanted)


def answered(description: Any) -> set[str]:
    """The schemas that answers are made of."""
    schemas = description["components"]["schemas"]
    responses = [description["components"]["responses"]]
    for item in description["paths"].values():
        responses += [operation["responses"] for name, operation in item.items() if name != "parameters"]
    waiting, found = list(values_of(responses, "$ref")), set()
    while waiting:
        name = waiting.pop().rpartition("/")[2]
        if name in schemas and name not in found:
            found.add(name)
            waiting += values_of(schemas[name], "$ref")
    return found - {"PreferencesBody"}


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


def test_the_check_is_described_once_and_first(pg_api):
    """Flask does not know it; that any method and any path below it are the same is said, not repeated."""
    paths = specification(pg_api)["paths"]

    described = [(path, *item) for path, item in paths.items() if path.startswith(VERIFY)]
    assert described == [(VERIFY, "get")]
    assert next(iter(paths)) == VERIFY
    assert "Any method" in paths[VERIFY]["get"]["description"]


def test_every_operation_has_an_id_of_its_own(pg_api):
    """Generated clients name their functions by it."""
    ids = [operation.get("operationId") for operation in operations(pg_api).values()]

    assert len(set(ids)) == len(ids) > 30
    assert all(re.fullmatch("[a-z][a-z0-9_]+", str(one)) for one in ids), ids
    assert "post_v1_auth_login" in ids


def test_patterns_are_those_of_javascript(pg_api):
    """JSON Schema means ECMA-262: Python's anchors match letters there, and make right values wrong."""
    found = set(values_of(specification(pg_api), "pattern"))

    assert refused(found) == []
    assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in found)
    assert refused([r"\A[0-9]\Z", "(?P<a>x)", "(?i)x", r"\_", "x++", "^(?:a|b){1,3}$"]) == sorted(
        [r"\A[0-9]\Z", "(?P<a>x)", "(?i)x", r"\_", "x++"]
    )


@pytest.mark.parametrize(
    ("path", "name", "schema"),
    [
        ("/v1/users", "limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
        ("/v1/audit", "limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
        ("/v1/me/events", "limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
        ("/v1/revocations", "limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 500}),
        ("/v1/revocations", "wait", {"type": "number", "minimum": 0, "maximum": 15, "default": 0}),
        ("/v1/users", "cursor", {"type": "string", "format": "uuid"}),
    ],
)
def test_parameters_have_their_own_types(pg_api, path, name, schema):
    """A number is described as a number, with its bounds."""
    parameters = specification(pg_api)["paths"][path]["get"]["parameters"]

    [found] = [parameter["schema"] for parameter in parameters if parameter["name"] == name]
    assert found == schema


@pytest.mark.parametrize("method", ["put", "patch"])
def test_a_condition_is_described(pg_api, method):
    """``If-Match`` is how a client avoids to overwrite what it has not read; the answer has the next tag."""
    operation = specification(pg_api)["paths"]["/v1/me/preferences"][method]

    assert [(one["in"], one["name"]) for one in operation["parameters"]] == [("header", "If-Match")]
    assert "ETag" in operation["responses"]["200"]["headers"]


def test_answers_say_what_is_always_there(pg_api):
    """Every member is required but those that some answers lack: a typed client need not ask for each."""
    found = specification(pg_api)
    sometimes = {
        "ProblemView": {"errors", "challenge", "expires_in", "methods"},
        "IntrospectionView": {
            *("token_type", "sub", "sid", "roles", "iss", "aud", "iat", "exp", "jti"),
            *("acr", "amr", "auth_time", "client_id", "scope"),
        },
        "MetadataView": {"token_endpoint", "token_endpoint_auth_methods_supported"},
        "FeedItem": {"session_id", "user_id", "epoch", "token_id"},
        "ItemResult": {"user", "error"},
        "ItemError": {"errors"},
        "ReadyView": {"impaired"},
        "OwnDataView": {"mails", "factors"},
    }
    for name in answered(found):
        schema = found["components"]["schemas"][name]
        missing = set(schema.get("properties", ())) - set(schema.get("required", ()))
        assert missing <= sometimes.get(name, set()), name
    assert {"UserView", "TokenPairView", "FeedItem", "EventView", "OAuthErrorView"} <= answered(found)


def test_every_answer_is_described_by_its_members(pg_api):
    """No bare object but what a caller has made up: a typed client could do nothing with it."""
    bare = [
        (name, status)
        for name, operation in operations(pg_api).items()
        for status, response in operation["responses"].items()
        for content in response.get("content", {}).values()
        if content["schema"].keys() <= {"type", "additionalProperties"}
    ]

    assert bare == []


@pytest.mark.parametrize(
    ("issuer", "url"), [("https://auth.example.com", "/"), ("https://example.com/auth/", "/auth")]
)
def test_the_server_is_where_the_issuer_says(make_api, issuer, url):
    """Below the path that the service is published at."""
    api = make_api(JWT_ISSUER=issuer)

    assert specification(api)["servers"] == [{"url": url}]


def test_the_root_leads_a_person_to_the_page(pg_api):
    """By a relative address, which holds below any path."""
    answer = pg_api.call("GET", "/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "docs")


def test_the_root_names_what_is_there_where_there_is_no_page(make_api):
    """Relative addresses that answer."""
    api = make_api(API_DOCS="off")

    answer = api.call("GET", "/")

    links = answer.get_json()["links"]
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert set(links) == {"health", "keys", "metadata"}
    for link in links.values():
        assert not link.startswith("/")
        assert api.call("GET", f"/{link}").status_code == 200


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
        "challenge", "expires_in", "methods",
    }  # fmt: skip


def test_the_server_holds_back_every_route_on_which_anybody_has_passwords_hashed(make_api):
    """Those that answer 503 `busy` without a token: in a storm they must leave threads to other requests."""
    described = specification(make_api(**MAIL, REGISTRATION="quiet", **PASSKEYS))["paths"]

    hashing = {
        path
        for path, methods in described.items()
        for operation in methods.values()
        if isinstance(operation, dict)
        and operation.get("security") != [{"bearer": []}]
        and "`busy`" in operation.get("responses", {}).get("503", {}).get("description", "")
    }

    assert hashing == set(HASHING_PATHS)


def test_nothing_secret_or_internal_is_described(pg_api):
    """No field of a stored user that is not theirs to see."""
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
        assert not address.startswith("/")
        assert pg_api.call("GET", f"/{address}").status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "'unsafe-eval'" not in policy
    start = pg_api.call("GET", "/docs/assets/init.js").text
    assert 'url: "./openapi.json"' in start
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

    As a caller who lives as long as the requests let them, with the headers of a *client*, or as nobody.
    """
    caller = make_caller() if make_caller else None

    @given(case=operation.as_strategy())
    @FEW
    def each_conforms(case: schemathesis.Case[Any]) -> None:
        headers = {"Authorization": f"Bearer {caller.access}"} if caller else client
        answer = case.call_and_validate(checks=CHECKS, headers=headers)
        if caller and make_caller and answer.status_code == 204:
            # What worked may have been the caller's last request, and nothing but 401 would come after it.
            caller.pair = make_caller().pair

    each_conforms()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["nobody", "user", "admin"])
def test_whoever_asks_for_whatever_gets_what_is_described(started, role):
    """No 5xx, and status, type and body as the description has them."""
    make_caller = {"nobody": None, "user": started.someone, "admin": started.an_admin}[role]
    described = schemathesis.openapi.from_wsgi("/openapi.json", started.application.flask)

    for found in described.get_all_operations():
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


@pytest.mark.slow
@pytest.mark.parametrize("role", ["nobody", "user", "admin"])
def test_whoever_asks_for_whatever_of_mails_gets_what_is_described(make_api, role):
    """The same for the routes that mails make possible."""
    api = make_api(**MAIL, REGISTRATION="quiet", RATE_LIMIT_MAIL_IP="off", RATE_LIMIT_CODE_IP="off")
    make_caller = {"nobody": None, "user": partial(member, api), "admin": partial(member, api, "admin")}[role]
    described = schemathesis.openapi.from_wsgi("/openapi.json", api.application.flask)
    wanted = {route.split(" ")[1].replace("<", "{").replace(">", "}") for route in BY_MAIL | QUIET}
    found = [
        one.ok() for one in described.get_all_operations() if isinstance(one, Ok) and one.ok().path in wanted
    ]

    assert list(OpenAPIV31SpecValidator(specification(api)).iter_errors()) == []
    assert len(found) >= len(wanted)
    for operation in found:
        assert_conforms(operation, make_caller)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["admin", "client"])
def test_whoever_asks_for_whatever_of_machines_gets_what_is_described(make_api, role):
    """The same for the routes of services that get tokens of their own, and of their clients."""
    api = make_api(MACHINES="on", RATE_LIMIT_TOKEN_CLIENT="off")
    make_caller = api.an_admin if role == "admin" else None
    client = Gateway.of(api).headers if role == "client" else None
    described = schemathesis.openapi.from_wsgi("/openapi.json", api.application.flask)
    wanted = {route.split(" ")[1].replace("<", "{").replace(">", "}") for route in OF_MACHINES}
    found = [
        one.ok() for one in described.get_all_operations() if isinstance(one, Ok) and one.ok().path in wanted
    ]

    assert list(OpenAPIV31SpecValidator(specification(api)).iter_errors()) == []
    assert len(found) == len(OF_MACHINES)
    for operation in found:
        assert_conforms(operation, make_caller, client=client)


def member(api: Api, *roles: str) -> Person:
    """Somebody whom an operator made: registration itself is quiet."""
    form = Registration(email=new_email(), password=PASSWORD, profile=Profile())
    user = api.services.authentication.register(form, by_operator=True)
    if roles:
        api.services.users.set_roles(user.email, roles)
    return Person(api=api, id=user.id, email=user.email).log_in()
