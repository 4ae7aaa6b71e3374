"""Identifiers: UUIDs with hyphens, taken in either case and written in lower case (RFC 9562 §4)."""

from __future__ import annotations

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import NewType

UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)
#: A token's ``jti`` (RFC 7519 §4.1.7).
TokenId = NewType("TokenId", str)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def new_id() -> str:
    """A random identifier."""
    return str(uuid.uuid4())


def timed_id(at: datetime) -> str:
    """An identifier (UUID version 7, RFC 9562 §5.7 and §6.2) that sorts by *at*, to the microsecond."""
    return _timed(at, secrets.randbits(62))


def lowest_timed_id(at: datetime) -> str:
    """What sorts below every identifier of *at* or later, and above those of an earlier microsecond."""
    return _timed(at, 0)


def _timed(at: datetime, random_bits: int) -> str:
    micros = max(0, (at - _EPOCH) // _MICROSECOND)
    millis, rest = divmod(micros, 1000)
    # The twelve bits behind the milliseconds hold their fraction: 1,000 values in 4,096.
    number = millis << 80 | 7 << 76 | rest << 64 | 0b10 << 62 | random_bits
    return str(uuid.UUID(int=number))


def is_id(text: str) -> bool:
    """True for the canonical form alone; ``uuid.UUID`` takes braces, ``urn:uuid:`` and upper case, too."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def canonical_id(text: str) -> str | None:
    """The identifier that *text* is in upper, lower or mixed case; None for anything else."""
    lower = text.lower()
    return lower if is_id(lower) else None
