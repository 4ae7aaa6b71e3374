"""
Tracks how much of a request has arrived, so that the main loop can decide whether to wait for more.

Only the parser interprets the request, and it never waits for bytes: an error in this module gives the client
an error, but never blocks a thread. Each byte is examined once.
"""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_LINE_BYTES = 4_094
MAX_FIELDS = 100
MAX_FIELD_BYTES = 8_190
#: The limit of a whole head: eight times what proxies send.
MAX_HEAD_BYTES = 65_536
#: The limit of a body: the 64 KiB that the application accepts, one byte more so that it notices a longer
#: body, and what gunicorn's reader of chunks reads ahead.
MAX_BODY_BYTES = 65_536 + 1 + 1_024
#: The limit of a chunked body with its framing, for clients with small chunks.
MAX_RAW_BODY_BYTES = 4 * MAX_BODY_BYTES

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9a-f]+)[ \t]*(?:;[^\r\n]*)?", re.IGNORECASE)
_FIRST_LINE_1_1 = re.compile(rb"(?:\r\n)?[^\r\n]* HTTP/1\.1\r\n")


def heads_below(*paths: str) -> re.Pattern[bytes]:
    """Return a pattern for the beginning of a request to one of *paths*, or to a path below."""
    any_path = b"|".join(re.escape(path.encode()) for path in paths)
    return re.compile(rb"(?:\r\n)?[^ \r\n]+ (?:%b)[/? ]" % any_path)


class Progress(Enum):
    """What to do with a request, by the part that has arrived."""

    #: Wait for more.
    PARTIAL = auto()
    #: Answer it.
    WHOLE = auto()
    #: It is malformed: let the parser report the error.
    HOPELESS = auto()
    #: Refuse it: the head is too long.
    HEAD_TOO_LONG = auto()
    #: Answer it without the rest of its body, which is too long.
    BODY_TOO_LONG = auto()
    #: Answer it without its body, which is incomplete and not needed.
    BODY_UNREAD = auto()


class Arrival:
    """The bytes of one request, and bytes after it in the same packet."""

    __slots__ = ("_body_at", "_chunks", "_judged", "_length", "data", "expects_continue")

    def __init__(self) -> None:
        self.data: bytes | bytearray = b""
        #: True once a head has arrived that asks for "100 Continue"; set to False when that was sent.
        self.expects_continue = False
        self._judged = 0
        self._body_at = 0
        self._length = 0
        self._chunks: Chunks | None = None

    @property
    def has_head(self) -> bool:
        """True once the head is complete."""
        return self._body_at > 0

    def add(self, piece: bytes) -> Progress:
        """Append *piece* and evaluate the bytes so far."""
        if not self.data:
            self.data = piece
        else:
            if isinstance(self.data, bytes):
                self.data = bytearray(self.data)
            self.data += piece
        return self._judge_body() if self._body_at else self._judge_head()

    def _judge_head(self) -> Progress:
        data = self.data
        end = data.find(b"\r\n\r\n", max(2, self._judged - 3))  # an empty line may come first
        if (len(data) if end < 0 else end) > MAX_HEAD_BYTES:
            return Progress.HEAD_TOO_LONG
        if end < 0:
            return self._judge_half_head()
        self._body_at = end + 4
        fields = _FRAMING.findall(data, 0, end + 2)
        if not fields:
            return Progress.WHOLE
        is_plain = all(self._heed(name.lower(), value.rstrip(b" \t")) for name, value in fields)
        return self._judge_body() if is_plain else Progress.HOPELESS

    def _judge_half_head(self) -> Progress:
        """Detect a bare LF, and a first line that is too long."""
        data = self.data
        if data.count(b"\n", self._judged) != data.count(b"\r\n", max(self._judged - 1, 0)):
            return Progress.HOPELESS
        if len(data) > MAX_LINE_BYTES and data.find(b"\r\n", 2, MAX_LINE_BYTES + 4) < 0:
            return Progress.HOPELESS
        self._judged = len(data)
        return Progress.PARTIAL

    def _heed(self, name: bytes, value: bytes) -> bool:
        """Evaluate a header field about the body; False if the parser will reject it."""
        if name == b"content-length":
            digits = value.lstrip(b"0")[:9]  # nine digits exceed every limit; int() rejects thousands of them
            self._length = int(digits) if digits.isdigit() else 0
            return value.isdigit()
        if name == b"transfer-encoding":
            self._chunks = Chunks(self._body_at)
            return value.lower().endswith(b"chunked")
        self.expects_continue = _FIRST_LINE_1_1.match(self.data) is not None
        return value.lower() == b"100-continue"

    def _judge_body(self) -> Progress:
        if self._chunks is not None:
            return self._chunks.judge(self.data)
        if self._length > MAX_BODY_BYTES:
            return Progress.BODY_TOO_LONG
        return Progress.WHOLE if len(self.data) >= self._body_at + self._length else Progress.PARTIAL


class Chunks:
    """Finds the end of a chunked body."""

    __slots__ = ("_begun_bytes", "_body_at", "_line_at", "_searched", "_trailer_at")

    def __init__(self, body_at: int) -> None:
        self._body_at = body_at
        #: Position of the next chunk's size.
        self._line_at = body_at
        #: Total size of the chunks before that.
        self._begun_bytes = 0
        self._searched = body_at
        self._trailer_at = 0

    def judge(self, data: bytes | bytearray) -> Progress:
        """Evaluate the body that begins in *data*, which may only grow between calls."""
        progress = None
        while progress is None:
            progress = self._judge_trailer(data) if self._trailer_at else self._judge_chunk(data)
        if progress is Progress.PARTIAL and self._is_too_long(len(data)):
            return Progress.BODY_TOO_LONG
        return progress

    def _is_too_long(self, received_bytes: int) -> bool:
        missing_bytes = max(0, self._line_at - 2 - received_bytes)
        return (
            self._begun_bytes - missing_bytes >= MAX_BODY_BYTES
            or received_bytes - self._body_at > MAX_RAW_BODY_BYTES
        )

    def _judge_chunk(self, data: bytes | bytearray) -> Progress | None:
        """Skip one chunk; None if it was complete."""
        at = self._line_at
        if len(data) < at:
            return Progress.PARTIAL
        if at > self._body_at and data[at - 2 : at] != b"\r\n":
            return Progress.HOPELESS
        end = data.find(b"\r\n", max(at, self._searched))
        if end < 0:
            self._searched = len(data) - 1
            return Progress.PARTIAL if len(data) - at <= MAX_FIELD_BYTES else Progress.HOPELESS
        size = _CHUNK_SIZE.fullmatch(data, at, end)
        if size is None:
            return Progress.HOPELESS
        self._step_over(int(size[1], 16), end + 2)
        return None

    def _step_over(self, size: int, begin: int) -> None:
        if size == 0:
            self._trailer_at = self._searched = begin
        else:
            self._begun_bytes += size
            self._line_at = begin + size + 2

    def _judge_trailer(self, data: bytes | bytearray) -> Progress:
        begin = self._trailer_at
        if data[begin : begin + 2] == b"\r\n" or data.find(b"\r\n\r\n", self._searched) >= 0:
            return Progress.WHOLE
        self._searched = max(begin, len(data) - 3)
        return Progress.PARTIAL
