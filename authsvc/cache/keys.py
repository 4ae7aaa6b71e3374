"""
Key names, built in one place: ``<prefix>:<version>:<space>:<part>…``.

In a variable part the unreserved characters of RFC 3986 and ``@`` ``+`` stay, the rest is
percent-encoded, so that ``:`` always separates and braces (the hash tags of a cluster) occur only
where this module writes them.  A part that would make the key longer than *max_length* becomes the
SHA-256 of its text, in hex.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import quote

_FIXED: Final = re.compile(r"[A-Za-z0-9._~@+-]+(?::[A-Za-z0-9._~@+-]+)*")
_HASHED_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Where a service's keys live; a new *version* leaves all old keys behind.  Length in characters."""

    prefix: str = "authsvc"
    version: str = "v1"
    max_length: int = 250

    def __post_init__(self) -> None:
        _check_fixed(self.prefix, self.version)

    @property
    def root(self) -> str:
        """What every key starts with, without the last separator."""
        return f"{self.prefix}:{self.version}"

    def key(self, *parts: str) -> str:
        """Return the key of *parts*: never the key of other parts (up to SHA-256); raises ValueError."""
        return _join(self.root, parts, self.max_length)

    def space(self, name: str, *, ttl_s: int) -> Space:
        """Declare the keys called *name* (fixed text, may contain ``:``), which live *ttl_s* seconds."""
        return Space(keys=self, name=name, ttl_s=ttl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Keys of one kind, with the life of their values in seconds."""

    keys: KeySpace
    name: str
    ttl_s: int

    def __post_init__(self) -> None:
        _check_fixed(self.name)

    def key(self, *parts: str) -> str:
        """Return the key of *parts* in this space."""
        return _join(f"{self.keys.root}:{self.name}", parts, self.keys.max_length)

    def lease(self, key: str) -> str:
        """
        Return the key of the lease on *key*.

        It starts like every key (an ACL allows ``<prefix>:*`` alone), and its hash tag is *key*
        itself, so that a cluster keeps both in one slot.
        """
        return f"{self.keys.root}:lease:{{{key}}}"


def _check_fixed(*texts: str) -> None:
    for text in texts:
        if not _FIXED.fullmatch(text):
            raise ValueError("prefix, version and name take unreserved characters, @ and +")


def _join(root: str, parts: Sequence[str], max_length: int) -> str:
    quoted = [quote(part, safe="@+", errors="surrogatepass") for part in parts]
    key = ":".join((root, *quoted))
    return key if len(key) <= max_length else _shortened(root, parts, quoted, max_length)


def _shortened(root: str, parts: Sequence[str], quoted: list[str], max_length: int) -> str:
    """Hash the longest part, then the next, until the key fits."""
    for index in sorted(range(len(parts)), key=lambda at: len(quoted[at]), reverse=True):
        if len(quoted[index]) <= _HASHED_LENGTH:
            break
        quoted[index] = sha256(parts[index].encode(errors="surrogatepass")).hexdigest()
        key = ":".join((root, *quoted))
        if len(key) <= max_length:
            return key
    raise ValueError("too many parts for the length of a key")
