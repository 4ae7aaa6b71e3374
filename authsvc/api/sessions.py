"""The caller's own sessions."""

from __future__ import annotations

from flask import Response, request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import identity, services
from authsvc.api.frame.guards import requires
from authsvc.api.frame.outcomes import revoked
from authsvc.api.schemas.accounts import SessionList
from authsvc.domain.errors import Invalid, NotFound
from authsvc.domain.sessions import Session
from authsvc.domain.values.identifiers import SessionId, canonical_id

blp = Blueprint("sessions", __name__, url_prefix="/v1/me/sessions", description="The caller's own sessions.")


@blp.get("")
@requires("user")
@blp.response(200, SessionList)
def own() -> dict[str, list[dict[str, object]]]:
    """List the live sessions, the last used first."""
    found = services().sessions.of_user(identity().user_id)
    return {"items": [listed(session) for session in found]}


@blp.delete("/<session_id>")
@requires("user")
@blp.response(204, description="Ended.")
@blp.alt_response(202, description="Ended, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
def end(session_id: str) -> Response:
    """End one session; it may be the current one."""
    named = canonical_id(session_id)
    if named is None:
        raise NotFound
    return revoked(services().sessions.end(SessionId(named), owner=identity().user_id))


@blp.delete("")
@requires("user")
@blp.doc(parameters=[{"in": "query", "name": "except", "schema": {"type": "string", "enum": ["current"]}}])
@blp.response(204, description="Ended.")
@blp.alt_response(202, description="Ended, but Redis could not be updated yet.")
def end_all() -> Response:
    """End every session; `?except=current` keeps this one."""
    token = identity()
    keep = token.session_id if _keeps_current() else None
    return revoked(services().sessions.end_all(token.user_id, keep=keep, actor=token.user_id))


def _keeps_current() -> bool:
    """True for ``?except=current``; any other query is an error, because it could end too many sessions."""
    if not request.args:
        return False
    if request.args.to_dict(flat=False) != {"except": ["current"]}:
        raise Invalid({"except": ["Must be: current."]})
    return True


def listed(session: Session) -> dict[str, object]:
    """*session* as its user sees it; ``expires_at`` is when it ends unless it is used again."""
    shown = ("id", "device_id", "ip", "user_agent", "created_at", "last_used_at")
    return {
        **{name: getattr(session, name) for name in shown},
        "current": session.id == identity().session_id,
        "expires_at": session.ends_at,
    }
