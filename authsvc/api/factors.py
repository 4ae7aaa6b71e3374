"""Second factors: the second step of a login, and their management by users and admins."""

from __future__ import annotations

from flask import Response, request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import (
    DEVICE_HEADER,
    client_ip,
    identity,
    second_factors,
    services,
    user_agent,
)
from authsvc.api.frame.guards import counted, fresh, public, requires
from authsvc.api.frame.outcomes import revoked
from authsvc.api.schemas.accounts import TokenPairView
from authsvc.api.schemas.factors import (
    AnswerForm,
    CodeBody,
    EnrolmentView,
    FactorListView,
    FactorName,
    FactorPatch,
    FactorView,
    RecoveryCodesView,
    SecondLoginBody,
    SteppedUpView,
    StepUpBody,
)
from authsvc.api.users import user_named
from authsvc.domain.accounts.challenges import Aim
from authsvc.domain.accounts.factors import Enrolment, Factor, FactorId, FactorList
from authsvc.domain.accounts.opening import TokenPair
from authsvc.domain.accounts.second_factor import Answer
from authsvc.domain.errors import CodeInvalid, NotFound
from authsvc.domain.values.identifiers import canonical_id

blp = Blueprint("second", __name__, url_prefix="/v1/auth", description="The second step of a login.")
me = Blueprint("factors", __name__, url_prefix="/v1/me", description="The caller's second factors.")
admin = Blueprint("resets of factors", __name__, url_prefix="/v1/users", description="Resets, by admins.")


@blp.post("/login/second", tags=["auth"])
@public
@counted(lambda metrics: metrics.login)
@blp.arguments(SecondLoginBody)
@blp.doc(parameters=[{"in": "header", "name": DEVICE_HEADER, "schema": {"type": "string"}}])
@blp.response(200, TokenPairView, headers={DEVICE_HEADER: {"schema": {"type": "string"}}})
@blp.refuses(401, "`code_invalid`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def log_in(form: tuple[str, AnswerForm]) -> tuple[TokenPair, int, dict[str, str]]:
    """Complete a login with a second factor; opens the session."""
    challenge, answer = form
    pair = second_factors().login.log_in(
        challenge,
        judged(answer, Aim.PASSKEY_SECOND),
        ip=client_ip(),
        user_agent=user_agent(),
        device_token=request.headers.get(DEVICE_HEADER, ""),
    )
    return pair, 200, {DEVICE_HEADER: pair.device_token or ""}


@blp.post("/step-up", tags=["auth"])
@counted(lambda metrics: metrics.step_up)
@requires("user")
@blp.arguments(StepUpBody)
@blp.doc(parameters=[{"in": "header", "name": DEVICE_HEADER, "schema": {"type": "string"}}])
@blp.response(200, SteppedUpView)
@blp.refuses(401, "`code_invalid`, `token_invalid`")
@blp.refuses(403, "`wrong_password`; `forbidden`: a password, where the account has a second factor")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`busy`, `unavailable`")
def step_up(proof: str | AnswerForm) -> dict[str, object]:
    """Authenticate again within the session, for a new access token with a higher or more recent level."""
    step_ups, token = second_factors().step_ups, identity()
    if isinstance(proof, str):
        outcome = step_ups.by_password(token, proof)
    else:
        answer = judged(proof, Aim.PASSKEY_STEP_UP)
        outcome = step_ups.by_factor(token, answer, request.headers.get(DEVICE_HEADER, ""))
    issued = {"access_token": outcome.access_token, "expires_in": outcome.expires_in}
    return issued | outcome.level.claims()


@me.get("/factors")
@requires("user")
@me.response(200, FactorListView)
def every() -> FactorList:
    """List the second factors, and the number of unused recovery codes."""
    return second_factors().factors.of_user(identity().user_id)


@me.patch("/factors/<factor_id>")
@requires("user")
@me.arguments(FactorPatch)
@me.response(200, FactorView)
@me.refuses(404, "`not_found`")
def rename(name: str | None, factor_id: str) -> Factor:
    """Name a factor."""
    return second_factors().factors.rename(identity().user_id, factor_named(factor_id), name)


@me.delete("/factors/<factor_id>")
@requires("user")
@fresh()
@me.response(204, description="Removed. If it was the last, every other session has ended.")
@me.alt_response(202, description="As above, but Redis could not be updated yet.")
@me.refuses(404, "`not_found`")
def remove(factor_id: str) -> Response:
    """Remove a factor; removing the last one removes the recovery codes, too."""
    return revoked(second_factors().factors.remove(identity(), factor_named(factor_id)))


@me.post("/factors/totp")
@requires("user")
@fresh()
@me.arguments(FactorName)
@me.response(201, EnrolmentView)
@me.refuses(403, "`email_unverified`")
def enrol(name: str | None) -> Enrolment:
    """Begin to enrol an authenticator app; an app enrolled earlier works until the new one is confirmed."""
    return second_factors().enrolments.enrol(identity().user_id, name)


@me.post("/factors/totp/<factor_id>/confirm")
@requires("user")
@fresh()
@me.arguments(CodeBody)
@me.response(200, RecoveryCodesView)
@me.alt_response(202, schema=RecoveryCodesView, description="As above, but Redis could not be updated yet.")
@me.refuses(401, "`code_invalid`, `token_invalid`")
@me.refuses(403, "`email_unverified`")
@me.refuses(404, "`not_found`")
def confirm(form: dict[str, str], factor_id: str) -> tuple[dict[str, object], int]:
    """Confirm the app with its first code; the first factor brings recovery codes."""
    outcome = second_factors().enrolments.confirm(identity(), factor_named(factor_id), form["code"])
    return {"recovery_codes": outcome.value}, 200 if outcome.is_complete else 202


@me.post("/recovery-codes")
@requires("user")
@fresh()
@me.response(201, RecoveryCodesView)
@me.refuses(404, "`not_found`: there is no second factor")
def renew_codes() -> dict[str, object]:
    """Make new recovery codes; the older ones stop working."""
    return {"recovery_codes": second_factors().factors.renew_codes(identity())}


@admin.delete("/<user_id>/factors", tags=["users"])
@requires("admin")
@fresh()
@admin.response(204, description="Removed; every session of the user has ended.")
@admin.alt_response(202, description="As above, but Redis could not be updated yet.")
@admin.refuses(403, "`forbidden`: the admin's own")
@admin.refuses(404, "`not_found`")
def reset(user_id: str) -> Response:
    """Remove all second factors of a user who lost them."""
    return revoked(second_factors().factors.reset(user_named(user_id), actor=identity().user_id))


def judged(form: AnswerForm, passkey_aim: Aim) -> Answer:
    """The second factor in *form*; a passkey must answer options that were made for *passkey_aim*."""
    second, passkeys = second_factors().second, services().passkeys
    if form.credential is not None:
        if passkeys is None:
            raise CodeInvalid("there are no passkeys")
        return passkeys.book.answer(form.credential, passkey_aim)
    if form.code is not None:
        return second.code(form.code)
    return second.recovery_code(form.recovery_code or "")


def factor_named(text: str) -> FactorId:
    """*text* as a factor's id; raises NotFound for a malformed one."""
    named = canonical_id(text)
    if named is None:
        raise NotFound
    return FactorId(named)
