"""The rules for new passwords."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec

from authsvc.domain.passwords.text import UNTYPABLE, utf8
from authsvc.domain.values.emails import Email, InvalidEmail, canonical_email

#: UTF-8 bytes of the NFC form.
MAX_SIZE_BYTES = 1024

#: This many of the most common passwords are listed even if short, to detect their repetition
#: (``monkeymonkey``).
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
        """Violations of the policy by *password* for the account *email*, as texts for the user."""
        text = unicodedata.normalize("NFC", password)
        size_problems = self._size_problems(text)
        return size_problems or self._guessing_problems(text, email)

    def _size_problems(self, text: str) -> list[str]:
        problems = []
        if len(text) < self.min_length:
            problems.append(f"must have at least {self.min_length} characters")
        if len(utf8(text)) > MAX_SIZE_BYTES:
            problems.append(f"must have at most {MAX_SIZE_BYTES} bytes")
        if UNTYPABLE.search(text):
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


def _repeated_unit(text: str) -> str:
    """
    The unit that *text* repeats, the last one maybe cut: ``abc`` for ``abcabcab``; usually *text* itself.
    """
    return next((text[:size] for size in range(1, len(text)) if text.startswith(text[size:])), text)


def _is_pattern(guesses: set[str]) -> bool:
    """
    True if one of *guesses* (lower case) has few different characters, is a run of neighbouring keys, or only
    words of this service.
    """
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
    """
    The listed passwords with at least *min_length* characters, and the most common of any length; lower case.
    """
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
