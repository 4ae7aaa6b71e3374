"""What makes a password fit, and how one is hashed and verified."""

from __future__ import annotations

import base64
import hmac
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Protocol

import bcrypt

from authsvc.domain.values.emails import Email, InvalidEmail, canonical_email

#: UTF-8 bytes of the NFC form.
MAX_SIZE_BYTES = 1024

#: The bcrypt costs (log2 of the rounds) that are hashed, verified and imported.
MIN_COST_LOG2, MAX_COST_LOG2 = 4, 15

#: Tags a hash of the peppered digest, so that it is never taken for one of the bare password.
SCHEME = "bcrypt-hmac-sha384"

# The last characters of salt and checksum carry two and four bits: only those that leave the rest
# zero can have come out of bcrypt, and only those compare equal again.
_BCRYPT = re.compile(
    r"\$2[aby]\$(?P<cost>0[4-9]|1[0-5])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_BCRYPT_READS_BYTES = 72
_UNTYPABLE = re.compile("[\x00\ud800-\udfff]")

#: So many of the commonest passwords are kept however short: they are guessed in a row (``monkeymonkey``).
_COMMONEST = 1000
_FEW_KEYS = 3
_RUNS = "abcdefghijklmnopqrstuvwxyz qwertyuiopasdfghjklzxcvbnm 12345678901234567890"
_SERVICE_WORDS = re.compile(
    r"(?:(?:authsvc|authentication|auth|password|passphrase|passwd|administrator|admin|session|service|"
    r"welcome|changeme|default|letmein|secret|login|user|test|this|the|my|is)[\W_]*)+[\d\W_]{0,4}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordPolicy:
    """The rules for a new password; ``min_length`` counts code points of the NFC form."""

    min_length: int

    def problems(self, password: str, *, email: Email) -> list[str]:
        """What is wrong with *password* for the account *email*, in words for its owner; empty if nothing."""
        text = unicodedata.normalize("NFC", password)
        size_problems = self._size_problems(text)
        return size_problems or self._guessing_problems(text, email)

    def _size_problems(self, text: str) -> list[str]:
        problems = []
        if len(text) < self.min_length:
            problems.append(f"must have at least {self.min_length} characters")
        if len(_utf8(text)) > MAX_SIZE_BYTES:
            problems.append(f"must have at most {MAX_SIZE_BYTES} bytes")
        if _UNTYPABLE.search(text):
            problems.append("must not contain NUL or half a surrogate pair")
        return problems

    def _guessing_problems(self, text: str, email: Email) -> list[str]:
        folded = text.casefold()
        guesses = {folded, _repeated_unit(folded)}
        if _is_pattern(guesses) or guesses & _common_words(self.min_length):
            return ["is too common"]
        if guesses & {email, email.partition("@")[0]} or _spells(text, email):
            return ["must not be the e-mail address"]
        return []


@dataclass(frozen=True, slots=True)
class Verification:
    """``is_malformed``: the stored hash is none, which an operator should hear of."""

    is_match: bool
    is_malformed: bool = False


class Passwords(Protocol):
    """Hashes and verifies passwords; raises HashingBusy where that is bounded."""

    def hash(self, password: str) -> str:
        """The stored form of *password*."""

    def verify(self, password: str, stored: str | None) -> Verification:
        """Whether *password* is the one that *stored* was made of; the same work where there is none."""

    def needs_rehash(self, stored: str) -> bool:
        """True unless *stored* is of the configured scheme and cost."""


@dataclass(frozen=True, slots=True)
class PasswordHasher:
    """
    bcrypt over base64(HMAC-SHA384(pepper, NFC password)): 64 bytes that depend on every byte typed.

    Stored as ``bcrypt-hmac-sha384$2b$<cost>$<salt and checksum>``.  Bare ``$2a$``, ``$2b$`` and ``$2y$``
    hashes (imported) are verified as their origin did: over the UTF-8 bytes as typed, not normalized,
    the first 72 of them.  Work is 2**``cost_log2`` rounds for every verification, except for stored
    hashes of higher cost: they take longer, visibly, until their owner's next login rehashes them.
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
        Whether *password* is the one that *stored* was made of; never raises, whatever either is.

        *stored* is None for an address that nobody has: the same code and work, and never a match.
        A password with NUL or half a surrogate pair costs the same and matches nothing: no account can
        have it here, and for an imported one the bytes after NUL would be ignored.
        """
        digest = self._digest(password)
        text = self._decoy() if stored is None else stored
        bare = text.removeprefix(SCHEME)
        found = _BCRYPT.fullmatch(bare)
        if found is None:
            self.verify(password, None)
            return Verification(is_match=False, is_malformed=True)
        secret = _utf8(password)[:_BCRYPT_READS_BYTES] if bare == text else digest
        is_match = bcrypt.checkpw(secret, bare.encode()) and not _UNTYPABLE.search(password)
        self._pad(digest, int(found["cost"]))
        return Verification(is_match=is_match)

    def needs_rehash(self, stored: str) -> bool:
        """True unless *stored* is of this scheme and cost."""
        return not stored.startswith(f"{SCHEME}$2b${self.cost_log2:02d}$")

    def _decoy(self) -> str:
        """A well-formed hash with a checksum of zeros, which nothing is known to have."""
        return f"{SCHEME}$2b${self.cost_log2:02d}${'.' * 53}"

    def _digest(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password)
        return base64.b64encode(hmac.digest(self.pepper, _utf8(text), "sha384"))

    def _pad(self, digest: bytes, cost_log2: int) -> None:
        """Do the rounds that a hash of lower cost saved: 2**c + (2**c + 2**(c+1) + … + 2**(C-1)) = 2**C."""
        for missing_log2 in range(cost_log2, self.cost_log2):
            bcrypt.hashpw(digest, f"$2b${missing_log2:02d}${'.' * 22}".encode())


def parse_imported_hash(text: str) -> str:
    """
    *text* itself, if it is a whole ``$2a$``, ``$2b$`` or ``$2y$`` hash of cost 4 to 15.

    Raises:
        ValueError: it is not; the message does not repeat it.
    """
    if _BCRYPT.fullmatch(text) is None:
        msg = f"not a $2a$, $2b$ or $2y$ bcrypt hash of cost {MIN_COST_LOG2} to {MAX_COST_LOG2}"
        raise ValueError(msg)
    return text


def _utf8(text: str) -> bytes:
    """Bytes of any text at all: JSON can carry half a surrogate pair, and a login must not raise on it."""
    return text.encode("utf-8", "surrogatepass")


def _repeated_unit(text: str) -> str:
    """What *text* repeats, the last time maybe in part: ``abc`` for ``abcabcab``, mostly *text* itself."""
    return next((text[:size] for size in range(1, len(text)) if text.startswith(text[size:])), text)


def _is_pattern(guesses: set[str]) -> bool:
    """One of *guesses* (lower case) is a few keys, a run of neighbours, or words of this service alone."""
    return any(
        len(guess) <= _FEW_KEYS or guess in _RUNS or guess[::-1] in _RUNS or _SERVICE_WORDS.fullmatch(guess)
        for guess in guesses
    )


def _spells(text: str, email: Email) -> bool:
    """*text* is *email* in another spelling (case, U-labels)."""
    try:
        return canonical_email(text) == email
    except InvalidEmail:
        return False


@cache
def _common_words(min_length: int) -> frozenset[str]:
    """The listed passwords of *min_length* characters and more, the commonest of any; lower case."""
    return frozenset(
        word.casefold()
        for place, word in enumerate(_listed_passwords())
        if place < _COMMONEST or len(word) >= min_length
    )


def _listed_passwords() -> list[str]:
    """
    The 30,000 passwords that zxcvbn carries, commonest first; reading them takes 20 ms.

    Its list module is run by itself and dropped: importing the package takes 130 ms and keeps 15 MB.
    """
    package = find_spec("zxcvbn")
    lists = package and PathFinder.find_spec("frequency_lists", package.submodule_search_locations)
    if lists is None or lists.loader is None:
        raise ModuleNotFoundError(name="zxcvbn")
    module = module_from_spec(lists)
    lists.loader.exec_module(module)
    words: list[str] = module.FREQUENCY_LISTS["passwords"]
    return words
