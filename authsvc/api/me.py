"""Operations of users on their own account."""

from __future__ import annotations

from flask import Response

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import DEVICE_HEADER, identity, own_user, services
from authsvc.api.frame.guards import fresh, requires
from authsvc.api.frame.outcomes import revoked
from authsvc.api.schemas.accounts import (
    ClosingBody,
    ClosingForm,
    PasswordBody,
    PasswordForm,
    ProfilePatch,
    UserView,
)
from authsvc.domain.users import Profile, User

blp = Blueprint("me", __name__, url_prefix="/v1/me", description="The caller's own account.")


@blp.get("")
@requires("user", reads_user=True)
@blp.response(200, UserView)
def profile() -> User:
    """Read the profile."""
    return services().users.get(identity().user_id, read=own_user())


@blp.patch("")
@requires("user")
@blp.arguments(ProfilePatch)
@blp.response(200, UserView)
def change_profile(change: Profile) -> User:
    """Change name, phone or device id."""
    return services().users.change_profile(identity().user_id, change).value


@blp.delete("")
@requires("user")
@fresh(of_everybody=False)
@blp.arguments(ClosingBody)
@blp.response(204, description="The account and its sessions are deleted.")
@blp.alt_response(202, description="As 204, but Redis could not be updated yet.")
@blp.refuses(403, "`wrong_password`")
@blp.refuses(409, "`last_admin`")
def close(form: ClosingForm) -> Response:
    """Delete the account."""
    return revoked(services().account.close(identity(), form.password))


@blp.post("/password")
@requires("user")
@fresh(of_everybody=False)
@blp.arguments(PasswordBody)
@blp.response(204, description="Changed; every other session has ended.")
@blp.alt_response(202, description="As 204, but Redis could not be updated yet.")
@blp.refuses(403, "`wrong_password`")
@blp.refuses(429, "`rate_limited`")
def change_password(form: PasswordForm) -> Response:
    """Change the password; this session goes on, all others end."""
    outcome = services().account.change_password(identity(), form.current_password, form.new_password)
    answer = revoked(outcome)
    answer.headers[DEVICE_HEADER] = outcome.value
    return answer
