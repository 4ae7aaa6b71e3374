"""Pages on other origins (Fetch standard, CORS): those that are named may call, all others may not."""

from __future__ import annotations

from itertools import product

import pytest

from authsvc.domain.errors import StoreUnavailable
from tests.api.driver import Api, MakeApi, new_email
from tests.rig import PASSWORD

PAGE, OTHER = "https://app.example.com", "http://localhost:3000"
STRANGERS = [
    "https://evil.example",
    "https://app.example.com.evil.example",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://APP.example.com",
    "null",
    "*",
    "",
    f"{PAGE}, {OTHER}",
]
ALLOWED = {"authorization", "content-type", "if-match", "x-device-token", "x-request-id"}
EXPOSED = {"etag", "retry-after", "ratelimit", "ratelimit-policy", "x-request-id", "www-authenticate"}
WELL_KNOWN = ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server"]


@pytest.fixture(scope="module")
def api(make_module_api: MakeApi) -> Api:
    """Share one application that two origins may call."""
    return make_module_api(CORS_ORIGINS=f"{PAGE},{OTHER}", RATE_LIMIT_LOGIN_IP="2/hour")


def listed(answer, name: str) -> set[str]:
    """The items of a header, in lower case."""
    return {item.strip().lower() for item in answer.headers.get(name, "").split(",") if item.strip()}


def cors_headers(answer) -> set[str]:
    """Which headers of CORS *answer* has."""
    return {name for name, _ in answer.headers if name.lower().startswith("access-control-")}


def preflight(api: Api, path: str, origin: str = PAGE, method: str = "PATCH"):
    """What a browser asks before a request that is not a simple one."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }
    return api.call("OPTIONS", path, headers=asked)


@pytest.mark.parametrize(("path", "origin"), [*product(["/v1/me", "/v1/auth/login", "/none"], [PAGE, OTHER])])
def test_a_preflight_is_answered(api, path, origin):
    """204 without a body, a token or a limit: what this very origin may send, and never with cookies."""
    answer = preflight(api, path, origin)

    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert listed(answer, "Access-Control-Allow-Methods") == {
        *("get", "head", "post", "put", "patch", "delete"),
    }
    assert listed(answer, "Access-Control-Allow-Headers") == ALLOWED
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "origin" in listed(answer, "Vary")
    assert answer.headers["X-Request-Id"]


def test_every_answer_can_be_read_errors_too(api):
    """401, 404, 405, 415, 422 and 429 with their headers; without them a page sees nothing but a failure."""
    person = api.someone()
    origin = {"Origin": PAGE}
    log_in = {"email": new_email(), "password": PASSWORD}
    answers = [
        person.call("GET", "/v1/me", headers=origin),
        api.call("GET", "/v1/me", headers=origin),
        api.call("GET", "/v1/nothing", headers=origin),
        api.call("TRACE", "/v1/me", headers=origin),
        api.call("POST", "/v1/auth/register", data=b"x", headers=origin),
        api.post("/v1/auth/register", {}, headers=origin),
        *(api.post("/v1/auth/login", log_in, headers=origin, ip="192.0.2.99") for _ in range(3)),
    ]

    assert [answer.status_code for answer in answers] == [200, 401, 404, 405, 415, 422, 401, 401, 429]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert listed(answer, "Access-Control-Expose-Headers") >= EXPOSED
        assert "origin" in listed(answer, "Vary")
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_an_outage_can_be_read_too(api, monkeypatch):
    """503 with Retry-After, for a page that shall try again."""
    monkeypatch.setattr(type(api.services.checks), "check", unavailable)

    answer = api.call("GET", "/v1/me/sessions", token="x", headers={"Origin": PAGE})

    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (503, PAGE)
    assert "retry-after" in listed(answer, "Access-Control-Expose-Headers")


def unavailable(*_: object):
    """Answer as with both stores away."""
    raise StoreUnavailable("sql")


@pytest.mark.parametrize("origin", STRANGERS)
def test_another_origin_is_told_nothing(api, origin):
    """Compared letter by letter; the answer still says that it depends on the origin."""
    asked, got = preflight(api, "/v1/me", origin), api.call("GET", "/v1/me", headers={"Origin": origin})

    assert (asked.status_code, got.status_code) == (405, 401)
    for answer in (asked, got):
        assert cors_headers(answer) == set()
        assert "origin" in listed(answer, "Vary")


def test_who_is_no_page_sees_no_headers_of_cors(api):
    """Without an Origin, and for OPTIONS that is no preflight."""
    assert cors_headers(api.call("GET", "/v1/me")) == set()
    assert api.call("OPTIONS", "/v1/me", headers={"Origin": PAGE}).status_code == 405


@pytest.mark.parametrize(
    "path", ["/v1/auth/verify", "/v1/auth/verify/orders/7", "/v1/auth/verify?role=admin"]
)
def test_a_check_is_never_a_preflight(api, path):
    """A gateway that asks with the original method and headers would take a 204 for a yes."""
    answer = preflight(api, path)

    assert answer.status_code == 401
    assert cors_headers(answer) == set()


def test_nobody_may_call_by_default(pg_api):
    """No header, and no Vary that would split a cache for nothing."""
    asked, got = preflight(pg_api, "/v1/me"), pg_api.call("GET", "/v1/me", headers={"Origin": PAGE})

    assert (asked.status_code, got.status_code) == (405, 401)
    assert cors_headers(asked) | cors_headers(got) == set()
    assert "Vary" not in got.headers


@pytest.mark.parametrize("path", WELL_KNOWN)
def test_what_is_well_known_may_be_read_by_anybody(api, pg_api, path):
    """Keys and metadata are public: the same answer for every origin, with or without a setting."""
    for one, headers in product((api, pg_api), ({}, {"Origin": "https://anybody.example"}, {"Origin": PAGE})):
        answer = one.call("GET", path, headers=headers)

        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Vary" not in answer.headers
        assert "public" in answer.headers["Cache-Control"]
    asked = preflight(pg_api, path, "https://anybody.example", "GET")
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, "*")


def test_the_metrics_port_is_for_no_page(api):
    """Nothing of it is read across origins."""
    port = {"SERVER_PORT": str(api.services.http.metrics_port)}

    answer = api.call("GET", "/metrics", headers={"Origin": PAGE}, environ=port)

    assert answer.status_code == 200
    assert cors_headers(answer) == set()
