"""
Recognises plain token checks by their bytes: a small part of HTTP, and None for everything else.

gunicorn's parser reads everything.  What this one accepts, both must read alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from authsvc.server.arrival import MAX_FIELD_BYTES

MAX_FIELDS: Final = 64
#: How many requests are remembered by their bytes, and their longest size: 6 MB in all at most.
REMEMBERED_REQUESTS: Final = 2048
MAX_REMEMBERED_BYTES: Final = 2048


class CheckRequest(NamedTuple):
    """What a check says, stripped."""

    path: str
    query: str
    authorization: bytes
    request_id: bytes
    traceparent: bytes
    origin: bytes
    closes: bool


_PLAIN: Final = ""
_ODD: Final = "odd"
_HOST: Final = "host"
_AUTHORIZATION: Final = "authorization"
_REQUEST_ID: Final = "x-request-id"
_CONNECTION: Final = "connection"
_TRACEPARENT: Final = "traceparent"
_ORIGIN: Final = "origin"
_READ: Final = frozenset({_HOST, _AUTHORIZATION, _REQUEST_ID, _CONNECTION, _TRACEPARENT, _ORIGIN})
#: Fields that frame a message, or may appear only once.
_FRAMING: Final = frozenset(
    {"content-length", "transfer-encoding", "content-type", "expect", "upgrade", "trailer", "te"}
)
#: A field's name, in fewer characters than RFC 9110 §5.6.2 allows; gunicorn refuses underscores.
_NAME: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_PLAIN_HOST: Final = re.compile(rb"[A-Za-z0-9.-]{1,255}(?::[0-9]{1,5})?")
#: Tab, CR, LF, visible ASCII, space and what RFC 9110 §5.5 calls obs-text.
_TAKEN: Final = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])
_CLOSES: Final = {b"": False, b"keep-alive": False, b"close": True}


@lru_cache(maxsize=1024)
def _kind_of(name: bytes) -> str:
    """What a field is to a check, by its *name*; clients send few."""
    if not _NAME.fullmatch(name):
        return _ODD
    known = name.decode().lower()
    if known in _FRAMING:
        return _ODD
    return known if known in _READ else _PLAIN


class CheckReader:
    """Reads requests that are checks beyond doubt: one of *methods* by path, whole, alone, without a body."""

    def __init__(self, methods: Mapping[str, Sequence[str]]) -> None:
        targets = (f"{method} {path}" for path, some in methods.items() for method in some)
        any_target = "|".join(map(re.escape, targets)).encode()
        line = re.compile(rb"(%b)(?:\?([A-Za-z0-9_.~:/%%&=+-]{0,1024}))? HTTP/1\.1" % any_target)

        @lru_cache(maxsize=256)
        def target_of(first: bytes) -> tuple[str, str] | None:
            found = line.fullmatch(first)
            if found is None:
                return None
            return found[1].decode().partition(" ")[2], (found[2] or b"").decode()

        self._target_of = target_of
        self._known: dict[bytes, CheckRequest] = {}

    def read(self, data: bytes) -> CheckRequest | None:
        """The check in *data*; None for everything else, which includes two of them."""
        known = self._known.get(data)
        if known is None and (known := self._parse(data)) is not None:
            self._remember(data, known)
        return known

    def _remember(self, data: bytes, request: CheckRequest) -> None:
        """Many clients repeat the same bytes; those that send request ids do not, and are not remembered."""
        if request.request_id or request.traceparent or len(data) > MAX_REMEMBERED_BYTES:
            return
        while len(self._known) >= REMEMBERED_REQUESTS:
            del self._known[next(iter(self._known))]
        self._known[data] = request

    def _parse(self, data: bytes) -> CheckRequest | None:
        if len(data) > MAX_FIELD_BYTES or data[-4:] != b"\r\n\r\n" or data.translate(None, _TAKEN):
            return None
        first, *fields = data[:-4].split(b"\r\n")
        target = self._target_of(first)
        lines = len(fields) + 2
        is_sane = lines <= MAX_FIELDS and data.count(b"\n") == lines and data.count(b"\r") == lines
        found = _fields_of(fields) if target is not None and is_sane else None
        if target is None or found is None or _AUTHORIZATION not in found:
            return None
        if not _PLAIN_HOST.fullmatch(found.get(_HOST, b"")):  # Flask refuses some
            return None
        closes = _CLOSES.get(found.get(_CONNECTION, b"").lower())
        if closes is None:
            return None
        return CheckRequest(
            *target,
            found[_AUTHORIZATION],
            found.get(_REQUEST_ID, b""),
            found.get(_TRACEPARENT, b""),
            found.get(_ORIGIN, b""),
            closes,
        )


def _fields_of(lines: list[bytes]) -> dict[str, bytes] | None:
    """The fields that are read, each of which may come once; None where one is odd."""
    found: dict[str, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        kind = _kind_of(name)
        if kind:
            if kind is _ODD or kind in found:
                return None
            found[kind] = value.strip(b" \t")
        if not colon:
            return None
    return found
