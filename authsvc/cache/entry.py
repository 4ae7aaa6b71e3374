"""
A cached record as a readable JSON object: the record's own fields, ``_v`` for the
version of its row and ``_s`` for the version of this shape; ``_t`` for the versions of its tags and
``_n`` for a record that is known not to exist.

A value is used only if its record and shape are the requested ones. Nothing is ever unpickled.  A
text beyond a size is compressed: ``z<row version>:<length>:<zlib>``; the version stays readable for the
scripts in Redis.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, NoReturn, TypeAlias

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_ROW_VERSION: Final = "_v"
_SCHEMA: Final = "_s"
_TAGS: Final = "_t"
_NEGATIVE: Final = "_n"
_RESERVED: Final = frozenset({_ROW_VERSION, _SCHEMA, _TAGS, _NEGATIVE})

#: The row version of a negative entry: every real row is newer.
NEGATIVE_VERSION: Final = -1
#: Longest uncompressed text of a value: a few bytes of zlib can expand to gigabytes.
LARGEST_TEXT_BYTES: Final = 16 << 20

_PACKED: Final = re.compile(rb"z(?:-?[0-9]{1,20}):([0-9]{1,10}):", re.DOTALL)


class Missing(Enum):
    """The type of :data:`MISSING`, for annotations."""

    MISSING = "missing"


#: There is no value.  Not None, because None is a valid value.
MISSING: Final = Missing.MISSING


class Flaw(StrEnum):
    """Why a stored value is not used; short words, suitable as labels of a metric."""

    UNDECODABLE = "undecodable"
    OTHER_SCHEMA = "other_schema"
    OTHER_ID = "other_id"


@dataclass(frozen=True, slots=True)
class Entry:
    """
    The *fields* of a record at *row_version*, which only rises.

    *tags* maps names to their versions before the record was read.
    """

    fields: Mapping[str, Json]
    row_version: int
    tags: Mapping[str, str] = field(default_factory=dict)
    is_negative: bool = False


def encode(entry: Entry, *, schema: int) -> bytes:
    """Return *entry* as JSON in UTF-8; raises ValueError if JSON cannot represent it exactly."""
    if not _RESERVED.isdisjoint(entry.fields):
        raise ValueError(f"{', '.join(sorted(_RESERVED))} are reserved")
    stored: dict[str, Json] = {**entry.fields, _ROW_VERSION: entry.row_version, _SCHEMA: schema}
    if entry.tags:
        stored[_TAGS] = dict(entry.tags)
    if entry.is_negative:
        stored[_NEGATIVE] = True
    return to_json(stored)


def decode(raw: bytes, *, schema: int, id_field: str, id_value: str) -> Entry | Flaw:
    """Return the entry stored as *raw* if it is the record *id_value* in shape *schema*, else the Flaw."""
    stored = from_json(raw)
    if not isinstance(stored, dict):
        return Flaw.UNDECODABLE
    row_version = stored.pop(_ROW_VERSION, None)
    tags = stored.pop(_TAGS, None) or {}
    if type(row_version) is not int or not isinstance(tags, dict):
        return Flaw.UNDECODABLE
    if stored.pop(_SCHEMA, None) != schema:
        return Flaw.OTHER_SCHEMA
    is_negative = bool(stored.pop(_NEGATIVE, None))
    if stored.get(id_field) != id_value:
        return Flaw.OTHER_ID
    versions = {name: str(version) for name, version in tags.items()} if tags else {}
    return Entry(stored, row_version, versions, is_negative)


def to_json(value: Json) -> bytes:
    """Return *value* as compact JSON in UTF-8; raises ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def from_json(raw: bytes) -> Json | Missing:
    """Return the value in *raw*, decompressed if it is compressed; MISSING if it is not JSON."""
    text = raw if raw[:1] != b"z" else unpack(raw)
    if text is None:
        return MISSING
    try:
        value: Json = _DECODER.decode(text.decode())
    except (ValueError, RecursionError):
        return MISSING
    return value


def pack(text: bytes, *, row_version: int, over_bytes: int | None) -> bytes:
    """Return *text*, compressed if it is longer than *over_bytes* and if that makes it shorter."""
    if over_bytes is None or not over_bytes < len(text) <= LARGEST_TEXT_BYTES:
        return text
    packed = b"z%d:%d:%b" % (row_version, len(text), zlib.compress(text, 6))
    return packed if len(packed) < len(text) else text


def unpack(raw: bytes) -> bytes | None:
    """Return the text packed in *raw*; None if it is damaged or its length is not the stated one."""
    head = _PACKED.match(raw)
    if head is None:
        return None
    length = int(head.group(1))
    if length > LARGEST_TEXT_BYTES:
        return None
    unpacking = zlib.decompressobj()
    try:
        # Read at most one byte more than stated: enough to detect a wrong length.
        text = unpacking.decompress(raw[head.end() :], length + 1)
    except zlib.error:
        return None
    return text if unpacking.eof and len(text) == length else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


#: Made once: with `parse_constant`, `json.loads` would make a new decoder for each text.
_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
