"""Register, log in, refresh, log out."""

from __future__ import annotations

from typing import Any

from flask import Response, request

from authsvc.api.frame.bodies import JSON, Blueprint, json_body, load, read_json
from authsvc.api.frame.context import DEVICE_HEADER, client_ip, services, user_agent
from authsvc.api.frame.guards import counted, counting, limited, optional_bearer, public
from authsvc.api.frame.outcomes import revoked
from authsvc.api.grouped import GroupedRoute, Reply, loaded
from authsvc.api.schemas.accounts import (
    LoginBody,
    LoginForm,
    RefreshBody,
    RefreshForm,
    RegisterBody,
    TokenPairView,
    UserView,
)
from authsvc.domain.accounts.opening import TokenPair
from authsvc.domain.authentication import LoginAttempt, Registration
from authsvc.domain.groups import Steps
from authsvc.domain.ratelimits import Rule
from authsvc.domain.tokens.claims import bearer_token
from authsvc.domain.users import User
from authsvc.services import Services

blp = Blueprint("auth", __name__, url_prefix="/v1/auth", description="Register, log in, refresh, log out.")
registration = Blueprint("registration", __name__, url_prefix="/v1/auth/register", description="Signing up.")


@registration.post("", tags=["auth"])
@public
@counted(lambda metrics: metrics.registration)
@limited(Rule.REGISTER_IP)
@registration.arguments(RegisterBody)
@registration.response(201, UserView)
@registration.refuses(403, "`registration_closed`")
@registration.refuses(409, "`email_taken`")
@registration.refuses(429, "`rate_limited`")
@registration.refuses(503, "`busy`, `unavailable`")
def register(form: Registration) -> tuple[User, int, dict[str, str]]:
    """Create an account."""
    user = services().authentication.register(form)
    return user, 201, {"Location": f"/v1/users/{user.id}"}


@blp.post("/login")
@public
@counted(lambda metrics: metrics.login)
@limited(Rule.LOGIN_IP)
@blp.arguments(LoginBody)
@blp.doc(parameters=[{"in": "header", "name": DEVICE_HEADER, "schema": {"type": "string"}}])
@blp.response(200, TokenPairView, headers={DEVICE_HEADER: {"schema": {"type": "string"}}})
@blp.refuses(401, "`invalid_credentials`")
@blp.refuses(403, "`email_unverified`, `second_factor_required` with `challenge`, `expires_in`, `methods`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`busy`, `unavailable`")
def login(form: LoginForm) -> tuple[TokenPair, int, dict[str, str]]:
    """Log in with e-mail address and password; opens a session."""
    attempt = LoginAttempt(
        email=form.email,
        password=form.password,
        device_id=form.device_id,
        ip=client_ip(),
        user_agent=user_agent(),
        device_token=request.headers.get(DEVICE_HEADER, ""),
    )
    pair = services().authentication.log_in(attempt)
    return pair, 200, {DEVICE_HEADER: pair.device_token or ""}


@blp.post("/refresh")
@public
@counted(lambda metrics: metrics.refresh)
@blp.arguments(RefreshBody)
@blp.response(200, TokenPairView)
@blp.refuses(401, "`refresh_invalid`, `refresh_reused`, `session_ended`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def refresh(form: RefreshForm) -> TokenPair:
    """Exchange a refresh token for a new pair; the old one stops working."""
    return services().authentication.refresh(form.refresh_token or "")


@blp.post("/logout")
@public
@blp.doc(
    security=[{"bearer": []}, {}],
    requestBody={"required": False, "content": {"application/json": {"schema": RefreshBody}}},
)
@blp.response(204, description="The session has ended, for its access and its refresh token.")
@blp.alt_response(202, description="As 204, but Redis could not be updated yet; this follows within 2 s.")
@blp.refuses(401, "`token_invalid`")
@blp.refuses(503, "`unavailable`")
def logout() -> Response:
    """End the session of the bearer token, of the refresh token in the body, or of both."""
    outcome = services().authentication.log_out(optional_bearer(), _optional_refresh_token())
    services().metrics.logout()
    return revoked(outcome)


def _optional_refresh_token() -> str | None:
    """The refresh token in the body; None without a body."""
    if not request.get_data(cache=True):
        return None
    form: RefreshForm = load(RefreshBody(partial=True), read_json(request))
    return form.refresh_token


def _read_refresh(_authorization: str, body: bytes) -> RefreshForm | None:
    return loaded(_REFRESH_BODY, body) if body else None


def _refresh_grouped(found: Services, form: RefreshForm) -> Steps[Reply]:
    with counting(found.metrics.refresh):
        pair = yield from found.authentication.refreshing(form.refresh_token or "")
    return Reply(200, json_body(_PAIR_VIEW.dump(pair)), JSON)


def _read_logout(authorization: str, body: bytes) -> str | None:
    return None if body else bearer_token(authorization)


def _log_out_grouped(found: Services, access: str) -> Steps[Reply]:
    outcome = yield from found.authentication.logging_out(access, None)
    found.metrics.logout()
    return Reply(204 if outcome.is_complete else 202)


_REFRESH_BODY, _PAIR_VIEW = RefreshBody(), TokenPairView()
#: The busiest of these views, for requests without anything unusual about them.
GROUPED: dict[str, GroupedRoute[Any]] = {
    f"{blp.url_prefix}/refresh": GroupedRoute(_read_refresh, _refresh_grouped),
    f"{blp.url_prefix}/logout": GroupedRoute(_read_logout, _log_out_grouped),
}
