"""How a password is hashed and verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Protocol

import bcrypt

from authsvc.domain.passwords.text import UNTYPABLE, utf8

#: The bcrypt costs (log2 of the rounds) that are hashed, verified and imported.
MIN_COST_LOG2, MAX_COST_LOG2 = 4, 15

#: Marks a hash over the peppered digest, to tell it from a hash over the plain password.
SCHEME = "bcrypt-hmac-sha384"
#: Django's prefix for bcrypt over the hexadecimal SHA-256 of a password; stored unchanged.
SHA256_SCHEME = "bcrypt_sha256$"
#: Stored for a user without a password, or with a password that an admin locked; matches no password.
UNUSABLE = "!"
#: Reported as scheme of a stored value that is not a hash.
MALFORMED = "malformed"

# The last characters of salt and checksum carry two and four bits. bcrypt leaves the other bits zero, so a
# hash with other characters can never compare equal.
_STORED = re.compile(
    rf"(?P<scheme>{SCHEME}|{re.escape(SHA256_SCHEME)})?"
    r"(?P<bcrypt>\$2[aby]\$(?P<cost>0[4-9]|1[0-5])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26])"
)
_KIND = re.compile(
    rf"(?:(?P<own>{SCHEME})|(?P<sha256>{re.escape(SHA256_SCHEME)}))?\$(?P<version>2[aby])\$(?P<cost>\d\d)\$"
)
#: The prefixes that other systems (Spring, Django) put before a plain bcrypt hash.
_PLAIN_PREFIXES = ("{bcrypt}", "bcrypt$")
_BCRYPT_READS_BYTES = 72


@dataclass(frozen=True, slots=True)
class Verification:
    """``is_malformed``: the stored value is not a hash, and an operator should know."""

    is_match: bool
    is_malformed: bool = False


class Passwords(Protocol):
    """Hashes and verifies passwords; a bounded implementation raises HashingBusy."""

    def hash(self, password: str) -> str:
        """The stored form of *password*."""

    def verify(self, password: str, stored: str | None) -> Verification:
        """Whether *password* matches *stored*; the same work if *stored* is None."""

    def needs_rehash(self, stored: str) -> bool:
        """True unless *stored* is of the configured scheme and cost."""

    def require_room(self) -> None:
        """Raise HashingBusy if work would be refused now; called before other work."""


@dataclass(frozen=True, slots=True)
class PasswordHasher:
    """
    bcrypt over base64(HMAC-SHA384(pepper, NFC password)): 64 bytes that depend on every byte typed.

    Stored as ``bcrypt-hmac-sha384$2b$<cost>$<salt and checksum>``.  Imported hashes are verified as in the
    system they come from, over the UTF-8 bytes as typed, not normalized: bare ``$2a$``, ``$2b$`` and ``$2y$``
    over the
    first 72 of them, ``bcrypt_sha256$$2b$`` over their SHA-256 in hexadecimal digits.

    Work is 2**``cost_log2`` rounds for every verification, except for stored hashes of higher cost: they take
    measurably longer, until the user's next login rehashes them.
    """

    pepper: bytes = field(repr=False)
    cost_log2: int

    def __post_init__(self) -> None:
        if not MIN_COST_LOG2 <= self.cost_log2 <= MAX_COST_LOG2:
            msg = f"bcrypt cost must be {MIN_COST_LOG2} to {MAX_COST_LOG2}"
            raise ValueError(msg)

    def hash(self, password: str) -> str:
        """The stored form of *password*; takes 2**``cost_log2`` rounds, all of them on one core."""
        return SCHEME + bcrypt.hashpw(self._digest(password), bcrypt.gensalt(self.cost_log2)).decode()

    def verify(self, password: str, stored: str | None) -> Verification:
        """
        Whether *password* matches *stored*; never raises, for any values.

        *stored* is None for an unknown address, UNUSABLE for a user without a password: the same work, never
        a match.
        A password with NUL or half a surrogate pair costs the same and matches nothing: no account can
        have it here, and for an imported one the bytes after NUL would be ignored.
        """
        digest = self._digest(password)
        text = self._decoy() if stored in {None, UNUSABLE} else stored
        found = _STORED.fullmatch(text)
        if found is None:
            self.verify(password, None)
            return Verification(is_match=False, is_malformed=True)
        secret = digest if found["scheme"] == SCHEME else _foreign_secret(found["scheme"], utf8(password))
        is_match = bcrypt.checkpw(secret, found["bcrypt"].encode()) and not UNTYPABLE.search(password)
        self._pad(digest, int(found["cost"]))
        return Verification(is_match=is_match)

    def needs_rehash(self, stored: str) -> bool:
        """True unless *stored* is of this scheme and cost."""
        return not stored.startswith(f"{SCHEME}$2b${self.cost_log2:02d}$")

    def require_room(self) -> None:
        """Hashing is not limited here."""

    def _decoy(self) -> str:
        """A well-formed hash with a checksum of zeros, which no known password has."""
        return f"{SCHEME}$2b${self.cost_log2:02d}${'.' * 53}"

    def _digest(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password)
        return base64.b64encode(hmac.digest(self.pepper, utf8(text), "sha384"))

    def _pad(self, digest: bytes, cost_log2: int) -> None:
        """
        Add the rounds that a hash of lower cost has less: 2**c + (2**c + 2**(c+1) + … + 2**(C-1)) = 2**C.
        """
        for missing_log2 in range(cost_log2, self.cost_log2):
            bcrypt.hashpw(digest, f"$2b${missing_log2:02d}${'.' * 22}".encode())


def _foreign_secret(scheme: str | None, typed: bytes) -> bytes:
    """The input that another system gives to bcrypt for the typed bytes."""
    if scheme == SHA256_SCHEME:
        return hashlib.sha256(typed).hexdigest().encode()
    return typed[:_BCRYPT_READS_BYTES]


def parse_imported_hash(text: str) -> str:
    """
    The stored form of *text*: a whole bcrypt hash of cost 4 to 15, as another system wrote it.

    Raises:
        ValueError: it is not; the message does not repeat it.
    """
    prefix = next(filter(text.startswith, _PLAIN_PREFIXES), "")
    found = _STORED.fullmatch(text.removeprefix(prefix))
    if found is None or found["scheme"] == SCHEME or (prefix and found["scheme"]):
        msg = f"not a $2a$, $2b$ or $2y$ bcrypt hash of cost {MIN_COST_LOG2} to {MAX_COST_LOG2}"
        raise ValueError(msg)
    return found[0]


def parse_own_hash(text: str) -> str:
    """
    *text* itself, if it is a whole hash of this service's scheme, whatever its pepper.

    Raises:
        ValueError: it is not; the message does not repeat it.
    """
    found = _STORED.fullmatch(text)
    if found is None or found["scheme"] != SCHEME:
        msg = f"not a whole {SCHEME} hash"
        raise ValueError(msg)
    return text


def pepper_id(pepper: bytes) -> str:
    """An id of *pepper* that does not reveal it: hashes can only move to a service with the same pepper."""
    return hmac.digest(pepper, b"authsvc pepper id 1", "sha256").hex()[:16]


def kind_of_hash(beginning: str) -> tuple[str, int | None]:
    """Scheme and cost (log2) of a hash with this beginning; MALFORMED if it is not a hash."""
    found = _KIND.match(beginning)
    if found is None:
        return MALFORMED, None
    name = "bcrypt_sha256" if found["sha256"] else "bcrypt"
    return SCHEME if found["own"] else f"{name} {found['version']}", int(found["cost"])
