"""Identifiers in the one form that the service writes: lower-case UUIDs with hyphens."""

from __future__ import annotations

import uuid
from typing import NewType

UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)
#: A token's ``jti`` (RFC 7519 §4.1.7).
TokenId = NewType("TokenId", str)


def new_id() -> str:
    """A random identifier."""
    return str(uuid.uuid4())


def is_id(text: str) -> bool:
    """True for the canonical form alone; ``uuid.UUID`` takes braces, ``urn:uuid:`` and upper case, too."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
