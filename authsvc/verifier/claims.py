"""Reads access tokens with the service's own reader, and checks their time."""

from __future__ import annotations

from collections.abc import Callable

from authsvc.domain.tokens.claims import (
    Claims,
    CommonClaims,
    InvalidToken,
    MachineClaims,
    Rules,
    bearer_token,
)
from authsvc.domain.tokens.claims import read as read_claims
from authsvc.domain.values.levels import Acr, Level, Requirement
from authsvc.verifier.errors import TokenInvalid
from authsvc.verifier.keys import VerifyingKey

__all__ = [
    "Acr",
    "Claims",
    "CommonClaims",
    "FindKey",
    "Level",
    "MachineClaims",
    "Requirement",
    "Rules",
    "bearer_token",
    "read",
]

#: The key with an id; None if there is none.  Raises KeysUnknown.
FindKey = Callable[[str], VerifyingKey | None]


def read(text: str, rules: Rules, find_key: FindKey, *, now_s: float) -> Claims | MachineClaims:
    """
    The claims of *text*, valid at *now_s* (seconds since the epoch); says nothing of revocation.

    Raises:
        TokenInvalid: anything is wrong with it.
        KeysUnknown: there are no keys to verify it with.
    """
    try:
        claims = read_claims(text, rules, find_key)
    except InvalidToken as error:
        raise TokenInvalid(str(error)) from error
    begins_s, ends_s = claims.window_s(rules.leeway_s)
    if now_s >= ends_s:
        raise TokenInvalid("expired")
    if now_s < begins_s:
        raise TokenInvalid("from the future")
    return claims
