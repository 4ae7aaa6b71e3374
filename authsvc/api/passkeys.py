"""Passkeys (WebAuthn): registration and login."""

from __future__ import annotations

from typing import Any

from flask import request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import DEVICE_HEADER, client_ip, identity, passkeys, second_factors, user_agent
from authsvc.api.frame.guards import counted, fresh, limited, public, requires
from authsvc.api.schemas.accounts import TokenPairView
from authsvc.api.schemas.passkeys import (
    ChallengeBody,
    CreationOptionsView,
    NewPasskeyView,
    PasskeyBody,
    PasskeyForm,
    PasskeyLoginBody,
    PasskeyLoginForm,
    RelatedOriginsView,
    RequestOptionsView,
)
from authsvc.domain.accounts.challenges import Aim
from authsvc.domain.accounts.opening import LoginOrigin, TokenPair
from authsvc.domain.accounts.passkeys import NewPasskey
from authsvc.domain.ratelimits import OnOutage, Rule

me = Blueprint("passkeys", __name__, url_prefix="/v1/me/passkeys", description="The caller's own passkeys.")
blp = Blueprint("passkey", __name__, url_prefix="/v1/auth", description="Login with a passkey.")
well_known = Blueprint("webauthn", __name__, url_prefix="/.well-known")


@me.post("/options")
@requires("user")
@fresh()
@me.response(
    200, CreationOptionsView, description="Options to pass to `parseCreationOptionsFromJSON` unchanged."
)
@me.refuses(403, "`email_unverified`")
@me.refuses(409, "`too_many`")
def begin_registration() -> dict[str, Any]:
    """Make options to register a passkey; nothing is stored."""
    return passkeys().book.begin_registration(identity().user_id)


@me.post("")
@requires("user")
@fresh()
@me.arguments(PasskeyBody)
@me.response(201, NewPasskeyView, description="With `recovery_codes` if it is the first factor.")
@me.alt_response(202, schema=NewPasskeyView, description="As 201, but Redis could not be updated yet.")
@me.refuses(401, "`code_invalid`, `token_invalid`")
@me.refuses(403, "`email_unverified`")
@me.refuses(409, "`passkey_known`, `too_many`")
def register(form: PasskeyForm) -> tuple[NewPasskey, int]:
    """Register a passkey; every other session ends if it is the first factor."""
    outcome = passkeys().book.register(identity(), form.credential, form.name)
    return outcome.value, 201 if outcome.is_complete else 202


@blp.post("/passkey/options")
@public
@blp.response(
    200, RequestOptionsView, description="Options to pass to `parseRequestOptionsFromJSON` unchanged."
)
def begin_login() -> dict[str, Any]:
    """Make options to log in with a passkey, for any user; nothing is stored."""
    return passkeys().book.begin(Aim.PASSKEY_LOGIN)


@blp.post("/passkey")
@public
@counted(lambda metrics: metrics.login)
@limited(Rule.LOGIN_IP, on_outage=OnOutage.ALLOW)
@blp.arguments(PasskeyLoginBody)
@blp.doc(parameters=[{"in": "header", "name": DEVICE_HEADER, "schema": {"type": "string"}}])
@blp.response(200, TokenPairView, headers={DEVICE_HEADER: {"schema": {"type": "string"}}})
@blp.refuses(401, "`code_invalid`")
@blp.refuses(403, "`email_unverified`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def login(form: PasskeyLoginForm) -> tuple[TokenPair, int, dict[str, str]]:
    """Log in with a passkey that verified the user; no password is needed."""
    origin = LoginOrigin(ip=client_ip(), user_agent=user_agent(), device_id=form.device_id)
    pair = passkeys().login.log_in(form.credential, origin, request.headers.get(DEVICE_HEADER, ""))
    return pair, 200, {DEVICE_HEADER: pair.device_token or ""}


@blp.post("/login/second/options")
@public
@blp.arguments(ChallengeBody)
@blp.response(
    200, RequestOptionsView, description="Options to pass to `parseRequestOptionsFromJSON` unchanged."
)
@blp.refuses(401, "`code_invalid`")
@blp.refuses(404, "`not_found`: the account has no passkey that can be used here")
def begin_second(form: dict[str, str]) -> dict[str, Any]:
    """Make options to complete a login with a passkey; nothing is stored."""
    _, credentials = second_factors().login.open_challenge(form["challenge"])
    return passkeys().book.begin(Aim.PASSKEY_SECOND, credentials.user.id)


@blp.post("/step-up/options")
@requires("user")
@blp.response(
    200, RequestOptionsView, description="Options to pass to `parseRequestOptionsFromJSON` unchanged."
)
@blp.refuses(404, "`not_found`: the account has no passkey that can be used here")
def begin_step_up() -> dict[str, Any]:
    """Make options for a step-up with a passkey; nothing is stored."""
    return passkeys().book.begin(Aim.PASSKEY_STEP_UP, identity().user_id)


@well_known.get("/webauthn")
@public
@well_known.response(200, RelatedOriginsView)
def related_origins() -> dict[str, tuple[str, ...]]:
    """List the other origins on which browsers may use passkeys of this RP ID."""
    return {"origins": passkeys().book.ceremonies.party.related_origins}
