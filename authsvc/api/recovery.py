"""Account recovery by mail: verification, password reset, registration, change of address."""

from __future__ import annotations

from flask import Response, request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import DEVICE_HEADER, client_ip, identity, recovery, services
from authsvc.api.frame.guards import attempt, counted, fresh, limited, public, required_bearer, requires
from authsvc.api.frame.outcomes import changed, revoked
from authsvc.api.schemas.accounts import RegisterBody, UserView
from authsvc.api.schemas.recovery import (
    AddressBody,
    AddressForm,
    AskedView,
    ChangeAskedView,
    ChangeBody,
    ChangeConfirmBody,
    ConfirmBody,
    InviteBody,
    InviteForm,
    LockBody,
    ResetBody,
    TicketForm,
    VerifyBody,
)
from authsvc.api.users import user_named
from authsvc.domain.accounts.requests import Asked
from authsvc.domain.authentication import Registration
from authsvc.domain.ratelimits import Rule
from authsvc.domain.users import User

blp = Blueprint("recovery", __name__, url_prefix="/v1/auth", description="Verification and recovery by mail.")
me = Blueprint("address", __name__, url_prefix="/v1/me/email", description="The caller's own e-mail address.")
admin = Blueprint("resets", __name__, url_prefix="/v1/users", description="Resets, by admins.")
invitations = Blueprint(
    "invitations", __name__, url_prefix="/v1/users", description="Invitations, by admins."
)
quiet = Blueprint("quiet", __name__, url_prefix="/v1/auth/register", description="Quiet registration.")


@blp.post("/email/resend")
@public
@limited(Rule.MAIL_IP)
@blp.arguments(AddressBody)
@blp.response(202, description="A mail is sent if an account has the address and it is not verified yet.")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def resend(form: AddressForm) -> tuple[dict[str, object], int]:
    """Send another verification mail."""
    recovery().addresses.ask_again(form.email, client_ip())
    return {}, 202


@blp.post("/email/verify")
@public
@blp.doc(security=[{"bearer": []}, {}])
@blp.arguments(VerifyBody)
@blp.response(204, description="The address is verified.")
@blp.refuses(401, "`code_invalid`, `token_invalid`, `invalid_credentials`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`busy`, `unavailable`")
def verify(form: TicketForm) -> Response:
    """Verify an address, authenticated by a session or by address and password."""
    addresses = recovery().addresses
    if form.email is not None and form.password is not None:
        # Passwords can be guessed here as at the login, so the same limit counts attempts.
        with attempt(Rule.LOGIN_IP):
            addresses.verify_with_password(form.email, form.password, form.shown, client_ip())
    else:
        token = services().checks.check(required_bearer(request.headers.get("Authorization")))
        addresses.verify_in_session(token.user_id, form.shown, client_ip())
    return Response(status=204)


@blp.post("/password/forgot")
@public
@limited(Rule.MAIL_IP)
@blp.arguments(AddressBody)
@blp.response(202, AskedView, description="A mail is sent if an account has the address.")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def forgot(form: AddressForm) -> tuple[Asked, int]:
    """Request a mail with which to choose a new password."""
    return recovery().recovery.ask(form.email, client_ip()), 202


@blp.post("/password/reset")
@public
@blp.arguments(ResetBody)
@blp.response(
    204,
    description="The password is set; all sessions have ended.",
    headers={DEVICE_HEADER: {"schema": {"type": "string"}}},
)
@blp.alt_response(202, description="As 204, but Redis could not be updated yet.")
@blp.refuses(401, "`code_invalid`")
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`busy`, `unavailable`")
def reset(form: TicketForm) -> Response:
    """Set a new password with the code or link of a mail; opens no session."""
    outcome = recovery().recovery.reset(form.shown, form.new_password or "", client_ip())
    answer = revoked(outcome)
    answer.headers[DEVICE_HEADER] = outcome.value
    return answer


@quiet.post("", tags=["auth"])
@public
@counted(lambda metrics: metrics.registration)
@limited(Rule.REGISTER_IP)
@limited(Rule.MAIL_IP)
@quiet.arguments(RegisterBody)
@quiet.response(202, AskedView, description="A mail is sent, whether or not the address has an account.")
@quiet.refuses(429, "`rate_limited`")
@quiet.refuses(503, "`busy`, `unavailable`")
def register(form: Registration) -> tuple[Asked, int]:
    """Request an account; it is created once the address is verified."""
    addresses = recovery().addresses
    return addresses.register(form.email, form.password, form.profile, client_ip()), 202


@quiet.post("/confirm", tags=["auth"])
@public
@quiet.arguments(ConfirmBody)
@quiet.response(201, UserView)
@quiet.refuses(401, "`code_invalid`")
@quiet.refuses(409, "`email_taken`")
@quiet.refuses(429, "`rate_limited`")
@quiet.refuses(503, "`busy`, `unavailable`")
def confirm_registration(form: TicketForm) -> tuple[User, int, dict[str, str]]:
    """Create the account that was requested."""
    user = recovery().addresses.confirm_registration(form.shown, form.password, client_ip()).value
    return user, 201, {"Location": f"/v1/users/{user.id}"}


@me.post("")
@requires("user")
@fresh(of_everybody=False)
@limited(Rule.MAIL_IP)
@me.arguments(ChangeBody)
@me.response(202, ChangeAskedView, description="Mails with codes are queued.")
@me.refuses(403, "`wrong_password`")
@me.refuses(429, "`rate_limited`")
def ask_change(form: AddressForm) -> tuple[Asked, int]:
    """Request a change of the address; a new request cancels an older one."""
    proven = services().account.prove(identity(), form.password)
    return recovery().addresses.ask_change(proven, form.email, client_ip()), 202


@me.post("/confirm")
@requires("user")
@me.arguments(ChangeConfirmBody)
@me.response(200, UserView)
@me.alt_response(202, schema=UserView, description="Changed, but Redis could not be updated yet.")
@me.refuses(401, "`code_invalid`, `token_invalid`")
@me.refuses(409, "`email_taken`")
@me.refuses(429, "`rate_limited`")
def confirm_change(form: TicketForm) -> tuple[User, int]:
    """Change the address; every other session ends."""
    token = identity()
    return changed(
        recovery().addresses.confirm_change(token.user_id, token.session_id, form.shown, client_ip())
    )


@invitations.post("")
@requires("admin")
@invitations.arguments(InviteBody)
@invitations.response(
    201, UserView, description="Created without a password; a mail with the invitation is queued."
)
@invitations.refuses(404, "`not_found`: LINK_URL is not set, and an invitation needs a link")
@invitations.refuses(409, "`email_taken`")
def invite(form: InviteForm) -> tuple[User, int, dict[str, str]]:
    """Invite a user: the link in the mail lets them choose a password."""
    actor = identity().user_id
    user = recovery().recovery.invite(form.email, form.profile, form.roles, actor=actor).value
    return user, 201, {"Location": f"/v1/users/{user.id}"}


@admin.post("/<user_id>/password-reset")
@requires("admin")
@admin.arguments(LockBody)
@admin.response(202, description="A mail is sent, unless the account is disabled.")
@admin.refuses(404, "`not_found`")
def send_reset(form: dict[str, bool], user_id: str) -> Response:
    """Send a user a reset mail; `lock` makes the password unusable and ends the sessions at once."""
    recovery().recovery.send_reset(
        user_named(user_id), actor=identity().user_id, lock=form.get("lock", False)
    )
    return Response(status=202)
