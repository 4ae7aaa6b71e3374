"""One record as one line: JSON for machines, columns for people. No field can forge a second line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple, TypeAlias

from authsvc.observability.redaction import scrub, scrub_text

#: Up to this size (PIPE_BUF), the kernel does not mix lines of several processes on one pipe.
MAX_LINE_BYTES = 4096
MAX_TEXT_CHARS = 1024
#: Only the end of a traceback is kept: the innermost frames and the error itself.
MAX_EXCEPTION_CHARS = 3000
SHORT_EXCEPTION_CHARS = 400
MAX_ITEMS = 50
MAX_DEPTH = 4


class Record(NamedTuple):
    """What happened; *created_s* in seconds since the epoch, fields as :func:`plain` leaves them."""

    created_s: float
    level: str
    event: str
    #: Request id and trace id; empty for none.
    request: tuple[str, str]
    fields: Mapping[str, object]


Render: TypeAlias = Callable[[Record], bytes]

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def plain(value: object, depth: int = MAX_DEPTH) -> object:
    """Return *value* as JSON's own types, cut short, so that it can be rendered later by another thread."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _plain_items(value, depth - 1) if depth else "…"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)[:MAX_TEXT_CHARS]


def json_line(record: Record) -> bytes:
    """
    Render *record* as a JSON object in ASCII; a line that is too long loses its fields, never its event.
    """
    line = _json(record, record.fields)
    if len(line) <= MAX_LINE_BYTES:
        return line
    exception = str(record.fields.get("exception", ""))[-SHORT_EXCEPTION_CHARS:]
    return _json(record, {"truncated": True} | ({"exception": exception} if exception else {}))


def console_line(record: Record) -> bytes:
    """Render *record* for a terminal; a traceback follows, indented, so that it cannot pass for a record."""
    fields = _scrubbed(record.request, record.fields)
    exception = str(fields.pop("exception", ""))
    words = [_timestamp(record), f"{record.level:<8}", _word(scrub_text(record.event))]
    words += [f"{_word(name)}={_word(value)}" for name, value in fields.items()]
    lines = [" ".join(words)]
    lines += [f"    {_escaped(line)}" for line in exception.splitlines()]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _plain_items(value: Mapping[object, object] | Iterable[object], depth: int) -> object:
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth) for key, item in islice(value.items(), MAX_ITEMS)}
    return [plain(item, depth) for item in islice(value, MAX_ITEMS)]


def _json(record: Record, fields: Mapping[str, object]) -> bytes:
    fixed = {
        "timestamp": _timestamp(record),
        "level": record.level,
        "event": scrub_text(record.event)[:MAX_TEXT_CHARS],
    }
    line = {**fixed, **_scrubbed(record.request, fields), **fixed}
    try:
        text = _encode(line)
    except ValueError:  # infinity, not a number, or an integer of more digits than Python will print
        text = _encode({**fixed, "unrenderable": sorted(fields)})
    return text.encode("ascii") + b"\n"


def _scrubbed(request: tuple[str, str], fields: Mapping[str, object]) -> dict[str, object]:
    names = zip(("request_id", "trace_id"), request, strict=True)
    scrubbed: dict[str, object] = {name: ident for name, ident in names if ident}
    for name, value in fields.items():
        scrubbed[name] = _cut(name, scrub(name, value))
    return scrubbed


def _cut(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return value[-MAX_EXCEPTION_CHARS:] if name == "exception" else value[:MAX_TEXT_CHARS]


def _timestamp(record: Record) -> str:
    return datetime.fromtimestamp(record.created_s, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _word(value: object) -> str:
    if isinstance(value, str):
        return value if value.isprintable() and value and not set(value) & set(" \"'=") else json.dumps(value)
    return json.dumps(value, default=str)


def _escaped(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
