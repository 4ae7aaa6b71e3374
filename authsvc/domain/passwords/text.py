"""Passwords as text: their bytes, and characters that none may contain."""

from __future__ import annotations

import re

#: NUL and lone surrogates: no account can have a password with them.
UNTYPABLE = re.compile("[\x00\ud800-\udfff]")


def utf8(text: str) -> bytes:
    """Bytes of any text at all: JSON can carry half a surrogate pair, and a login must not raise on it."""
    return text.encode("utf-8", "surrogatepass")
