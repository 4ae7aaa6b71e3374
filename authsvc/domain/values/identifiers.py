"""Identifiers: UUIDs with hyphens, accepted in either case and written in lower case (RFC 9562 §4)."""

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
    """A text that sorts below all identifiers of *at* or later, and above those of earlier microseconds."""
    return _timed(at, 0)


def _timed(at: datetime, random_bits: int) -> str:
    micros = max(0, (at - _EPOCH) // _MICROSECOND)
    millis, rest = divmod(micros, 1000)
    # The twelve bits after the milliseconds contain the microseconds: 1,000 values in 4,096.
    number = millis << 80 | 7 << 76 | rest << 64 | 0b10 << 62 | random_bits
    return str(uuid.UUID(int=number))


def is_id(text: str) -> bool:
    """True only for the canonical form; ``uuid.UUID`` also accepts braces, ``urn:uuid:`` and upper case."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def canonical_id(text: str) -> str | None:
    """*text* as an identifier, in any case of letters; None for anything else."""
    lower = text.lower()
    return lower if is_id(lower) else None
