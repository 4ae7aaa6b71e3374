"""Import of users from JSON lines with bcrypt hashes."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, BinaryIO

from marshmallow import Schema, ValidationError, fields, validate

from authsvc.api.schemas.accounts import role_name, storable, text
from authsvc.api.schemas.kinds import Identifier
from authsvc.domain.credentials import Credentials
from authsvc.domain.errors import Invalid
from authsvc.domain.passwords.hasher import SCHEME, parse_imported_hash, parse_own_hash
from authsvc.domain.preferences import checked
from authsvc.domain.revocations import Revocations
from authsvc.domain.users import RoleNames, User, with_roles
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.domain.values.jsontext import InvalidJson, Json, parse
from authsvc.store.accounts.transfers import Arrival, SqlUserTransfers

#: Lines per transaction, which delays readers of the log by some ten milliseconds.
BATCH = 200
#: Twice the size of a user with the largest preferences.
MAX_LINE_BYTES = 128 * 1024

#: Characters of an unknown field's name that an error message repeats.
MAX_NAME_CHARS = 64

Result = dict[str, Any]


def _in_utc(value: datetime) -> None:
    """Refuse times that do not exist in UTC."""
    try:
        value.astimezone(UTC)
    except OverflowError as error:
        raise ValidationError("Out of range.") from error


def _moment(**options: Any) -> fields.AwareDateTime:
    return fields.AwareDateTime(format="iso", validate=_in_utc, **options)


def _within_limits(value: dict[str, Json]) -> None:
    try:
        checked(value)
    except Invalid as error:
        raise ValidationError("Too large.") from error


class Line(Schema):
    """One user of the file, with the fields of other services and of `users export`."""

    email = text(1024, required=True)
    password_hash = fields.String(required=True)
    pepper_id = fields.String()
    id = Identifier()
    name = text(200, allow_none=True)
    phone = text(64, allow_none=True)
    device_id = text(200, allow_none=True)
    roles = fields.List(role_name())
    status = fields.String(validate=validate.OneOf(("active", "disabled")))
    preferences = fields.Dict(keys=fields.String(), validate=[storable, _within_limits])
    created_at = _moment()
    updated_at = _moment()
    last_login = _moment(allow_none=True)
    email_verified = fields.Boolean(truthy={True}, falsy={False})


#: Made once, because making it takes as long as reading a line.
_LINE = Line()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line: a user to import, or the reason why not."""

    number: int
    user: Credentials | None = None
    refusal: Result = field(default_factory=dict)
    #: True if the line contains the id.
    has_brought_id: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """Imports users in batches. Finished batches stay, and a second run skips them."""

    transfers: SqlUserTransfers
    revocations: Revocations
    #: The id of this service's pepper: hashes of another authsvc are usable only with the same pepper.
    pepper_id: str
    roles: RoleNames
    clock: Clock

    def run(self, source: BinaryIO, report: Callable[[Sequence[Result]], None]) -> None:
        """
        Add each line's user; *report* is called for every line, once its batch is committed.  Raises
        StoreUnavailable: all reported lines are in the database, and none of the others.
        """
        candidates = (self._read(number, line) for number, line in numbered(source))
        for batch in _batches(candidates):
            report(self._take(batch))

    def _take(self, batch: Sequence[Candidate]) -> list[Result]:
        """Insert one batch; returns the result of each line."""
        arriving = [one.user for one in batch if one.user]
        brought = {one.user.user.id for one in batch if one.user and one.has_brought_id}
        committed = self.transfers.add(arriving, brought_ids=brought)
        verdicts = iter(self.revocations.publish(committed).value)
        return [
            {"line": one.number, **(_arrived(one.user.user, next(verdicts)) if one.user else one.refusal)}
            for one in batch
        ]

    def _read(self, number: int, line: bytes | None) -> Candidate:
        data: dict[str, Json] = {}
        try:
            data = _parsed(line)
            form: dict[str, Any] = _LINE.load(data)
            self._require_roles(form.get("roles", ()))
            user = Credentials(
                user=_user(form, self.clock()), password_hash=self._hash(form), password_version=1
            )
        except ValidationError as error:
            return Candidate(number, refusal=_refused(data, _faults(data, error)))
        except ValueError as error:
            return Candidate(number, refusal=_refused(data, str(error)))
        return Candidate(number, user, has_brought_id="id" in form)

    def _require_roles(self, names: Sequence[str]) -> None:
        """Raise ValueError for a role that there is not."""
        if any(name not in self.roles for name in names):
            raise ValueError("a role that is not in ROLES")

    def _hash(self, form: dict[str, Any]) -> str:
        """The hash of a line; raises ValueError."""
        stored: str = form["password_hash"]
        if not stored.startswith(SCHEME):
            return parse_imported_hash(stored)
        if form.get("pepper_id") != self.pepper_id:
            raise ValueError("a hash of authsvc under another pepper: nobody could log in with it")
        return parse_own_hash(stored)


def numbered(source: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """
    The lines of *source* with their numbers, without the blank ones; None for one that is too long.

    Byte order marks, which some editors write and joined files repeat, are removed.
    """
    number = 0
    while line := source.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            _skip_line(source)
            yield number, None
        elif bare := line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, bare


def _skip_line(source: BinaryIO) -> None:
    while (piece := source.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
        continue


def _batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    waiting = iter(candidates)
    while batch := list(islice(waiting, BATCH)):
        yield batch


def _parsed(line: bytes | None) -> dict[str, Json]:
    """The JSON object of *line*; raises ValueError."""
    if line is None:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        data = parse(line)
    except InvalidJson as error:
        # The report has the line's number in the file.
        raise ValueError(str(error).replace("line 1, ", "")) from error
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind of error for whatever a line holds
    return data


def _faults(data: dict[str, Json], error: ValidationError) -> str:
    """The unknown, missing or wrong fields; never a value."""
    kinds: dict[str, list[str]] = {"unknown": [], "missing": [], "wrong": []}
    for name in sorted(map(str, error.messages_dict)):
        kind = "unknown" if name not in _LINE.fields else "wrong" if name in data else "missing"
        kinds[kind].append(_shown(name))
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def _shown(name: str) -> str:
    """The name of a field, shortened: a foreign file may contain anything."""
    return name if name.isidentifier() and len(name) <= MAX_NAME_CHARS else "a name that is none"


def _arrived(user: User, arrival: Arrival) -> Result:
    if arrival is Arrival.ID_TAKEN:
        return {"email": user.email, "result": "refused", "reason": "the id is somebody else's"}
    return {"email": user.email, "result": arrival.value}


def _refused(data: dict[str, Json], reason: str) -> Result:
    """The result of a refused line, with its address if that is valid."""
    address = data.get("email")
    try:
        email = canonical_email(address) if isinstance(address, str) else None
    except InvalidEmail:
        email = None
    return {"email": email, "result": "refused", "reason": reason}


def _user(data: dict[str, Any], now: datetime) -> User:
    return User(
        id=UserId(data.get("id") or new_id()),
        email=canonical_email(data["email"]),
        name=data.get("name"),
        phone=data.get("phone"),
        device_id=data.get("device_id"),
        roles=with_roles(tuple(data.get("roles", ()))),
        status=data.get("status", "active"),
        preferences=data.get("preferences", {}),
        created_at=data.get("created_at", now),
        updated_at=data.get("updated_at", now),
        last_login=data.get("last_login"),
        email_verified=data.get("email_verified", False),
    )
