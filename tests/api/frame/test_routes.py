"""Every route on one page, with who may call it."""

from __future__ import annotations

import pytest

from authsvc.domain.values.emails import Email
from tests.api.driver import Api, code_of
from tests.api.gateway import basic
from tests.api.mailing import MAIL
from tests.api.passkeys import PASSKEYS
from tests.api.second_factors import FACTORS, UNLIMITED, guarded, verified

PUBLIC, USER, ADMIN, CLIENT = "public", "user", "admin", "client"

ROUTES = {
    "POST /v1/auth/register": PUBLIC,
    "POST /v1/auth/login": PUBLIC,
    "POST /v1/auth/refresh": PUBLIC,
    # By the access token, or by the refresh token in its body.
    "POST /v1/auth/logout": PUBLIC,
    "GET /v1/me": USER,
    "PATCH /v1/me": USER,
    "DELETE /v1/me": USER,
    "POST /v1/me/password": USER,
    "GET /v1/me/preferences": USER,
    "PUT /v1/me/preferences": USER,
    "PATCH /v1/me/preferences": USER,
    "GET /v1/me/sessions": USER,
    "DELETE /v1/me/sessions": USER,
    "DELETE /v1/me/sessions/<session_id>": USER,
    "GET /v1/me/events": USER,
    "GET /v1/me/export": USER,
    "GET /v1/audit": ADMIN,
    "GET /v1/users": ADMIN,
    "GET /v1/users/<user_id>": ADMIN,
    "PATCH /v1/users/<user_id>": ADMIN,
    "DELETE /v1/users/<user_id>": ADMIN,
    "DELETE /v1/users/<user_id>/sessions": ADMIN,
    "POST /v1/batch/users/create": ADMIN,
    "GET /v1/batch/users/lookup": ADMIN,
    "PATCH /v1/batch/users/last-login": ADMIN,
    "GET /v1/cache/stats": ADMIN,
    "GET /v1/cache/metrics": ADMIN,
    "POST /v1/cache/warm": ADMIN,
    "POST /v1/cache/clear": ADMIN,
    "GET /v1/revocations": CLIENT,
    "POST /v1/oauth2/introspect": CLIENT,
    "POST /v1/oauth2/revoke": CLIENT,
    "GET /.well-known/oauth-authorization-server": PUBLIC,
    "GET /.well-known/oauth-authorization-server/<path:issuer_path>": PUBLIC,
    "GET /.well-known/jwks.json": PUBLIC,
    "GET /v1/health": PUBLIC,
    "GET /health": PUBLIC,
    "GET /v1/health/live": PUBLIC,
    "GET /v1/health/ready": PUBLIC,
    "GET /v1/health/startup": PUBLIC,
    "GET /v1/health/detailed": ADMIN,
    "GET /": PUBLIC,
    "GET /openapi.json": PUBLIC,
    "GET /docs": PUBLIC,
    "GET /docs/assets/<name>": PUBLIC,
}
#: The routes that mails make possible; registration is one of them where it is quiet.
BY_MAIL = {
    "POST /v1/auth/email/resend": PUBLIC,
    # By a session, or by address and password in its body.
    "POST /v1/auth/email/verify": PUBLIC,
    "POST /v1/auth/password/forgot": PUBLIC,
    "POST /v1/auth/password/reset": PUBLIC,
    "POST /v1/me/email": USER,
    "POST /v1/me/email/confirm": USER,
    "POST /v1/users": ADMIN,
    "POST /v1/users/<user_id>/password-reset": ADMIN,
}
#: The routes of second factors.
OF_FACTORS = {
    "POST /v1/auth/login/second": PUBLIC,
    "POST /v1/auth/step-up": USER,
    "GET /v1/me/factors": USER,
    "PATCH /v1/me/factors/<factor_id>": USER,
    "DELETE /v1/me/factors/<factor_id>": USER,
    "POST /v1/me/factors/totp": USER,
    "POST /v1/me/factors/totp/<factor_id>/confirm": USER,
    "POST /v1/me/recovery-codes": USER,
    "DELETE /v1/users/<user_id>/factors": ADMIN,
}
#: Those of passkeys.
OF_PASSKEYS = {
    "POST /v1/me/passkeys": USER,
    "POST /v1/me/passkeys/options": USER,
    "POST /v1/auth/passkey": PUBLIC,
    "POST /v1/auth/passkey/options": PUBLIC,
    # By the challenge in its body.
    "POST /v1/auth/login/second/options": PUBLIC,
    "POST /v1/auth/step-up/options": USER,
    "GET /.well-known/webauthn": PUBLIC,
}
QUIET = {"POST /v1/auth/register/confirm": PUBLIC}
#: The routes that there are with services that get tokens of their own.
OF_MACHINES = {
    "POST /v1/oauth2/token": CLIENT,
    "GET /v1/clients": ADMIN,
    "POST /v1/clients": ADMIN,
    "GET /v1/clients/<client_id>": ADMIN,
    "PATCH /v1/clients/<client_id>": ADMIN,
    "DELETE /v1/clients/<client_id>": ADMIN,
    "POST /v1/clients/<client_id>/secrets": ADMIN,
    "DELETE /v1/clients/<client_id>/secrets/<secret_id>": ADMIN,
}
#: Public, and take the token of a person.
TAKES_TOKEN = ("POST /v1/auth/logout", "GET /v1/auth/verify")
GUARDED = [(route, role) for route, role in ROUTES.items() if role in {USER, ADMIN}]
CLIENTS = [route for route, role in ROUTES.items() if role == CLIENT]


#: Who must have authenticated recently: everybody, or those who have a second factor.
FRESH = {
    "DELETE /v1/me": "with a factor",
    "POST /v1/me/password": "with a factor",
    "POST /v1/me/email": "with a factor",
    "GET /v1/me/export": "with a factor",
    "DELETE /v1/me/factors/<factor_id>": "always",
    "POST /v1/me/factors/totp": "always",
    "POST /v1/me/factors/totp/<factor_id>/confirm": "always",
    "POST /v1/me/recovery-codes": "always",
    "POST /v1/me/passkeys": "always",
    "POST /v1/me/passkeys/options": "always",
    "DELETE /v1/users/<user_id>/factors": "always",
}


def declared(api: Api) -> dict[str, str | None]:
    """The routes of the application, each with what its view declares."""
    flask = api.application.flask
    found: dict[str, str | None] = {}
    for rule in flask.url_map.iter_rules():
        access = getattr(flask.view_functions[rule.endpoint], "__access__", None)
        for method in (rule.methods or set()) - {"HEAD"}:
            found[f"{method} {rule.rule}"] = access
    return found


def call(api: Api, route: str, **options):
    """One request to *route*, with an id where it wants one."""
    method, path = route.split(" ")
    for name in ("<user_id>", "<session_id>", "<factor_id>", "<client_id>", "<secret_id>"):
        path = path.replace(name, "7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11")
    return api.call(method, path, **options)


def test_the_table_is_complete_and_every_view_declares_what_it_says(pg_api):
    """A route without a row, or a view without a guard, is a mistake."""
    assert declared(pg_api) == ROUTES


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        (MAIL, BY_MAIL),
        (FACTORS, OF_FACTORS),
        ({**MAIL, "REGISTRATION": "quiet"}, BY_MAIL | QUIET),
        (
            {**MAIL, "REGISTRATION": "off"},
            {route: role for route, role in BY_MAIL.items() if route != "POST /v1/users"},
        ),
        (PASSKEYS, OF_FACTORS | OF_PASSKEYS),
    ],
    ids=["mail", "factors", "quiet", "off", "passkeys"],
)
def test_the_table_is_complete_with_what_settings_bring(make_api, settings, more):
    """Each setting brings its routes, guarded as the table says, and no other ones."""
    api = make_api(**settings)

    assert declared(api) == ROUTES | more
    for route in (route for route, role in more.items() if role in {USER, ADMIN}):
        answer = call(api, route, json={})
        assert (answer.status_code, code_of(answer)) == (401, "token_missing")


def test_machines_bring_their_routes_and_are_let_in_on_no_other(make_api):
    """403 on every route of users and admins, and on a public one that takes a token: they have no role."""
    api = make_api(MACHINES="on", **MAIL)
    everything = ROUTES | BY_MAIL | OF_MACHINES
    assert declared(api) == everything
    made = api.services.client_registry.create("orders", scopes=["orders:read"])
    form = {"grant_type": "client_credentials"}
    answer = api.call("POST", "/v1/oauth2/token", data=form, headers=basic(made.client.id, made.secret))
    token = answer.json["access_token"]
    assert api.call("GET", "/v1/auth/verify-machine", token=token).status_code == 200

    guarded = [route for route, role in everything.items() if role in {USER, ADMIN}]
    refused = {route: call(api, route, token=token, json={}) for route in (*guarded, *TAKES_TOKEN)}

    assert {route: (one.status_code, code_of(one)) for route, one in refused.items()} == dict.fromkeys(
        refused, (403, "forbidden")
    )
    person, admin = api.someone(), api.an_admin()
    for route in (route for route, role in OF_MACHINES.items() if role == ADMIN):
        assert code_of(call(api, route, json={})) == "token_missing"
        assert call(api, route, token=person.access, json={}).status_code == 403
        assert call(api, route, token=admin.access, json={}).status_code != 403


def test_admins_need_the_level_that_is_set_on_every_route_of_theirs(make_api):
    """401 with what is asked for, before the request is looked at; with it, whatever the route answers."""
    api = make_api(**MAIL | UNLIMITED | {"MACHINES": "on", "ADMIN_ACR": "aal2"})
    alice = guarded(api, verified(api, api.someone()))
    api.services.users.set_roles(Email(alice.email), ("admin",))
    weak, strong = api.an_admin(), alice.log_in()
    everything = ROUTES | BY_MAIL | OF_FACTORS | OF_MACHINES
    routes = [route for route, role in everything.items() if role == ADMIN]

    refused = [call(api, route, token=weak.access) for route in routes]
    let_in = [call(api, route, token=strong.access) for route in routes]

    assert len(routes) > 15
    challenge = 'Bearer error="insufficient_user_authentication", acr_values="aal2"'
    assert {(one.status_code, one.headers["WWW-Authenticate"]) for one in refused} == {(401, challenge)}
    assert {code_of(one) for one in refused} == {"step_up_required"}
    assert 401 not in {one.status_code for one in let_in}


def test_the_routes_that_ask_for_a_fresh_proof_are_these(make_api):
    """What ends, changes or shows an account; and no other ones."""
    flask = make_api(**MAIL | PASSKEYS).application.flask

    found = {
        f"{method} {rule.rule}": flask.view_functions[rule.endpoint].__fresh__
        for rule in flask.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
        if hasattr(flask.view_functions[rule.endpoint], "__fresh__")
    }

    assert found == FRESH


@pytest.mark.parametrize(("route", "role"), GUARDED)
def test_a_guarded_route_answers_nobody_without_a_token(pg_api, route, role):
    """401 before anything else: before the body is read, before an id is looked at."""
    missing = call(pg_api, route)
    bad = call(pg_api, route, token="x")
    with_body = call(pg_api, route, data=b"{" * 100_000, content_type="text/plain")

    assert (missing.status_code, code_of(missing)) == (401, "token_missing")
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="authsvc"'
    assert (bad.status_code, code_of(bad)) == (401, "token_invalid")
    assert 'error="invalid_token"' in bad.headers["WWW-Authenticate"]
    assert code_of(with_body) == "token_missing"


@pytest.mark.parametrize(("route", "role"), GUARDED)
def test_a_user_reaches_what_is_theirs_and_no_more(pg_api, route, role):
    """403 on every admin's route, whatever they send; nothing else is refused for their role."""
    person = pg_api.someone()

    answer = call(pg_api, route, token=person.access, json={})

    assert (answer.status_code == 403) == (role == ADMIN)
    if role == ADMIN:
        assert code_of(answer) == "forbidden"


@pytest.mark.parametrize(("route", "role"), GUARDED)
def test_a_dead_token_opens_nothing(pg_api, route, role):
    """An admin's token is refused after the logout."""
    admin = pg_api.an_admin()
    pg_api.log_out(access=admin.access)

    answer = call(pg_api, route, token=admin.access, json={})

    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")


@pytest.mark.parametrize("route", CLIENTS)
def test_a_client_route_takes_the_secret_of_a_client_alone(pg_api, route):
    """401 before anything else, with a challenge for Basic: for nobody, and for an admin's token."""
    admin = pg_api.an_admin()

    for options in ({}, {"token": admin.access}, {"data": b"{" * 100_000, "content_type": "text/plain"}):
        answer = call(pg_api, route, **options)

        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert "invalid_client" in answer.text


@pytest.mark.parametrize(("route", "role"), [(r, a) for r, a in GUARDED if r.startswith("GET")])
def test_a_token_is_taken_from_the_header_alone(pg_api, route, role):
    """Not from the query, a form or a cookie (RFC 6750 §5.3): addresses end up in logs."""
    admin = pg_api.an_admin()
    method, path = route.split(" ")

    answer = call(
        pg_api,
        f"{method} {path}?access_token={admin.access}&token={admin.access}",
        headers={"Cookie": f"access_token={admin.access}", "X-Authorization": f"Bearer {admin.access}"},
    )

    assert code_of(answer) == "token_missing"


#: Only logout reads a token that it does not require: the token names the session to end.
OPEN = [route for route, role in ROUTES.items() if role == PUBLIC and route != "POST /v1/auth/logout"]


@pytest.mark.parametrize("route", OPEN)
@pytest.mark.parametrize("token", [None, "x"])
def test_a_public_route_asks_for_no_token(pg_api, route, token):
    """A bad one does not matter, either."""
    answer = call(pg_api, route, token=token, json={})

    assert answer.status_code not in {401, 403}


@pytest.mark.parametrize(
    "name", ["X-User-Id", "X-Auth-User-Id", "X-Auth-Roles", "X-Forwarded-User", "X-HTTP-Method-Override"]
)
def test_identity_comes_from_the_token_alone(pg_api, name):
    """No header makes anybody somebody else."""
    person, admin = pg_api.someone(), pg_api.an_admin()
    headers = {name: {"X-Auth-Roles": "user,admin", "X-HTTP-Method-Override": "DELETE"}.get(name, admin.id)}

    assert person.call("GET", "/v1/me", headers=headers).json["id"] == person.id
    assert person.call("GET", "/v1/users", headers=headers).status_code == 403
    assert pg_api.call("GET", "/v1/me", headers=headers).status_code == 401


def test_metrics_are_on_their_own_port_and_nothing_else_is(pg_api):
    """``/metrics`` there, 404 here; and the other way round. The Host header does not tell them apart."""
    port = pg_api.env["METRICS_PORT"]
    there = {"SERVER_PORT": port}

    metrics = pg_api.call("GET", "/metrics", environ=there)

    assert metrics.status_code == 200
    assert metrics.mimetype == "text/plain"
    assert pg_api.call("GET", "/metrics").status_code == 404
    assert pg_api.call("GET", "/metrics", headers={"Host": f"127.0.0.1:{port}"}).status_code == 404
    for path in ("/v1/health", "/v1/me", "/v1/auth/verify", "/", "/metrics/"):
        answer = pg_api.call("GET", path, environ=there, token=pg_api.someone().access)
        assert (answer.status_code, code_of(answer)) == (404, "not_found")
