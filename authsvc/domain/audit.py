"""Security events: what is worth a line in the log and a counter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Action(StrEnum):
    """Every event by its name, ``noun.verb``."""

    USER_REGISTERED = "user.registered"
    USER_STANDING_SET = "user.standing_set"
    USER_DELETED = "user.deleted"
    LOGIN_SUCCEEDED = "login.succeeded"
    LOGIN_FAILED = "login.failed"
    HASH_MALFORMED = "password.hash_malformed"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105 - the name of an event
    PASSWORD_REFUSED = "password.refused"  # noqa: S105 - the name of an event
    PASSWORD_REHASHED = "password.rehashed"  # noqa: S105 - the name of an event
    REFRESH_REUSED = "refresh.reused"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    LIMIT_REACHED = "limit.reached"
    LIMIT_UNCOUNTED = "limit.uncounted"
    TOKEN_UNRECORDED = "token.unrecorded"  # noqa: S105 - the name of an event


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ids and words alone: never an address, a password, a token or a hash."""

    action: Action
    user_id: str | None = None
    session_id: str | None = None
    actor_id: str | None = None
    client_ip: str | None = None
    #: The account that was tried, as its limit counts it; whoever keeps it keeps a keyed digest of it.
    account: str | None = None
    detail: str | None = None


class AuditLog(Protocol):
    """Where events go."""

    def record(self, event: Event) -> None:
        """Keep *event*; never raises, never blocks."""
