"""The types of values, with strict parsers: one spelling per value."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

T = TypeVar("T")
E = TypeVar("E", bound="Enum")

_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")
_LIMIT = re.compile(r"([1-9][0-9]{0,17})/([1-9][0-9]{0,17})?(second|minute|hour|day)s?")
_SWITCH = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
_UNIT_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")

SERVICE_LINK_ADVICE = (
    "comes from a Kubernetes service link: set `enableServiceLinks: false` in the pod's spec"
)
#: Names of roles; verifiers accept every such name.
ROLE_PATTERN = r"[a-z][a-z0-9_-]{0,31}"
#: Largest number of names that fit into a token and a header.
MAX_ROLES = 32
MAX_QUOTA = 1_000_000
MIN_SECRET_BYTES = 32
STRONG_SECRET = f"at least {MIN_SECRET_BYTES} random bytes, as from `openssl rand -base64 48`"
MAX_WINDOW_S = 30 * 86_400
#: Largest number of characters of a wrong value that a message repeats.
SHOWN_CHARACTERS = 40


class InvalidValue(ValueError):
    """A text is not a valid value; the message says why and never repeats a secret."""


def shown(text: str) -> str:
    """*text* in quotes, shortened, with control characters replaced by ``?``."""
    cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
    return "'" + "".join(c if c.isprintable() else "?" for c in cut) + "'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """Converts a text to a value: ``parse`` raises InvalidValue, ``expected`` completes its message."""

    expected: str
    parse: Callable[[str], T]
    is_secret: bool = False


class Secret:
    """
    Text that is masked wherever it is printed, formatted or copied into a report.

    Not a dataclass: ``dataclasses.asdict`` would copy its fields and reveal the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one call that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)


def revealed(secret: Secret | None) -> bytes:
    """The bytes of a required secret; raises ValueError if it is None."""
    if secret is None:
        raise ValueError("a secret is missing: development makes its own with ensure_development_files()")
    return secret.reveal().encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSetting:
    """At most *quota* attempts in any *window_s* seconds."""

    quota: int
    window_s: int


def whole(low: int, high: int) -> Kind[int]:
    """ASCII digits from *low* to *high*: no sign, space, underscore or leading zero."""

    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise InvalidValue(f"is {shown(text)}")
        return int(text)

    return Kind(expected=f"a whole number from {low} to {high}", parse=parse)


def port() -> Kind[int]:
    """A TCP port; Kubernetes writes ``tcp://…`` into variables of this shape."""
    number = whole(1, 65_535)

    def parse(text: str) -> int:
        if SERVICE_LINK.match(text):
            raise InvalidValue(f"is {shown(text)}, which {SERVICE_LINK_ADVICE}")
        return number.parse(text)

    return Kind(expected=number.expected, parse=parse)


def switch() -> Kind[bool]:
    """True or false in six spellings, in any case."""

    def parse(text: str) -> bool:
        if text.lower() not in _SWITCH:
            raise InvalidValue(f"is {shown(text)}")
        return _SWITCH[text.lower()]

    return Kind(expected="`true`, `on` or `1`, or `false`, `off` or `0`", parse=parse)


def choice(members: type[E]) -> Kind[E]:
    """One of the enumeration's values, in any case."""
    by_text = {str(member.value): member for member in members}

    def parse(text: str) -> E:
        if text.lower() not in by_text:
            raise InvalidValue(f"is {shown(text)}")
        return by_text[text.lower()]

    return Kind(expected="one of " + ", ".join(f"`{name}`" for name in by_text), parse=parse)


def matching(pattern: str, expected: str) -> Kind[str]:
    """Text that *pattern* matches in full."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise InvalidValue(f"is {shown(text)}")
        return text

    return Kind(expected=expected, parse=parse)


def printable() -> Kind[str]:
    """A name of printable characters."""
    return matching(r"[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces")


def hidden(expected: str) -> Kind[Secret]:
    """Any text, as a Secret."""
    return Kind(expected=expected, parse=Secret, is_secret=True)


def limit() -> Kind[LimitSetting | None]:
    """``<n>/<unit>``, ``<n>/<k><unit>`` or ``off`` (None)."""

    def parse(text: str) -> LimitSetting | None:
        if text.lower() == "off":
            return None
        match = _LIMIT.fullmatch(text.lower())
        if not match:
            raise InvalidValue(f"is {shown(text)}")
        quota, count, unit = match.groups()
        return _bounded(LimitSetting(quota=int(quota), window_s=int(count or 1) * _UNIT_S[unit]))

    return Kind(
        expected="`off`, or attempts per time such as `20/hour` or `10/15minutes`"
        f" (at most {MAX_QUOTA} in at most 30 days)",
        parse=parse,
    )


def role_names() -> Kind[tuple[str, ...]]:
    """Names of roles, separated by commas; the empty text means none."""

    def parse(text: str) -> tuple[str, ...]:
        names = text.split(",") if text else []
        if not all(re.fullmatch(ROLE_PATTERN, name) for name in names):
            raise InvalidValue(f"is {shown(text)}")
        if len(set(names)) < len(names):
            raise InvalidValue("names a role twice")
        if len(names) > MAX_ROLES:
            raise InvalidValue(f"names {len(names)} roles")
        return tuple(names)

    expected = f"at most {MAX_ROLES} names `[a-z][a-z0-9_-]{{0,31}}`, separated by commas, or nothing"
    return Kind(expected=expected, parse=parse)


def _bounded(setting: LimitSetting) -> LimitSetting:
    if setting.quota > MAX_QUOTA or setting.window_s > MAX_WINDOW_S:
        raise InvalidValue(f"is out of range ({setting.quota} in {setting.window_s} s)")
    return setting
