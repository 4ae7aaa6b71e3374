"""Users brought along from elsewhere, as JSON lines with bcrypt hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from authsvc.api.schemas.accounts import text
from authsvc.domain.errors import EmailTaken
from authsvc.domain.passwords.hasher import parse_imported_hash
from authsvc.domain.users import ROLES, User, UserDirectory, with_roles
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.domain.values.jsontext import Json, parse

Report = Callable[[dict[str, Any]], None]


class Line(Schema):
    """One user of the file."""

    email = text(1024, required=True)
    password_hash = fields.String(required=True)
    name = text(200, allow_none=True)
    phone = text(64, allow_none=True)
    roles = fields.List(fields.String(validate=validate.OneOf(ROLES)))
    created_at = fields.AwareDateTime(format="iso")


def import_users(lines: Iterable[bytes], users: UserDirectory, *, now: Clock, report: Report) -> Counter[str]:
    """
    Add each line's user; *report* hears of every line, imported, there already or refused with a reason.

    A rerun finds what is there and harms nothing.  Raises StoreUnavailable.
    """
    counts = Counter(imported=0, exists=0, refused=0)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            result = {"line": number, **_import(line, users, now())}
            counts[result["result"]] += 1
            report(result)
    return counts


def _import(line: bytes, users: UserDirectory, now: datetime) -> dict[str, Any]:
    """What became of one line; nothing in it but the address comes from the line."""
    data: Json = None
    try:
        data = parse(line)
        form = Line().load(data)  # type: ignore[arg-type]  # what is no object is refused by it
        user, password_hash = _user(form, now), parse_imported_hash(form["password_hash"])
    except ValidationError as error:
        fields_at_fault = ", ".join(sorted(map(str, error.messages_dict)))
        return _refused(data, f"wrong or missing: {fields_at_fault}")
    except ValueError as error:
        return _refused(data, str(error))
    try:
        users.revocations.publish(users.store.add(user, password_hash))
    except EmailTaken:
        return {"email": user.email, "result": "exists"}
    return {"email": user.email, "result": "imported"}


def _refused(data: Json, reason: str) -> dict[str, Any]:
    """A refused line, with its address if that much of it is right."""
    address = data.get("email") if isinstance(data, dict) else None
    try:
        email = canonical_email(address) if isinstance(address, str) else None
    except InvalidEmail:
        email = None
    return {"email": email, "result": "refused", "reason": reason}


def _user(data: dict[str, Any], now: datetime) -> User:
    return User(
        id=UserId(new_id()),
        email=canonical_email(data["email"]),
        name=data.get("name"),
        phone=data.get("phone"),
        roles=with_roles(tuple(data.get("roles", ()))),
        created_at=data.get("created_at", now),
        updated_at=now,
    )
