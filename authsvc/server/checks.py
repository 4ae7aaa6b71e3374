"""
Recognises plain requests by their bytes: a small part of HTTP, and None for everything else.

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


class PostRequest(NamedTuple):
    """What a POST request with a JSON body, or with none, says."""

    path: str
    #: As in a WSGI environ (PEP 3333): header fields, and the address that it came from.
    environ: Mapping[str, str]
    body: bytes
    closes: bool
    #: When it had arrived (monotonic seconds).
    began_s: float


_PLAIN: Final = ""
_ODD: Final = "odd"
_HOST: Final = "host"
_AUTHORIZATION: Final = "authorization"
_REQUEST_ID: Final = "x-request-id"
_CONNECTION: Final = "connection"
_TRACEPARENT: Final = "traceparent"
_ORIGIN: Final = "origin"
_LENGTH: Final = "content-length"
_TYPE: Final = "content-type"
_READ: Final = frozenset({_HOST, _AUTHORIZATION, _REQUEST_ID, _CONNECTION, _TRACEPARENT, _ORIGIN})
#: The same of a POST request; the others of these fields are in its environ.
_READ_OF_POST: Final = _READ | {_LENGTH, _TYPE, "user-agent", "x-forwarded-for"}
#: Fields that frame a message, or may appear only once.
_FRAMING: Final = frozenset(
    {_LENGTH, "transfer-encoding", _TYPE, "content-encoding", "expect", "upgrade", "trailer", "te"}
)
#: A field's name, in fewer characters than RFC 9110 §5.6.2 allows; gunicorn refuses underscores.
_NAME: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_PLAIN_HOST: Final = re.compile(rb"[A-Za-z0-9.-]{1,255}(?::[0-9]{1,5})?")
#: Tab, CR, LF, visible ASCII, space and what RFC 9110 §5.5 calls obs-text.
_TAKEN: Final = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])
_CLOSES: Final = {b"": False, b"keep-alive": False, b"close": True}


@lru_cache(maxsize=1024)
def _kind_of(name: bytes, read: frozenset[str]) -> str:
    """What a field is to a request of which the fields *read* matter, by its *name*; clients send few."""
    if not _NAME.fullmatch(name):
        return _ODD
    known = name.decode().lower()
    if known in read:
        return known
    return _ODD if known in _FRAMING else _PLAIN


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
        if len(data) > MAX_FIELD_BYTES or data[-4:] != b"\r\n\r\n":
            return None
        first, _, _ = data.partition(b"\r\n")
        target = self._target_of(first)
        found = _head(data, _READ) if target is not None else None
        if target is None or found is None or _AUTHORIZATION not in found:
            return None
        closes = _closes(found)
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


class PostReader:
    """Reads plain POST requests to *paths*: whole, alone, with a JSON body or with none."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._path_of = {b"POST %b HTTP/1.1" % path.encode(): path for path in paths}

    def read(self, data: bytes, *, address: str, began_s: float) -> PostRequest | None:
        """The request in *data*; None for everything else."""
        first, _, _ = data.partition(b"\r\n")
        path = self._path_of.get(first)
        head, end, body = data.partition(b"\r\n\r\n")
        found = _head(head + end, _READ_OF_POST) if path is not None and end else None
        if path is None or found is None:
            return None
        closes = _closes(found)
        if closes is None or not _frames(found, body):
            return None
        environ = {"REMOTE_ADDR": address}
        for name, text in found.items():
            environ[_variable(name)] = text.decode("latin-1")
        return PostRequest(path, environ, body, closes, began_s)


@lru_cache(maxsize=64)
def _variable(field: str) -> str:
    """The name in a WSGI environ of a header *field*."""
    return f"HTTP_{field.upper().replace('-', '_')}"


def _head(data: bytes, read: frozenset[str]) -> dict[str, bytes] | None:
    """The fields of a head that are *read*; None where anything in it is odd."""
    if len(data) > MAX_FIELD_BYTES or data.translate(None, _TAKEN):
        return None
    _, *fields = data[:-4].split(b"\r\n")
    lines = len(fields) + 2
    if lines > MAX_FIELDS or data.count(b"\n") != lines or data.count(b"\r") != lines:
        return None
    found = _fields_of(fields, read)
    # Flask refuses some hosts.
    return found if found is not None and _PLAIN_HOST.fullmatch(found.get(_HOST, b"")) else None


def _closes(fields: Mapping[str, bytes]) -> bool | None:
    """Whether the client closes the connection after the answer; None if it says something unusual."""
    return _CLOSES.get(fields.get(_CONNECTION, b"").lower())


def _frames(fields: Mapping[str, bytes], body: bytes) -> bool:
    """True if *fields* say that *body* is all of a JSON body, or that there is none."""
    if fields.get(_LENGTH, b"0") != b"%d" % len(body):
        return False
    return fields.get(_TYPE) == b"application/json" if body else True


def _fields_of(lines: list[bytes], read: frozenset[str]) -> dict[str, bytes] | None:
    """The fields that are *read*, each of which may come once; None where one is odd."""
    found: dict[str, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        kind = _kind_of(name, read)
        if kind:
            if kind is _ODD or kind in found:
                return None
            found[kind] = value.strip(b" \t")
        if not colon:
            return None
    return found
