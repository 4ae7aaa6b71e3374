"""Strict JSON (RFC 8259): text that two parsers could read differently is rejected."""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

#: A decoded JSON value.
Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

MAX_DEPTH = 32

#: A string, even without its end, or a bracket outside of strings. Because the end is optional, a match never
#: fails and backtracks to each quote: that took seconds for a body of escaped quotes.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
#: White space as defined by RFC 8259 §2.
_TRAILING_COMMA = re.compile(r",[ \t\n\r]*[}\]]")


class InvalidJson(ValueError):
    """Not JSON, or JSON that is ambiguous: duplicate names, NaN, too deep, not UTF-8, a byte order mark."""


def parse(data: bytes, *, max_depth: int = MAX_DEPTH) -> Json:
    """
    Decode *data*, refusing duplicate names, NaN and infinities, and nesting beyond *max_depth* containers.

    Raises:
        InvalidJson: always with a message that echoes nothing of *data*.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"not UTF-8 at byte {error.start + 1}") from error
    if not text:
        raise InvalidJson("empty")
    if text.startswith("\ufeff"):
        raise InvalidJson("begins with a byte order mark")
    # As many brackets as that, also within strings, are needed to nest deeper.
    if text.count("[") + text.count("{") > max_depth and depth(text) > max_depth:
        raise InvalidJson(f"nested deeper than {max_depth}")
    try:
        return _DECODER.decode(text)  # type: ignore[no-any-return]
    except InvalidJson:
        raise
    except json.JSONDecodeError as error:
        raise InvalidJson(_fault(text, error.pos)) from error
    except ValueError as error:  # int() refuses thousands of digits
        raise InvalidJson("a number is too long") from error


def depth(text: str) -> int:
    """The deepest nesting of containers in *text*; brackets inside strings do not count."""
    deepest = level = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif found[0] in "]}":
            level -= 1
    return deepest


def canonical(value: Json) -> str:
    """The canonical text of *value*: names sorted, no white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _fault(text: str, at: int) -> str:
    """The fault in *text* at the index *at*, where the parser stopped, as a message for the caller."""
    comma = text.rfind(",", 0, at + 1)
    trailing = _TRAILING_COMMA.match(text, max(comma, 0))
    if trailing and trailing.end() > at:
        return f"a trailing comma at {_place(text, comma)}"
    return f"not JSON at {_place(text, at)}"


def _place(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """An object without duplicate names: parsers differ in which of two they keep."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidJson("an object has one name twice")
    return members


def _refuse(_name: str) -> NoReturn:
    """NaN and the infinities are not JSON."""
    raise InvalidJson("NaN and infinities are not JSON")


def _finite(text: str) -> float:
    """A float that JSON can write again: ``1e999`` is none."""
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJson("a number is out of range")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
