"""Codes that users type: of an authenticator app (TOTP, RFC 6238), and recovery codes."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from authsvc.domain.values.identifiers import UserId

#: The parameters that all authenticator apps support: SHA-1, six digits, 30 seconds.
STEP_S = 30
DIGITS = 6
SECRET_BYTES = 20
#: Number of time steps before and after the current one whose codes are accepted.
SKEW_STEPS = 1

RECOVERY_CODES = 8
_RECOVERY_BYTES = 15
_GROUP = 4
_IGNORED = str.maketrans("", "", " -")
_CODE = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY_CODE = re.compile(r"[A-Z2-7]{24}", re.ASCII)


def new_totp_secret() -> bytes:
    """160 random bits (RFC 4226 §4)."""
    return secrets.token_bytes(SECRET_BYTES)


def matching_step(secret: bytes, typed: str, now: datetime) -> int | None:
    """The time step near *now* whose code is *typed*; None if there is none."""
    if not _CODE.fullmatch(typed):
        return None
    # All apps support SHA-1, and it is still safe in an HMAC (RFC 6238 §1.2).
    codes = HOTP(secret, DIGITS, SHA1())  # noqa: S303
    middle = int(now.timestamp()) // STEP_S
    steps = range(middle - SKEW_STEPS, middle + SKEW_STEPS + 1)
    # Compare all steps, the newest last: two steps may have the same code.
    right = [step for step in steps if hmac.compare_digest(codes.generate(step), typed.encode())]
    return right[-1] if right else None


def base32(secret: bytes) -> str:
    """*secret* in base32, for typing it into an app."""
    return base64.b32encode(secret).decode().rstrip("=")


def totp_uri(secret: bytes, *, issuer: str, account: str) -> str:
    """The ``otpauth://`` URI that a page shows as a QR code."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"
    parameters = {
        "secret": base32(secret),
        "issuer": issuer,
        "algorithm": "SHA1",
        "digits": str(DIGITS),
        "period": str(STEP_S),
    }
    return f"otpauth://totp/{label}?{urlencode(parameters, quote_via=quote)}"


def new_recovery_codes() -> list[str]:
    """Codes of 120 random bits each: 24 base32 symbols in groups of four."""
    return [_grouped(base32(secrets.token_bytes(_RECOVERY_BYTES))) for _ in range(RECOVERY_CODES)]


@dataclass(frozen=True, slots=True, repr=False)
class RecoveryDigests:
    """Keyed digests of recovery codes; SQL stores only these."""

    key: bytes

    def of(self, user_id: UserId, typed: str) -> bytes | None:
        """The digest of the code *typed*, in any case and grouping; None if it is not a code."""
        bare = typed.translate(_IGNORED).upper()
        if not typed.isascii() or not _RECOVERY_CODE.fullmatch(bare):
            return None
        body = uuid.UUID(user_id).bytes + bare.encode()
        return hmac.digest(self.key, b"authsvc recovery code 1" + body, "sha256")

    def of_all(self, user_id: UserId, codes: Sequence[str]) -> list[bytes]:
        """The digests of codes made by :func:`new_recovery_codes`."""
        return [digest for digest in (self.of(user_id, code) for code in codes) if digest is not None]


def _grouped(symbols: str) -> str:
    return "-".join(symbols[place : place + _GROUP] for place in range(0, len(symbols), _GROUP))
