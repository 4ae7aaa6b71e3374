"""Keys derived from TOKEN_SECRET, one for each purpose; a key is useless for any other purpose."""

from __future__ import annotations

import hmac
from enum import Enum


class KeyPurpose(Enum):
    """What a derived key is for; the label is the input of the derivation and must never change."""

    DEVICE_TOKENS = b"authsvc device key 1"
    LOG_DIGESTS = b"authsvc log digest 1"
    TICKETS = b"authsvc ticket key 1"
    CHALLENGES = b"authsvc challenge key 1"


def derived_key(token_secret: bytes, purpose: KeyPurpose) -> bytes:
    """The key for *purpose*: HMAC-SHA-256 of its label, the same in every process."""
    return hmac.digest(token_secret, purpose.value, "sha256")
