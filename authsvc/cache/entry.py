"""
A cached record as a JSON object that a person can read: the record's own fields, ``_v`` for the
version of its row and ``_s`` for the version of this shape.

What is read back is believed only if it says of itself that it is the record asked for, in the shape
asked for.  Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, NoReturn, TypeAlias

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_ROW_VERSION: Final = "_v"
_SCHEMA: Final = "_s"


class Missing(Enum):
    """The type of :data:`MISSING`, for annotations."""

    MISSING = "missing"


#: Nothing there.  Not None, which is a value like any other.
MISSING: Final = Missing.MISSING


class Flaw(StrEnum):
    """Why a stored value is not believed; short and finite, so that it may label a metric."""

    UNDECODABLE = "undecodable"
    OTHER_SCHEMA = "other_schema"
    OTHER_ID = "other_id"


@dataclass(frozen=True, slots=True)
class Entry:
    """The *fields* of a record as of *row_version*, which only ever rises."""

    fields: Mapping[str, Json]
    row_version: int


def encode(entry: Entry, *, schema: int) -> bytes:
    """Return *entry* as JSON in UTF-8; raises ValueError where JSON cannot say it exactly."""
    if _ROW_VERSION in entry.fields or _SCHEMA in entry.fields:
        raise ValueError(f"{_ROW_VERSION} and {_SCHEMA} are reserved")
    stored = {**entry.fields, _ROW_VERSION: entry.row_version, _SCHEMA: schema}
    return json.dumps(stored, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def decode(raw: bytes, *, schema: int, id_field: str, id_value: str) -> Entry | Flaw:
    """Return the entry stored as *raw* if it is the record *id_value* in shape *schema*, else why not."""
    try:
        stored = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return Flaw.UNDECODABLE
    if not isinstance(stored, dict):
        return Flaw.UNDECODABLE
    row_version = stored.pop(_ROW_VERSION, None)
    if type(row_version) is not int:
        return Flaw.UNDECODABLE
    if stored.pop(_SCHEMA, None) != schema:
        return Flaw.OTHER_SCHEMA
    return Entry(stored, row_version) if stored.get(id_field) == id_value else Flaw.OTHER_ID


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
