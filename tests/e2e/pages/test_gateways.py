"""Forward-auth: with nginx itself, by the configuration of the docs, and as Traefik and Envoy ask for it."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest
import requests

from authsvc.api.frame.errors import DETAILS
from tests import ROOT
from tests.api.second_factors import FACTORS, App
from tests.e2e.estate import create_root
from tests.e2e.pages.gateways import Asking, Gateway, Server, auth_headers, nginx_before
from tests.processes import HOST
from tests.rig import HOPELESS_S, Service
from tests.servers.nginx import Nginx, nginx_block
from tests.servers.proxy import Mode, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

pytestmark = pytest.mark.e2e

VERIFY = "/v1/auth/verify"
USERS, ADMINS, PUBLIC = "/orders/7", "/orders/admin/7", "/about"
#: The page asks for a second factor here.
PAYMENTS = "/orders/payments/7"
#: Here it lets in services, and services and admins.
FEED, STOCK = "/orders/feed/7", "/orders/stock/7"
#: What a client may claim about itself, also in spellings that many servers take for the same name.
LIES = {
    "X-Auth-User-Id": "evil",
    "X-Auth-Session-Id": "evil",
    "X-Auth-Roles": "admin",
    "x-auth-roles": "user,admin",
    "X-Auth-Client-Id": "evil",
    "X-Auth-Scopes": "orders:read",
    "X_Auth_User_Id": "evil",
    "X.Auth.Roles": "admin",
}


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """A service with two workers, second factors and machines, a user and an admin."""
    made: Service = make_service(MACHINES="on", **FACTORS)
    create_root(made.env, made.log.parent)
    assert made.register("ada@example.com").status_code == 201
    return made


@pytest.fixture(scope="module")
def gateway(_nginx_is_here, service) -> Iterator[Gateway]:
    """nginx with the page's configuration; nothing but addresses and ports differ."""
    user, admin = service.log_in("ada@example.com"), service.log_in("root@example.com")
    with ExitStack() as stack:
        orders = stack.enter_context(Server())
        proxy = stack.enter_context(TcpProxy(service.url))
        nginx = stack.enter_context(nginx_before(proxy.port, orders))
        yield Gateway(nginx, proxy, orders, user, admin)


@pytest.fixture(scope="module")
def machine(gateway, service) -> tuple[str, str, str]:
    """A client's id, its token with the scope that the page asks for, and one without."""
    made = service.call(
        "POST",
        "/v1/clients",
        token=gateway.admin["access_token"],
        json={"name": "billing", "scopes": ["orders:read", "orders:list"]},
    ).json()
    tokens = [
        service.call(
            "POST",
            "/v1/oauth2/token",
            data={"grant_type": "client_credentials", "scope": scope},
            auth=(made["client_id"], made["client_secret"]),
        ).json()["access_token"]
        for scope in ("orders:read", "orders:list")
    ]
    return (made["client_id"], *tokens)


def test_nginx_has_nothing_to_say_against_the_page(gateway):
    """``nginx -t``: no error, and no warning."""
    assert gateway.nginx.complaints() == ""


def test_who_is_asking_reaches_the_service_behind(gateway, service):
    """User, session and roles are those of the token; the request id joins the two logs."""
    me = service.call("GET", "/v1/me", token=gateway.user["access_token"]).json()

    seen = gateway.seen(USERS, gateway.user["access_token"])

    assert auth_headers(seen) == {
        "x-auth-user-id": me["id"],
        "x-auth-session-id": gateway.user["session_id"],
        "x-auth-roles": "user",
    }
    assert seen["headers"]["x-request-id"]


def test_what_a_client_says_of_himself_reaches_nobody(gateway):
    """Replaced where a check ran, gone where none did; a public page stays public."""
    checked = gateway.seen(USERS, gateway.user["access_token"], headers=LIES)
    public = gateway.seen(PUBLIC, headers=LIES)
    admins = gateway.seen(ADMINS, gateway.admin["access_token"], headers=LIES)

    assert "evil" not in auth_headers(checked).values()
    assert auth_headers(checked)["x-auth-roles"] == "user"
    assert auth_headers(public) == {}
    assert auth_headers(admins)["x-auth-roles"] == "user,admin"
    assert auth_headers(admins).keys() == auth_headers(checked).keys()


def test_without_a_good_token_nobody_gets_through(gateway):
    """401, and the challenge is authsvc's own."""
    none = gateway.refused(USERS, None, headers=LIES)
    bad = gateway.refused(USERS, "x")

    assert (none.status_code, none.headers["WWW-Authenticate"]) == (401, 'Bearer realm="authsvc"')
    assert bad.status_code == 401
    assert bad.headers["WWW-Authenticate"] == 'Bearer realm="authsvc", error="invalid_token"'
    assert gateway.refused("/_authsvc/user", gateway.user["access_token"]).status_code == 404


@pytest.mark.parametrize(
    ("who", "path", "query", "status"),
    [
        ("nobody", ADMINS, "?role=admin", 401),
        ("forged", ADMINS, "?role=admin", 401),
        ("user", ADMINS, "?role=admin", 403),
        ("nobody", PAYMENTS, "?acr=aal2&max_age=300", 401),
        ("forged", PAYMENTS, "?acr=aal2&max_age=300", 401),
        ("user", PAYMENTS, "?acr=aal2&max_age=300", 401),
        ("user", FEED, "-machine?scope=orders:read", 403),
        ("machine", FEED, "-machine?scope=orders:read", 403),
        ("machine", STOCK, "-any?role=admin&scope=orders:read", 403),
    ],
)
def test_a_refusal_reads_as_authsvc_wrote_it(gateway, service, machine, who, path, query, status):
    """Its challenge once, its problem document, its media type: a client need not know who refused it."""
    tokens = {"forged": "x", "user": gateway.user["access_token"], "machine": machine[2]}

    direct = service.call("GET", VERIFY + query, token=tokens.get(who))
    through = gateway.refused(path, tokens.get(who))

    kept = ("Content-Type", "WWW-Authenticate", "Cache-Control")
    assert through.status_code == direct.status_code == status
    assert [through.headers.get(name) for name in kept] == [direct.headers.get(name) for name in kept]
    assert through.json() == direct.json() | {"request_id": through.headers["X-Request-Id"]}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_service_behind_is_its_own(gateway, status):
    """Its 401 or 403 is passed on as it is, body and challenge."""
    orders = Server(status, {"WWW-Authenticate": "Basic"})
    with orders, nginx_before(gateway.proxy.port, orders) as nginx:
        headers = {"Authorization": f"Bearer {gateway.user['access_token']}"}
        answer = requests.get(nginx.url + USERS, headers=headers, timeout=HOPELESS_S)

    assert (answer.status_code, answer.text) == (status, "ok")
    assert answer.headers["WWW-Authenticate"] == "Basic"


def test_a_role_is_asked_for_by_the_location(gateway):
    """403 for who lacks it; nothing in the client's query asks for more or for less."""
    user, admin = gateway.user["access_token"], gateway.admin["access_token"]

    assert gateway.refused(ADMINS, user).status_code == 403
    assert gateway.refused(f"{ADMINS}?role=user", user).status_code == 403
    assert gateway.refused(f"{ADMINS}?role=admin", None).status_code == 401
    assert gateway.ask(f"{USERS}?role=manager", user).status_code == 200
    assert gateway.ask(f"{ADMINS}?role=manager", admin).status_code == 200


def test_one_path_asks_for_a_second_factor(gateway, service):
    """A step-up brings the token that opens it; the session's other requests go on as before."""
    assert service.register("grace@example.com").status_code == 201
    grace = service.log_in("grace@example.com")["access_token"]
    before = gateway.refused(f"{PAYMENTS}?acr=aal1", grace)
    enrolment = service.call("POST", "/v1/me/factors/totp", token=grace, json={}).json()
    app = App(enrolment["secret"], lambda: datetime.now(UTC))
    path = f"/v1/me/factors/totp/{enrolment['id']}/confirm"
    assert service.call("POST", path, token=grace, json={"code": app.code()}).status_code == 200

    stepped = service.call("POST", "/v1/auth/step-up", token=grace, json={"code": app.code(1)}).json()

    assert before.json()["code"] == "step_up_required"
    assert before.headers["WWW-Authenticate"] == (
        'Bearer error="insufficient_user_authentication", max_age="300", acr_values="aal2"'
    )
    assert auth_headers(gateway.seen(PAYMENTS, stepped["access_token"]))["x-auth-roles"] == "user"
    assert gateway.refused(PAYMENTS, grace).status_code == 401
    assert gateway.ask(USERS, grace).status_code == 200


def test_services_pass_where_the_page_lets_them_in(gateway, machine):
    """With headers of their own, whatever they say of themselves; 403 with another scope, and elsewhere."""
    client_id, token, other = machine

    for path in (FEED, STOCK):
        seen = auth_headers(gateway.seen(path, token, headers=LIES))
        assert seen == {"x-auth-client-id": client_id, "x-auth-scopes": "orders:read"}
        refused = gateway.refused(path, other)
        assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    for path in (USERS, ADMINS):
        refused = gateway.refused(path, token)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


def test_people_pass_where_both_are_let_in(gateway):
    """An admin by their role; not where services alone are meant."""
    user, admin = gateway.user["access_token"], gateway.admin["access_token"]

    assert auth_headers(gateway.seen(STOCK, admin, headers=LIES))["x-auth-roles"] == "user,admin"
    assert "evil" not in auth_headers(gateway.seen(STOCK, admin, headers=LIES)).values()
    assert [gateway.refused(STOCK, user).status_code, gateway.refused(FEED, admin).status_code] == [403, 403]
    assert gateway.refused(FEED, None).status_code == 401


@pytest.mark.parametrize("path", [USERS, ADMINS, PAYMENTS, FEED, STOCK])
def test_a_preflight_reaches_the_service_behind_and_nothing_else_does(gateway, path):
    """A browser sends it without a token; whatever is not quite one is checked like any request."""
    asked = {"Access-Control-Request-Method": "PUT", "Origin": "https://app.example.com"}

    seen = gateway.seen(path, None, method="OPTIONS", headers=asked | LIES)

    assert seen["line"].startswith("OPTIONS ")
    assert seen["headers"]["access-control-request-method"] == "PUT"
    assert auth_headers(seen) == {}
    assert gateway.refused(path, None, method="OPTIONS", headers=LIES).status_code == 401
    assert gateway.refused(path, None, method="GET", headers=asked).status_code == 401
    assert gateway.refused(path, None, method="POST", headers=asked).status_code == 401


@pytest.mark.usefixtures("_nginx_is_here")
def test_authsvc_is_served_below_a_path(service):
    """By the block of the page: root, page, its files and a request; no address leads out of the path."""
    block = nginx_block(ROOT / "docs" / "proxies.md")
    server = f"server {{ listen 80;\n{block}\n}}"
    with Nginx(server, {"authsvc:8080": f"{HOST}:{service.port}"}) as nginx:
        page = requests.get(f"{nginx.url}/auth/", timeout=HOPELESS_S)
        files = [urljoin(page.url, name) for name in re.findall(r'(?:src|href)="([^"]+)"', page.text)]
        start = urljoin(page.url, "docs/assets/init.js")
        answers = [requests.get(url, timeout=HOPELESS_S) for url in (*files, start)]
        alive = requests.get(f"{nginx.url}/auth/v1/health/live", timeout=HOPELESS_S)

    assert (page.status_code, page.url) == (200, f"{nginx.url}/auth/docs")
    assert len(files) >= 4
    assert all(url.startswith(f"{nginx.url}/auth/") for url in files)
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert alive.json() == {"status": "ok"}


def test_a_revoked_token_is_refused_on_the_next_request(gateway, service):
    """Nothing of the yes before is kept, over the same connection and whoever of the workers is asked."""
    pair = service.log_in("ada@example.com")
    gateway.seen(USERS, pair["access_token"])

    ended = service.call("POST", "/v1/auth/logout", token=pair["access_token"])

    assert ended.status_code == 204
    assert {gateway.refused(USERS, pair["access_token"]).status_code for _ in range(10)} == {401}


def test_checks_share_a_kept_connection(gateway):
    """One request after the other: nginx connects once."""
    ends = []

    for _ in range(10):
        gateway.ask(USERS, gateway.user["access_token"])
        ends.append(gateway.nginx.connections_to(gateway.proxy.port))

    assert ends == [ends[0]] * 10
    assert len(ends[0]) == 1


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET])
def test_nobody_gets_through_while_authsvc_is_away(gateway, mode):
    """503 with a time to come back, and full service when authsvc is back."""
    gateway.proxy.switch(mode)
    try:
        away = gateway.refused(USERS, gateway.user["access_token"])
        public = gateway.ask(PUBLIC)
    finally:
        gateway.proxy.switch(Mode.PASS)

    assert (away.status_code, away.headers["Retry-After"]) == (503, "2")
    assert away.headers["Content-Type"] == "application/problem+json"
    assert away.json() == {
        "type": "urn:authsvc:problem:unavailable",
        "title": "Service Unavailable",
        "status": 503,
        "detail": DETAILS["unavailable"],
        "code": "unavailable",
        "request_id": away.headers["X-Request-Id"],
    }
    assert public.status_code == 200
    assert gateway.ask(USERS, gateway.user["access_token"]).status_code == 200


def test_the_check_gets_the_token_and_no_body(gateway):
    """A GET with the token alone, whatever the client sent; the service behind gets the whole body."""
    with Server(headers={"X-Auth-User-Id": "u"}) as check, nginx_before(check.port, gateway.orders) as nginx:
        options: dict[str, Any] = {"data": b"x" * 200_000, "headers": {"Cookie": "a=b", "X-Odd": "1"} | LIES}
        answer = requests.post(f"{nginx.url}{USERS}?role=x", auth=("a", "b"), timeout=HOPELESS_S, **options)
        [asked], seen = check.asked, gateway.orders.asked[-1]

    assert answer.status_code == 200
    assert (asked["line"], asked["body_bytes"]) == (f"GET {VERIFY} HTTP/1.1", 0)
    assert asked["headers"].keys() == {"host", "authorization", "x-request-id"}
    assert (seen["body_bytes"], seen["line"]) == (200_000, f"POST {USERS}?role=x HTTP/1.0")
    assert auth_headers(seen) == {"x-auth-user-id": "u"}


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
def test_no_other_answer_lets_anybody_through(gateway, status):
    """Whatever the check answers but 2xx: 503, with its own ``Retry-After`` where it has one."""
    headers = {"Retry-After": "7", "Location": "http://evil.example", "X-Auth-User-Id": "evil"}
    with Server(status, headers) as check, nginx_before(check.port, gateway.orders) as nginx:
        before = len(gateway.orders.asked)
        answer = requests.get(nginx.url + USERS, timeout=HOPELESS_S, allow_redirects=False)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
    assert len(gateway.orders.asked) == before


def test_a_fault_of_the_service_behind_is_its_own(gateway):
    """Its 500 stays what it is."""
    with Server(500) as broken, nginx_before(gateway.proxy.port, broken) as nginx:
        headers = {"Authorization": f"Bearer {gateway.user['access_token']}"}
        answer = requests.get(nginx.url + USERS, headers=headers, timeout=HOPELESS_S)

    assert (answer.status_code, answer.text) == (500, "ok")


#: What Traefik adds to the client's headers, and leaves of a request with a body: everything but the body.
TRAEFIK = {
    "Content-Type": "application/json",
    "Accept-Encoding": "gzip",
    "Cookie": "a=b",
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "orders.example.com",
    "X-Forwarded-Method": "POST",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Uri": "/orders/7?role=admin",
    "X-Real-Ip": "203.0.113.7",
} | {name: value for name, value in LIES.items() if not {"_", "."} & set(name)}

#: What a client may put behind Envoy's prefix.
ORIGINAL_PATHS = [
    b"/",
    b"//",
    b"//orders//7/",
    b"/orders/7?x=1&y=2",
    b"/a/../../me",
    b"/./.",
    b"/%2e%2e/%2F%00%zz%",
    b"/..;/admin;v=1/b;c",
    b"/v1/auth/login",
    b"/openapi.json",
    b"/'()*,:@!$+[]{}|^`\"<>\\",
    b"/?url=http://evil.example/&rolex=1&Role=1",
    b"/?a?b?c",
    b"/" + b"x" * 3_900,
]
#: What no URI may hold (RFC 9112 §3.2).
BROKEN_PATHS = ["/caf\xe9".encode(), b"/\xff\xfe\x80", b"/?\xff=\xfe", b"/\x00", b"/\x7f"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH"]


@pytest.fixture(scope="module")
def tokens(service) -> dict[str, dict[str, Any]]:
    """The pairs of a user and an admin."""
    return {name: service.log_in(f"{name}@example.com") for name in ("ada", "root")}


@pytest.fixture
def envoy(service) -> Iterator[Any]:
    """Ask as Envoy does: the original method, path and query behind the prefix."""
    with Asking(service.port) as connection:

        def ask(method: str, path: bytes, token: str | None) -> HTTPResponse:
            headers = {"Content-Length": "0", "X-Envoy-Internal": "true", "X-Forwarded-For": "203.0.113.7"}
            return connection.ask(method, VERIFY.encode() + path, headers, token)

        yield ask


def check_granted(answer: HTTPResponse, pair: dict[str, Any]) -> None:
    """200 to the letter: Envoy takes no other for a yes."""
    assert (answer.status, answer.headers["Content-Length"]) == (200, "0")
    assert answer.headers["X-Auth-Session-Id"] == pair["session_id"]
    assert answer.headers["X-Auth-User-Id"]
    assert answer.headers["Cache-Control"] == "no-store"


def check_refused(answer: HTTPResponse, status: int) -> None:
    """A refusal that a gateway may hand on: no name of anybody, nowhere to go."""
    assert answer.status == status
    assert [name for name in answer.headers if name.lower().startswith(("x-auth", "location"))] == []
    assert (answer.headers["WWW-Authenticate"] or "").startswith("Bearer " if status == 401 else "")


def test_traefik_gets_its_answer(service, tokens):
    """Its own headers, the client's and what is left of a body's change nothing."""
    user, admin = tokens["ada"], tokens["root"]
    with Asking(service.port) as traefik:
        for path in (VERIFY, f"{VERIFY}?role=user"):
            check_granted(traefik.ask("GET", path.encode(), TRAEFIK, user["access_token"]), user)
        of_admins = f"{VERIFY}?role=admin".encode()
        check_granted(traefik.ask("GET", of_admins, TRAEFIK, admin["access_token"]), admin)
        check_refused(traefik.ask("GET", of_admins, TRAEFIK, user["access_token"]), 403)
        check_refused(traefik.ask("GET", VERIFY.encode(), TRAEFIK, None), 401)


@pytest.mark.parametrize("path", [VERIFY, f"{VERIFY}?role=user", f"{VERIFY}/orders/7"])
def test_a_length_that_no_body_follows_is_answered_after_the_head(service, tokens, path):
    """A gateway copied the headers of a POST and not its body: yes, and an end of the connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tokens['ada']['access_token']}\r\n"

    with socket.create_connection((HOST, service.port), timeout=HOPELESS_S) as connection:
        connection.sendall(f"{head}Content-Length: 1234\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("method", METHODS)
def test_envoy_gets_its_answer_whatever_the_path(envoy, tokens, method):
    """200 for a good token, 401 for none: no path is a redirect, a 404 or a 405, no method is unknown."""
    for path in ORIGINAL_PATHS:
        check_granted(envoy(method, path, tokens["ada"]["access_token"]), tokens["ada"])
        check_refused(envoy(method, path, None), 401)


@pytest.mark.parametrize("query", [b"role=user", b"role=", b"role=admin", b"x&role=manager&role=user"])
def test_a_role_in_the_original_query_can_only_ask_for_more(envoy, tokens, query):
    """It lets nobody in: not without a token, not past a role that the prefix asks for."""
    user, admin = tokens["ada"]["access_token"], tokens["root"]["access_token"]
    behind = b"?role=admin&path=/orders?" + query

    check_refused(envoy("GET", b"/orders?" + query, None), 401)
    check_refused(envoy("GET", behind, user), 403)
    check_refused(envoy("GET", behind, "x"), 401)
    assert envoy("GET", b"?role=admin&path=/orders/7", admin).status == 200
    assert envoy("GET", b"?role=admin&path=/orders?role=manager", admin).status == 200
    assert envoy("GET", b"/orders?role=manager", admin).status == 403


def test_what_http_forbids_is_a_denial(service, tokens):
    """A path that is too long or holds raw bytes: 414, 400, and nothing of a yes."""
    for path, status in [*((path, 400) for path in BROKEN_PATHS), (b"/" + b"x" * 5_000, 414)]:
        with Asking(service.port) as connection:
            answer = connection.ask("GET", VERIFY.encode() + path, {}, tokens["ada"]["access_token"])

        check_refused(answer, status)
