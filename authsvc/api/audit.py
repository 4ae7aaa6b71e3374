"""The audit trail: all of it for admins, and for every user what is about them."""

from __future__ import annotations

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import identity, services
from authsvc.api.frame.guards import fresh, requires
from authsvc.api.schemas.audit import EventPage, EventQuery, OwnDataView, OwnEventPage, OwnEventQuery
from authsvc.api.sessions import listed
from authsvc.domain.accounts.own_data import OwnData
from authsvc.domain.audit import AuditFilter, Entry

blp = Blueprint("audit", __name__, url_prefix="/v1", description="The audit trail, newest events first.")


@blp.get("/audit")
@requires("admin")
@blp.arguments(EventQuery, location="query")
@blp.response(200, EventPage)
@blp.refuses(503, "`unavailable`")
def events(wanted: AuditFilter) -> dict[str, object]:
    """List security events, one page per request."""
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
    return {"items": [shown(entry) for entry in items], "next_cursor": next_cursor}


@blp.get("/me/export")
@requires("user")
@fresh(of_everybody=False)
@blp.response(200, OwnDataView)
@blp.refuses(429, "`rate_limited`")
@blp.refuses(503, "`unavailable`")
def export() -> dict[str, object]:
    """Export all data that the service stores about the caller."""
    found = services().own_data.read(identity().user_id)
    members = {
        "account": found.user,
        "preferences": found.user.preferences,
        "sessions": [listed(session) for session in found.sessions],
        "events": [shown(entry) for entry in found.events],
    }
    return members | _by_setting(found)


def _by_setting(found: OwnData) -> dict[str, object]:
    """Members of the answer that depend on the settings."""
    mails = {"mails": found.mails} if services().recovery is not None else {}
    factors = {"factors": found.factors} if services().second_factors is not None else {}
    return {**mails, **factors}


def shown(entry: Entry) -> dict[str, object]:
    """
    *entry* for the user it is about: without the identity and the address of anybody else who acted.
    """
    names = ("id", "at", "action", "session_id", "device_id")
    return {
        **{name: getattr(entry, name) for name in names},
        "ip": None if entry.is_by_another else entry.client_ip,
        "user_agent": None if entry.is_by_another else entry.user_agent,
        "by_another": entry.is_by_another,
    }
