"""
Challenges: a login or a passkey ceremony issues one, to be answered within five minutes.

A challenge is an authenticated text; issuing one stores nothing.  Its id is marked as used, by an INSERT, in
the transaction that acts on the answer.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from authsvc.domain.errors import CodeInvalid
from authsvc.domain.values.identifiers import UserId, new_id

#: Life of a challenge, in seconds.
CHALLENGE_LIFE_S = 300

#: Purpose, id, user, password version, round of tries, end in seconds; the device id follows.
_LAYOUT = struct.Struct(">B16s16sQQQ")
_TAG_BYTES = 32
_NOBODY = bytes(16)


class Aim(IntEnum):
    """The purpose of a challenge; the number is part of the authenticated text."""

    #: The second step of a login.
    LOGIN = 1
    #: A login with a passkey alone.
    PASSKEY_LOGIN = 2
    #: A passkey as second step; it has its own challenge in addition to that of the login.
    PASSKEY_SECOND = 3
    PASSKEY_STEP_UP = 4
    PASSKEY_REGISTRATION = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Invalid once used or expired, once the user's password changed, or after too many wrong answers."""

    id: str
    aim: Aim
    #: None if any user may answer.
    user_id: UserId | None
    password_version: int
    #: Which group of tries it belongs to; see :mod:`authsvc.domain.accounts.second_factor`.
    round: int
    expires_at: datetime
    #: The device id of the login, for the session.
    device_id: str | None = None


def new_challenge(
    aim: Aim,
    *,
    now: datetime,
    user_id: UserId | None = None,
    password_version: int = 0,
    tries_round: int = 0,
    device_id: str | None = None,
) -> Challenge:
    """A challenge issued at *now*."""
    end = now.replace(microsecond=0) + timedelta(seconds=CHALLENGE_LIFE_S)
    return Challenge(
        id=new_id(),
        aim=aim,
        user_id=user_id,
        password_version=password_version,
        round=tries_round,
        expires_at=end,
        device_id=device_id,
    )


@dataclass(frozen=True, slots=True, repr=False)
class ChallengeTexts:
    """Writes challenges and reads them back, authenticated by HMAC-SHA-256."""

    key: bytes

    def seal(self, challenge: Challenge) -> bytes:
        """The bytes of *challenge* and their authentication tag."""
        body = _LAYOUT.pack(
            challenge.aim,
            uuid.UUID(challenge.id).bytes,
            uuid.UUID(challenge.user_id).bytes if challenge.user_id else _NOBODY,
            challenge.password_version,
            challenge.round,
            int(challenge.expires_at.timestamp()),
        )
        body += (challenge.device_id or "").encode()
        return body + self._tag(body)

    def open(self, sealed: bytes, aim: Aim, *, now: datetime) -> Challenge:
        """The challenge in *sealed*; raises CodeInvalid if it is forged, expired or for another purpose."""
        body, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
        if len(body) < _LAYOUT.size or not hmac.compare_digest(tag, self._tag(body)):
            raise CodeInvalid("challenge: not genuine")
        challenge = _parsed(body)
        if challenge.aim is not aim or now >= challenge.expires_at:
            raise CodeInvalid("challenge: expired, or of another kind")
        return challenge

    def text(self, challenge: Challenge) -> str:
        """The same as base64url, as a caller gets it."""
        return base64.urlsafe_b64encode(self.seal(challenge)).rstrip(b"=").decode()

    def read(self, text: str, aim: Aim, *, now: datetime) -> Challenge:
        """The challenge in *text*, which must be in canonical encoding; raises CodeInvalid."""
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise CodeInvalid("challenge: not base64url") from error
        if base64.urlsafe_b64encode(sealed).rstrip(b"=").decode() != text:
            raise CodeInvalid("challenge: another encoding")
        return self.open(sealed, aim, now=now)

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self.key, b"authsvc challenge 1" + body, "sha256")


def _parsed(body: bytes) -> Challenge:
    """The fields of a genuine *body*."""
    aim, ident, user, version, tries_round, end_s = _LAYOUT.unpack_from(body)
    return Challenge(
        id=str(uuid.UUID(bytes=ident)),
        aim=Aim(aim),
        user_id=UserId(str(uuid.UUID(bytes=user))) if user != _NOBODY else None,
        password_version=version,
        round=tries_round,
        expires_at=datetime.fromtimestamp(end_s, UTC),
        device_id=body[_LAYOUT.size :].decode() or None,
    )
