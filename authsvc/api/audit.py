"""The audit trail, for admins; and of it what is about the caller, for himself."""

from __future__ import annotations

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import identity, services
from authsvc.api.frame.guards import requires
from authsvc.api.schemas.audit import EventPage, EventQuery, OwnEventPage, OwnEventQuery
from authsvc.domain.audit import AuditFilter, Entry

blp = Blueprint("audit", __name__, url_prefix="/v1", description="What happened, newest first.")


@blp.get("/audit")
@requires("admin")
@blp.arguments(EventQuery, location="query")
@blp.response(200, EventPage)
@blp.refuses(503, "`unavailable`")
def events(wanted: AuditFilter) -> dict[str, object]:
    """List security events, a page at a time."""
    items, next_cursor = services().audit.page(wanted)
    return {"items": items, "next_cursor": next_cursor}


@blp.get("/me/events")
@requires("user")
@blp.arguments(OwnEventQuery, location="query")
@blp.response(200, OwnEventPage)
@blp.refuses(503, "`unavailable`")
def own_events(wanted: AuditFilter) -> dict[str, object]:
    """List what happened to the caller's account: logins, failed ones, passwords, sessions."""
    user_id = identity().user_id
    items, next_cursor = services().audit.of_user(user_id, limit=wanted.limit, after=wanted.after)
    return {"items": [_shown(entry) for entry in items], "next_cursor": next_cursor}


def _shown(entry: Entry) -> dict[str, object]:
    """What its user sees of *entry*: that it was somebody else, not who, nor from where."""
    shown = ("id", "at", "action", "session_id", "device_id")
    return {
        **{name: getattr(entry, name) for name in shown},
        "ip": None if entry.is_by_another else entry.client_ip,
        "user_agent": None if entry.is_by_another else entry.user_agent,
        "by_another": entry.is_by_another,
    }
