"""Schemas of security events, for admins and for users."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.accounts import MAX_PAGE, SessionView, UserView
from authsvc.api.schemas.kinds import Identifier, Time, TimeInQuery, View, Whole
from authsvc.domain.audit import OPERATIONAL, Action, AuditFilter

ACTIONS = sorted(action.value for action in Action if action not in OPERATIONAL)
#: Position of the version in a UUID: ids of events have version 7.
_VERSION_AT = 14
_NO_CURSOR = "Not a cursor of this list."


def _of_events(cursor: str) -> None:
    if cursor[_VERSION_AT] != "7":
        raise ValidationError(_NO_CURSOR)


def _address(text: str) -> None:
    try:
        canonical = str(ip_address(text))
    except ValueError:
        canonical = ""
    if canonical != text:
        raise ValidationError("Must be an address, in its shortest form.")


class OwnEventQuery(Shape):
    """The page of the caller's own events."""

    class Meta:
        """An unknown parameter is an error, not ignored."""

        unknown = RAISE

    limit = Whole(1, MAX_PAGE, load_default=50)
    cursor = Identifier(validate=_of_events, error_messages={"invalid_uuid": _NO_CURSOR})

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> AuditFilter:
        """The value for the domain."""
        return _filter(data)


class EventQuery(OwnEventQuery):
    """The filters and the page of a list of events."""

    action = fields.String(validate=validate.OneOf(ACTIONS))
    user_id = Identifier()
    actor_id = Identifier()
    ip = fields.String(validate=_address)
    since = TimeInQuery()
    until = TimeInQuery()


def _filter(data: dict[str, Any]) -> AuditFilter:
    return AuditFilter(
        actions=frozenset((data["action"],)) if "action" in data else frozenset(),
        user_id=data.get("user_id"),
        actor_id=data.get("actor_id"),
        client_ip=data.get("ip"),
        since=data.get("since"),
        until=data.get("until"),
        limit=data["limit"],
        after=data.get("cursor"),
    )


class OwnEventView(View):
    """An event as its user sees it."""

    id = fields.String()
    at = Time()
    action = fields.String()
    session_id = fields.String(allow_none=True)
    ip = fields.String(allow_none=True)
    user_agent = fields.String(allow_none=True)
    device_id = fields.String(allow_none=True)
    by_another = fields.Boolean()


class OwnEventPage(View):
    """One page of the caller's own events, newest first."""

    items = fields.List(fields.Nested(OwnEventView))
    next_cursor = fields.String(allow_none=True)


class MailView(View):
    """A mail as its recipient sees it: when it was sent, without its content."""

    template = fields.String()
    state = fields.String()
    asked_at = Time()
    sent_at = Time(allow_none=True)
    ip = fields.String(allow_none=True, attribute="client_ip")


class AccountView(UserView):
    """The account, without preferences."""

    class Meta:
        """Preferences are a member of the whole document already."""

        exclude = ("preferences",)


def _factor_view() -> Schema:
    from authsvc.api.schemas.factors import FactorView

    return FactorView()


class OwnDataView(View):
    """All data stored about one person; members of parts that are off are left out."""

    sometimes = frozenset({"mails", "factors"})

    account = fields.Nested(AccountView)
    preferences = fields.Dict(keys=fields.String())
    sessions = fields.List(fields.Nested(SessionView))
    factors = fields.List(fields.Nested(_factor_view))
    mails = fields.List(fields.Nested(MailView))
    events = fields.List(fields.Nested(OwnEventView))


class EventView(View):
    """An event as admins see it."""

    id = fields.String()
    at = Time()
    action = fields.String()
    user_id = fields.String(allow_none=True)
    actor_id = fields.String(allow_none=True)
    session_id = fields.String(allow_none=True)
    ip = fields.String(attribute="client_ip", allow_none=True)
    user_agent = fields.String(allow_none=True)
    device_id = fields.String(allow_none=True)
    account = fields.String(allow_none=True)
    detail = fields.String(allow_none=True)
    request_id = fields.String(allow_none=True)
    count = fields.Integer()


class EventPage(View):
    """One page of events, newest first."""

    items = fields.List(fields.Nested(EventView))
    next_cursor = fields.String(allow_none=True)
