"""One shape for every refusal, one table for their statuses, the same headers on every answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from http import HTTPStatus

import pytest

from authsvc.api.frame.errors import DETAILS, STATUSES, problem_of
from authsvc.domain import errors
from authsvc.domain.errors import AuthError
from authsvc.domain.values.levels import Acr, Requirement
from authsvc.domain.values.limits import Attempt, Limit
from tests import ROOT
from tests.api.driver import code_of
from tests.rig import PASSWORD

LIMIT = Limit(name="login-ip", quota=5, window_s=900)
REFUSED = Attempt(limit=LIMIT, subject="s", allowed=False, remaining=0, reset_s=7)
ARGUMENTS: dict[type[AuthError], tuple[object, ...]] = {
    errors.Invalid: ({"email": ["is wrong"]},),
    errors.CounterNotRisen: ("secret user", "secret factor"),
    errors.StepUpRequired: (Requirement(acr=Acr.AAL2, max_age_s=300),),
    errors.SecondFactorRequired: ("challenge", 300, ("totp",)),
    errors.RateLimited: (REFUSED,),
    errors.HashingBusy: (4,),
    errors.StoreUnavailable: ("sql: secret-host",),
}


def every_error(root: type[AuthError] = AuthError) -> list[type[AuthError]]:
    """All subclasses of AuthError."""
    return [kind for child in root.__subclasses__() for kind in (child, *every_error(child))]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_domain_has_its_answer(kind):
    """A status, a code, a sentence; nothing of the cause; what the status asks for in headers."""
    problem = problem_of(kind(*ARGUMENTS.get(kind, ("secret cause",))))

    body = json.loads(problem.body("the-id"))
    assert problem.status == STATUSES[kind]
    assert body["code"] == kind.code
    assert body["status"] == problem.status
    assert body["title"] == HTTPStatus(problem.status).phrase
    assert body["detail"] == DETAILS[kind.code]
    assert body["type"] == f"urn:authsvc:problem:{kind.code}"
    assert body["request_id"] == "the-id"
    assert "secret" not in json.dumps(body) + json.dumps(problem.headers)
    # RFC 6750 §3.1: a scope that is missing is said in a challenge, too.
    is_challenged = problem.status == 401 or kind is errors.ScopeMissing
    assert ("WWW-Authenticate" in problem.headers) == is_challenged
    assert ("Retry-After" in problem.headers) == (problem.status in {429, 503})


@pytest.mark.parametrize(
    ("requirement", "asked"),
    [
        (Requirement(acr=Acr.PHR, max_age_s=0), ', max_age="0", acr_values="phr"'),
        (Requirement(acr=Acr.AAL2), ', acr_values="aal2"'),
        (Requirement(max_age_s=600), ', max_age="600"'),
    ],
)
def test_the_challenge_of_a_step_up_names_what_is_needed(requirement, asked):
    """As RFC 9470 has it."""
    challenge = problem_of(errors.StepUpRequired(requirement)).headers["WWW-Authenticate"]

    assert challenge == f'Bearer error="insufficient_user_authentication"{asked}'


def test_codes_and_statuses_are_those_of_the_contract():
    """Clients match on them."""
    assert {(status, kind.code) for kind, status in STATUSES.items()} == {
        (400, "unauthorized_client"),
        (400, "unsupported_grant_type"),
        (400, "invalid_scope"),
        (403, "insufficient_scope"),
        (401, "token_missing"),
        (401, "token_invalid"),
        (401, "invalid_credentials"),
        (401, "invalid_client"),
        (401, "refresh_invalid"),
        (401, "refresh_reused"),
        (401, "session_ended"),
        (401, "code_invalid"),
        (401, "step_up_required"),
        (403, "forbidden"),
        (403, "email_unverified"),
        (403, "second_factor_required"),
        (403, "registration_closed"),
        (403, "wrong_password"),
        (404, "not_found"),
        (409, "email_taken"),
        (409, "passkey_known"),
        (409, "last_admin"),
        (409, "too_many"),
        (412, "precondition_failed"),
        (422, "validation_failed"),
        (429, "rate_limited"),
        (503, "busy"),
        (503, "unavailable"),
    }


def test_no_row_of_the_table_is_for_nobody():
    """The table and the tree name the same errors."""
    assert set(STATUSES) == set(every_error())


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/.", {}, 404, "not_found"),
        ("GET", "/v1/nothing", {}, 404, "not_found"),
        ("GET", "/v1/me/", {}, 404, "not_found"),
        ("GET", "//v1/me", {}, 404, "not_found"),
        ("GET", "/v1/%ff", {}, 404, "not_found"),
        ("GET", "/static/x", {}, 404, "not_found"),
        ("GET", "/docs/assets/../../app.py", {}, 404, "not_found"),
        ("GET", "/docs/assets/%2e%2e/%2e%2e/errors.py", {}, 404, "not_found"),
        ("GET", "/metrics", {}, 404, "not_found"),
        ("GET", "/v1/auth/login", {}, 405, "method_not_allowed"),
        ("OPTIONS", "/v1/me", {}, 405, "method_not_allowed"),
        ("TRACE", "/v1/me", {}, 405, "method_not_allowed"),
        ("BREW", "/v1/health/live", {}, 405, "method_not_allowed"),
        (
            "POST",
            "/v1/auth/login",
            {"data": b"{", "content_type": "application/json"},
            400,
            "malformed_request",
        ),
        ("POST", "/v1/auth/login", {"data": b"x" * 65_537}, 413, "too_large"),
        (
            "POST",
            "/v1/auth/login",
            {"data": b"{}", "content_type": "text/plain"},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/v1/auth/login", {"json": {}}, 422, "validation_failed"),
        ("GET", "/v1/me", {}, 401, "token_missing"),
        ("GET", "/v1/me", {"token": "x"}, 401, "token_invalid"),
        ("GET", "/v1/health/live", {"headers": {"Host": "x" * 70_000}}, 400, "malformed_request"),
        ("GET", "/docs/assets/init.js", {"headers": {"Range": "bytes=9999-"}}, 400, "malformed_request"),
    ],
)
def test_every_refusal_is_a_problem(pg_api, method, path, options, status, code):
    """RFC 9457: exactly these members, and a request id that the header repeats."""
    answer = pg_api.call(method, path, **options)

    body = answer.json
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "code", "request_id"}
    assert ("errors" in body) == (status == 422)
    assert body["status"] == status
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/auth/login", {"POST"}),
        ("/v1/me", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("/v1/me/preferences", {"GET", "HEAD", "PUT", "PATCH"}),
        ("/v1/users/x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("/v1/users/x/sessions", {"DELETE"}),
        ("/.well-known/jwks.json", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(pg_api, path, allowed):
    """RFC 9110 §15.5.6, also for OPTIONS that is no preflight; no origin but named ones is told more."""
    for method in ("OPTIONS", "BREW"):
        answer = pg_api.call(method, path, headers={"Origin": "https://evil.example"})

        assert answer.status_code == 405
        assert set(re.split(", *", answer.headers["Allow"])) == allowed
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


MARK = "zq9<b>'\"ü mark"


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/v1/auth/register", {"json": {"email": MARK, "password": MARK, "name": [MARK], MARK: 1}}),
        ("POST", "/v1/auth/login", {"json": {"email": MARK, "password": MARK}}),
        ("POST", "/v1/auth/login", {"json": {MARK: {MARK: MARK}}}),
        ("POST", "/v1/auth/login", {"data": MARK.encode(), "content_type": "application/json"}),
        (
            "POST",
            "/v1/auth/login",
            {"data": b"{}", "content_type": f"text/{MARK}".encode().decode("latin-1")},
        ),
        ("POST", "/v1/auth/refresh", {"json": {"refresh_token": MARK}}),
        ("POST", "/v1/auth/logout", {"json": {"refresh_token": MARK}}),
        ("GET", "/v1/auth/verify", {"headers": {"Authorization": b"Bearer zq9<b> mark"}}),
        ("GET", f"/v1/{MARK}", {}),
        ("GET", "/v1/me", {"headers": {"Authorization": b"zq9<b> mark", "X-Request-Id": "zq9<b> mark"}}),
        ("PATCH", "/v1/me", {"json": {MARK: MARK}}),
        ("PUT", "/v1/me/preferences", {"json": {MARK: "\x00" + MARK}}),
        ("DELETE", f"/v1/me/sessions?except={MARK}", {}),
        ("DELETE", f"/v1/me/sessions/{MARK}", {}),
        ("GET", f"/v1/users?role={MARK}&{MARK}=1", {}),
        ("GET", f"/v1/users/{MARK}", {}),
        ("PATCH", "/v1/users/{id}", {"json": {"roles": [MARK, MARK], "status": MARK, MARK: 1}}),
    ],
)
def test_nothing_of_the_request_is_repeated(pg_api, method, path, options):
    """Neither in the body nor in a header: no markup, no secret that was put in the wrong place."""
    admin = pg_api.an_admin()
    credentials = {} if "Authorization" in options.get("headers", {}) else {"token": admin.access}

    answer = pg_api.call(method, path.replace("{id}", admin.id), **credentials, **options)

    assert 400 <= answer.status_code < 500
    assert "zq9" not in answer.text + str(answer.headers)
    assert "<b>" not in answer.text + str(answer.headers)


def test_an_unknown_field_is_named_where_it_looks_like_one(pg_api):
    """A typing error can be found by whoever made it; a secret that was sent as a name is not shown."""
    fields = {"pasword": 1, PASSWORD: 2}

    messages = pg_api.post("/v1/auth/login", {"email": "a@example.com", "password": "x", **fields}).json[
        "errors"
    ]

    assert messages == {"pasword": ["Unknown field."], "body": ["Unknown field."]}


def test_wrong_members_of_a_list_are_named_by_their_place(pg_api):
    """Field path -> messages."""
    admin = pg_api.an_admin()

    answer = admin.call("PATCH", f"/v1/users/{admin.id}", json={"roles": ["user", "root"]})

    assert answer.json["errors"] == {"roles.1": ["Must be one of: user, admin."]}


@pytest.mark.parametrize("request_id", ["a", "A-b_c.9", "x" * 64])
def test_a_sane_request_id_is_kept(pg_api, request_id):
    """In the header and in the problem."""
    answer = pg_api.call("GET", "/v1/me", headers={"X-Request-Id": request_id})

    assert answer.headers["X-Request-Id"] == answer.json["request_id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a b", "ü", "a;b", "a\tb", "{}", "a,b"])
def test_any_other_request_id_is_replaced(pg_api, request_id):
    """By one of this service, a new one each time."""
    answers = [pg_api.call("GET", "/v1/me", headers={"X-Request-Id": request_id}) for _ in range(2)]

    made = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(made) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


def test_every_process_answers_alike(pg_api):
    """Nothing depends on the order of a set, which each process has for itself."""
    module = [sys.executable, "-m", "tests.api.frame.seeded"]
    printed = [
        subprocess.run(
            module,
            env={"PATH": os.environ["PATH"], **pg_api.env, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=180,
        ).stdout
        for seed in ("1", "2", "3")
    ]

    first, *others = map(json.loads, printed)
    assert len(first) > 40
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert one == same


def test_methods_are_named_in_one_order(pg_api):
    """The alphabet's."""
    answer = pg_api.call("BREW", "/v1/me")

    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH"


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/", 404), ("/v1/me", 404)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_metrics_port_names_the_request_as_the_public_one_does(pg_api, method, path, status):
    """Found or not: an id, the caller's if it is sane, in the header and in the body of a problem."""
    port = {"SERVER_PORT": str(pg_api.services.http.metrics_port)}

    made = pg_api.call(method, path, environ=port)
    kept = pg_api.call(method, path, environ=port, headers={"X-Request-Id": "scrape-7"})

    assert (made.status_code, kept.status_code) == (status, status)
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])
    assert kept.headers["X-Request-Id"] == "scrape-7"
    assert bool(kept.data) == (method == "GET")
    assert int(kept.headers["Content-Length"]) > 0
    if method == "GET" and status == 404:
        assert kept.get_json()["request_id"] == "scrape-7"


def test_every_answer_carries_the_safety_headers(pg_api):
    """Good or bad, from a view, a check or from nowhere: an id, no sniffing, not stored, no product."""
    person = pg_api.someone()
    answers = [
        person.call("GET", "/v1/me"),
        person.call("GET", "/v1/me/preferences"),
        person.call("GET", "/v1/me/sessions"),
        person.call("GET", "/v1/users"),
        person.call("GET", "/v1/auth/verify"),
        pg_api.call("GET", "/v1/auth/verify"),
        pg_api.call("GET", "/v1/health"),
        pg_api.call("GET", "/openapi.json"),
        pg_api.call("GET", "/nowhere"),
        pg_api.call("BREW", "/v1/me"),
        pg_api.log_in(person.email),
        pg_api.log_in(person.email, "wrong"),
        pg_api.refresh(person.refresh_token),
        pg_api.refresh("x"),
        person.call("DELETE", "/v1/me/sessions"),
        pg_api.log_out(access=person.access),
    ]

    for answer in answers:
        assert answer.headers["X-Request-Id"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Server" not in answer.headers
        assert "Set-Cookie" not in answer.headers
        assert not answer.data or answer.mimetype in {"application/json", "application/problem+json"}
