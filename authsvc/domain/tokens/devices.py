"""
Device tokens: proof that the user has logged in on this device before.

Unknown devices share one small limit of login attempts per account; a known device has its own. So strangers
cannot lock the owner out. The token is not a credential: it only selects the counter.
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
    """A device of an account: a random number, and the account's versions at the login."""

    nonce: bytes
    stamp: bytes

    @classmethod
    def of(
        cls, user_id: str, password_version: int, known: Device | None = None, *, device_version: int = 0
    ) -> Device:
        """The device *known*, or a new one, after a login with these versions."""
        nonce = known.nonce if known else secrets.token_bytes(_NONCE_BYTES)
        return cls(nonce=nonce, stamp=_stamp(user_id, password_version, device_version))

    def belongs_to(self, user_id: str, password_version: int, *, device_version: int = 0) -> bool:
        """
        False if it belongs to another user, or if the password was changed or devices were forgotten since.
        """
        return hmac.compare_digest(self.stamp, _stamp(user_id, password_version, device_version))


@dataclass(frozen=True, slots=True, repr=False)
class DeviceTokens:
    """
    Makes and reads device tokens: base64url of nonce, time, stamp and an HMAC-SHA-256 tag.

    The stamp contains the user's id, so that a change of address forgets no device. The tag of 0.1.0 tokens
    also covers the address, so they are valid only for that one.
    """

    key: bytes

    def issue(self, device: Device, *, now: datetime) -> str:
        """Issue a token of *device*, valid for LIFETIME_S from *now*."""
        body = device.nonce + int(now.timestamp()).to_bytes(_TIME_BYTES) + device.stamp
        return base64.urlsafe_b64encode(body + self._tag(body)).decode()

    def read(self, text: str, account: str, *, now: datetime) -> Device | None:
        """
        The device of *text*; None unless it is a genuine token that has not expired.

        :meth:`Device.belongs_to` checks the owner; a token of 0.1.0 is genuine only for *account* (the
        subject of its limit).
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
    # The second number is left out while it is 0, so that device tokens of 0.1.0 stay valid.
    versions = f"{password_version} {device_version}" if device_version else f"{password_version}"
    return hashlib.sha256(f"{user_id} {versions}".encode()).digest()[:_STAMP_BYTES]
