"""
Key names, built in one place: ``<prefix>:<version>:<space>:<part>…``.

Variable parts are percent-encoded, except the unreserved characters of RFC 3986 and ``@`` ``+``. So parts
contain no separator, no pattern and no braces, which mark the hash tags of a cluster.  A part that would make
the key longer
than *max_length* becomes the SHA-256 of its text, in hex.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Final
from urllib.parse import quote

#: Allowed separators: they never occur in an encoded part, a pattern or a hash tag.
_SEPARATORS: Final = frozenset(":/|#!")
_FIXED: Final = re.compile(r"[A-Za-z0-9._~@+-]+(?:[:/|#!][A-Za-z0-9._~@+-]+)*")
_HASHED_LENGTH: Final = 64
#: Of every cluster.
_SLOTS: Final = 16_384


class Wildcard(Enum):
    """The type of :data:`ANY`, for annotations."""

    ANY = "*"


#: Matches any text in a pattern, including none and including several parts.
ANY: Final = Wildcard.ANY


def _untagged(_: str) -> str:
    """The default: no hash tag."""
    return ""


@dataclass(frozen=True, slots=True)
class KeySpace:
    """
    The key names of a service; with a new *version*, old keys are not used any more.  Length in characters.
    """

    prefix: str = "authsvc"
    version: str = "v1"
    max_length: int = 250
    separator: str = ":"

    def __post_init__(self) -> None:
        _check_fixed(self.prefix, self.version)
        if self.separator not in _SEPARATORS:
            raise ValueError(f"a separator is one of {' '.join(sorted(_SEPARATORS))}")

    @property
    def root(self) -> str:
        """The prefix of all keys, without the last separator."""
        return f"{self.prefix}{self.separator}{self.version}"

    def start(self, tag: str) -> str:
        """Return the prefix of all keys with the hash tag *tag*; if that is "", of all keys without one."""
        return f"{self.root}{self.separator}{{{tag}}}" if tag else self.root

    @property
    def channel(self) -> str:
        """Return the channel on which invalidations are published to other processes."""
        return self.separator.join((self.root, "invalidations"))

    def key(self, *parts: str) -> str:
        """
        Return the key of *parts*; different parts have different keys (up to SHA-256); raises ValueError.
        """
        return self.join(self.root, parts)

    def join(self, start: str, parts: Sequence[str]) -> str:
        """Return the key of *start* followed by *parts*."""
        quoted = [quote(part, safe="@+", errors="surrogatepass") for part in parts]
        key = self.separator.join((start, *quoted))
        return key if len(key) <= self.max_length else _shortened(self, start, parts, quoted)

    def space(self, name: str, *, ttl_s: int, tag_of: Callable[[str], str] = _untagged) -> Space:
        """
        Declare the keys called *name* (fixed text, may contain ``:``), which live *ttl_s* seconds.

        *tag_of* returns the hash tag of the keys about an ident, their first part; "": none.
        """
        return Space(keys=self, name=name, ttl_s=ttl_s, tag_of=tag_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Keys of one kind, with the lifetime of their values in seconds."""

    keys: KeySpace
    name: str
    ttl_s: int
    tag_of: Callable[[str], str] = _untagged

    def __post_init__(self) -> None:
        _check_fixed(self.name)

    def key(self, *parts: str) -> str:
        """Return the key of *parts* in this space."""
        return self.keys.join(self._start(self.tag_of(parts[0] if parts else "")), parts)

    def pattern(self, *pieces: str | Wildcard) -> str:
        """
        Return the glob pattern of the keys that match *pieces*, a sequence of texts and ANY; without any: all
        keys.
        """
        # Encoded text and fixed text contain no character with a meaning in a pattern.
        quoted = ("*" if isinstance(p, Wildcard) else quote(p, safe="@+") for p in pieces or (ANY,))
        any_tag = "*" if self.tag_of("") else ""
        return self._start(any_tag) + self.keys.separator + "".join(quoted)

    def lease(self, key: str) -> str:
        """
        Return the key of the lease on *key*.

        It has the prefix of all keys (an ACL may allow only ``<prefix>:*``), and both are in one slot of a
        cluster.
        """
        return self._lease_start + as_tag(key)

    def lease_pattern(self, *pieces: str | Wildcard) -> str:
        """Return the glob pattern of the leases on all keys of :meth:`pattern`."""
        return self._lease_start + as_tag(self.pattern(*pieces))

    def _start(self, tag: str) -> str:
        return self.keys.separator.join((self.keys.start(tag), self.name))

    @property
    def _lease_start(self) -> str:
        return self.keys.separator.join((self.keys.root, "lease", ""))


def spread_tags(count: int) -> tuple[str, ...]:
    """Return the hash tags of *count* parts, evenly spread over the slots of a cluster; one part has none."""
    if count == 1:
        return ("",)
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < count:
        slot = crc_hqx(str(number).encode(), 0) % _SLOTS
        tags.setdefault(slot * count // _SLOTS, str(number))
        number += 1
    return tuple(tags[part] for part in range(count))


def as_tag(key: str) -> str:
    """
    Return a prefix for keys in the slot of *key*: *key* itself if it has a hash tag, else *key* in braces.
    """
    return key if "{" in key else f"{{{key}}}"


def _check_fixed(*texts: str) -> None:
    for text in texts:
        if not _FIXED.fullmatch(text):
            raise ValueError("prefix, version and name take unreserved characters, @ and +")


def _shortened(keys: KeySpace, start: str, parts: Sequence[str], quoted: list[str]) -> str:
    """Replace the longest part by its hash, then the next longest, until the key is short enough."""
    for index in sorted(range(len(parts)), key=lambda at: len(quoted[at]), reverse=True):
        if len(quoted[index]) <= _HASHED_LENGTH:
            break
        quoted[index] = sha256(parts[index].encode(errors="surrogatepass")).hexdigest()
        key = keys.separator.join((start, *quoted))
        if len(key) <= keys.max_length:
            return key
    raise ValueError("too many parts for the length of a key")
