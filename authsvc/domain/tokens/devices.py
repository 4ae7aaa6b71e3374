"""
Device tokens: proof that somebody logged in here before, on this device.

Guesses at a password by strangers share one small budget; whoever shows such a token has one of
their own.  So a thousand strangers cannot keep the owner out.  A token is no credential: it chooses a
counter, nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

#: How long a device is remembered without a login (seconds): 180 days.
LIFETIME_S = 180 * 24 * 3600

_NONCE_BYTES, _TIME_BYTES, _STAMP_BYTES = 16, 8, 8
_BODY_BYTES = _NONCE_BYTES + _TIME_BYTES + _STAMP_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device of one account, from a login on: a random number, and what the account was like then."""

    nonce: bytes
    stamp: bytes

    @classmethod
    def of(
        cls, user_id: str, password_version: int, known: Device | None = None, *, device_version: int = 0
    ) -> Device:
        """The device *known*, or a new one, as it stands after a login with these versions."""
        nonce = known.nonce if known else secrets.token_bytes(_NONCE_BYTES)
        return cls(nonce=nonce, stamp=_stamp(user_id, password_version, device_version))

    def belongs_to(self, user_id: str, password_version: int, *, device_version: int = 0) -> bool:
        """True unless the password was changed or devices were forgotten since, or it is another user's."""
        return hmac.compare_digest(self.stamp, _stamp(user_id, password_version, device_version))


@dataclass(frozen=True, slots=True, repr=False)
class DeviceTokens:
    """
    Makes and reads device tokens: base64url of nonce, time, stamp and an HMAC-SHA-256 tag.

    The stamp says whose device it is, by their id: so a change of address forgets none.  Tokens of 0.1.0 have
    a tag that covers the account as its address says, too, and are good for that one alone.
    """

    key: bytes

    def issue(self, device: Device, *, now: datetime) -> str:
        """A token of *device*, good for LIFETIME_S from *now*."""
        body = device.nonce + int(now.timestamp()).to_bytes(_TIME_BYTES) + device.stamp
        return base64.urlsafe_b64encode(body + self._tag(body)).decode()

    def read(self, text: str, account: str, *, now: datetime) -> Device | None:
        """
        The device of *text*; None unless it is a genuine token that has not expired.

        Whose it is says :meth:`Device.belongs_to`; one of 0.1.0 is genuine for *account* (the subject of
        its limit) alone.
        """
        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        body, tag = raw[:_BODY_BYTES], raw[_BODY_BYTES:]
        if not any(
            hmac.compare_digest(tag, good) for good in (self._tag(body), self._old_tag(body, account))
        ):
            return None
        issued_s = int.from_bytes(body[_NONCE_BYTES : _NONCE_BYTES + _TIME_BYTES])
        if now.timestamp() - issued_s > LIFETIME_S:
            return None
        return Device(nonce=body[:_NONCE_BYTES], stamp=body[-_STAMP_BYTES:])

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self.key, b"authsvc device token 2" + body, hashlib.sha256)

    def _old_tag(self, body: bytes, account: str) -> bytes:
        return hmac.digest(self.key, b"authsvc device token 1" + account.encode() + body, hashlib.sha256)


def _stamp(user_id: str, password_version: int, device_version: int) -> bytes:
    # Without the second number while it is 0: so device tokens of 0.1.0 stay good.
    versions = f"{password_version} {device_version}" if device_version else f"{password_version}"
    return hashlib.sha256(f"{user_id} {versions}".encode()).digest()[:_STAMP_BYTES]
