"""Operations of admins on users."""

from __future__ import annotations

from flask import Response

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import identity, services
from authsvc.api.frame.guards import requires
from authsvc.api.frame.outcomes import changed, revoked
from authsvc.api.schemas.accounts import UserPage, UserPatch, UserPatchForm, UserQuery, UserView
from authsvc.domain.errors import NotFound
from authsvc.domain.users import User, UserFilter
from authsvc.domain.values.identifiers import UserId, canonical_id

blp = Blueprint("users", __name__, url_prefix="/v1/users", description="Users, for admins.")


@blp.get("")
@requires("admin")
@blp.arguments(UserQuery, location="query")
@blp.response(200, UserPage)
def page(wanted: UserFilter) -> dict[str, object]:
    """List users, one page per request."""
    items, next_cursor = services().users.page(wanted)
    return {"items": items, "next_cursor": next_cursor}


@blp.get("/<user_id>")
@requires("admin")
@blp.response(200, UserView)
@blp.refuses(404, "`not_found`")
def one(user_id: str) -> User:
    """Read one user."""
    return services().users.get(user_named(user_id))


@blp.patch("/<user_id>")
@requires("admin")
@blp.arguments(UserPatch)
@blp.response(200, UserView)
@blp.alt_response(202, schema=UserView, description="Changed, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
@blp.refuses(409, "`last_admin`")
def change(form: UserPatchForm, user_id: str) -> tuple[User, int]:
    """Set roles, status or both; this takes effect on the user's next request."""
    return changed(
        services().users.change_roles_or_status(
            user_named(user_id), roles=form.roles, status=form.status, actor=identity().user_id
        )
    )


@blp.delete("/<user_id>")
@requires("admin")
@blp.response(204, description="Deleted.")
@blp.alt_response(202, description="Deleted, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
@blp.refuses(409, "`last_admin`")
def remove(user_id: str) -> Response:
    """Delete a user and all their data."""
    return revoked(services().users.remove(user_named(user_id), actor=identity().user_id))


@blp.delete("/<user_id>/sessions")
@requires("admin")
@blp.response(204, description="Ended.")
@blp.alt_response(202, description="Ended, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
def end_sessions(user_id: str) -> Response:
    """End every session of a user."""
    return revoked(services().sessions.end_all(user_named(user_id), keep=None, actor=identity().user_id))


def user_named(text: str) -> UserId:
    """*text* as a user's id; raises NotFound for a malformed one."""
    named = canonical_id(text)
    if named is None:
        raise NotFound
    return UserId(named)
