"""Levels of authentication of a session and its tokens (RFC 9470)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any

#: The order in which methods are named in ``amr``.
_ORDER = ("pwd", "otp", "pop", "user", "mfa")


class Acr(StrEnum):
    """Classes of authentication, the weakest first (NIST SP 800-63B; ``phr``: OpenID EAP)."""

    AAL1 = "aal1"
    AAL2 = "aal2"
    #: Phishing-resistant.
    PHR = "phr"

    @property
    def rank(self) -> int:
        """Higher is stronger."""
        return _RANKS[self]


_RANKS = {acr: rank for rank, acr in enumerate(Acr)}


class Method(Enum):
    """Authentication methods: the class that each gives, and its names in ``amr`` (RFC 8176)."""

    PASSWORD = (Acr.AAL1, ("pwd",))
    #: A TOTP or a recovery code, with a password or in a session.
    CODE = (Acr.AAL2, ("otp",))
    #: A passkey without user verification, with a password or in a session.
    PASSKEY = (Acr.AAL2, ("pop",))
    VERIFIED_PASSKEY = (Acr.PHR, ("pop", "user"))

    def __init__(self, acr: Acr, names: tuple[str, ...]) -> None:
        self.acr = acr
        self.names = names


@dataclass(frozen=True, slots=True)
class Level:
    """The level of a session; ``auth_time`` is the last authentication (seconds since the epoch)."""

    acr: Acr
    amr: tuple[str, ...]
    auth_time: int

    def claims(self) -> dict[str, Any]:
        """The claims in tokens and answers."""
        return {"acr": self.acr.value, "amr": list(self.amr), "auth_time": self.auth_time}

    def after(self, *methods: Method, at: datetime) -> Level:
        """The level after *methods* were also used *at* that time; never lower."""
        acr = max(self.acr, *(method.acr for method in methods), key=lambda acr: acr.rank)
        names = {*self.amr, *(name for method in methods for name in method.names)}
        if acr is not Acr.AAL1:
            names.add("mfa")
        return Level(acr, tuple(name for name in _ORDER if name in names), int(at.timestamp()))


def level_of(*methods: Method, at: datetime) -> Level:
    """The level of a new session that was opened with *methods*."""
    return Level(Acr.AAL1, (), 0).after(*methods, at=at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """
    A required level: the weakest accepted class, and the longest time since the authentication (seconds).
    """

    acr: Acr | None = None
    max_age_s: int | None = None

    @property
    def challenge(self) -> str:
        """The parameters of the ``WWW-Authenticate`` header for it (RFC 9470 §3)."""
        age = "" if self.max_age_s is None else f', max_age="{self.max_age_s}"'
        acr = "" if self.acr is None else f', acr_values="{self.acr}"'
        return f'error="insufficient_user_authentication"{age}{acr}'

    @property
    def is_nothing(self) -> bool:
        """True if nothing is required."""
        return self.acr is None and self.max_age_s is None

    def is_met_by(self, level: Level | None, now_s: float) -> bool:
        """
        True if *level* suffices at *now_s* (seconds since the epoch); None suffices only if nothing is
        required.
        """
        if level is None:
            return self.is_nothing
        is_strong = self.acr is None or level.acr.rank >= self.acr.rank
        return is_strong and (self.max_age_s is None or int(now_s) - level.auth_time <= self.max_age_s)
