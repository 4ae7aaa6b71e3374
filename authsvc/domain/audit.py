"""
Security events: what happened, who did it to whom, and from where.

Each is a line in the log, a counter and, unless it is operational, a row of the audit trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from authsvc.domain.values.identifiers import UserId


class Action(StrEnum):
    """Every event by its name, ``noun.verb``."""

    USER_REGISTERED = "user.registered"
    USER_STANDING_SET = "user.standing_set"
    USER_DELETED = "user.deleted"
    USERS_IMPORTED = "users.imported"
    USERS_EXPORTED = "users.exported"
    LOGIN_SUCCEEDED = "login.succeeded"
    LOGIN_FAILED = "login.failed"
    LOGINS_NOTED = "logins.noted"
    EMAIL_CHANGED = "email.changed"
    HASH_MALFORMED = "password.hash_malformed"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105 - the name of an event
    PASSWORD_REFUSED = "password.refused"  # noqa: S105 - the name of an event
    PASSWORD_REHASHED = "password.rehashed"  # noqa: S105 - the name of an event
    PASSWORD_RESET_ASKED = "password.reset_asked"  # noqa: S105 - the name of an event
    PASSWORD_RESET = "password.reset"  # noqa: S105 - the name of an event
    EMAIL_VERIFIED = "email.verified"
    EMAIL_CHANGE_ASKED = "email.change_asked"
    USER_INVITED = "user.invited"
    ACCOUNT_EXPORTED = "account.exported"
    MAIL_FAILED = "mail.failed"
    REFRESH_REUSED = "refresh.reused"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    FACTOR_ADDED = "factor.added"
    FACTOR_REMOVED = "factor.removed"
    FACTOR_LOCKED = "factor.locked"
    FACTORS_RESET = "factors.reset"
    RECOVERY_USED = "recovery.used"
    RECOVERY_RENEWED = "recovery.renewed"
    SECOND_FACTOR_FAILED = "second_factor.failed"
    SESSION_STEPPED_UP = "session.stepped_up"
    CACHE_CLEARED = "cache.cleared"
    CLIENT_CREATED = "client.created"
    CLIENT_CHANGED = "client.changed"
    CLIENT_DELETED = "client.deleted"
    CLIENT_REFUSED = "client.refused"
    CLIENT_SECRET_ADDED = "client.secret_added"  # noqa: S105 - the name of an event
    CLIENT_SECRET_DROPPED = "client.secret_dropped"  # noqa: S105 - the name of an event
    KEY_ADDED = "key.added"
    KEY_REMOVED = "key.removed"
    LIMIT_REACHED = "limit.reached"
    LIMIT_UNCOUNTED = "limit.uncounted"
    TOKEN_UNRECORDED = "token.unrecorded"  # noqa: S105 - the name of an event


#: Operational events, not actions of a user: only in the log and the counters.
OPERATIONAL = frozenset({Action.LIMIT_UNCOUNTED, Action.TOKEN_UNRECORDED})
#: Events that any caller can cause freely: equal ones share one row for a while.
TALLIED = frozenset({Action.LIMIT_REACHED, Action.CLIENT_REFUSED})
#: Actions of operators on the command line, which has no token.
BY_OPERATORS = frozenset(
    {Action.USER_STANDING_SET, Action.PASSWORD_CHANGED, Action.EMAIL_CHANGED, Action.FACTORS_RESET}
)
#: Events that users see of their own account.
PERSONAL = frozenset(
    {
        *(Action.USER_REGISTERED, Action.USER_STANDING_SET, Action.LOGIN_SUCCEEDED, Action.LOGIN_FAILED),
        *(Action.PASSWORD_CHANGED, Action.PASSWORD_REFUSED, Action.REFRESH_REUSED, Action.USER_INVITED),
        *(Action.PASSWORD_RESET_ASKED, Action.PASSWORD_RESET, Action.ACCOUNT_EXPORTED),
        *(Action.EMAIL_VERIFIED, Action.EMAIL_CHANGE_ASKED, Action.EMAIL_CHANGED),
        *(Action.FACTOR_ADDED, Action.FACTOR_REMOVED, Action.FACTOR_LOCKED, Action.FACTORS_RESET),
        *(Action.RECOVERY_USED, Action.RECOVERY_RENEWED, Action.SECOND_FACTOR_FAILED),
        *(Action.SESSION_ENDED, Action.SESSIONS_ENDED, Action.SESSION_STEPPED_UP),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The request that a thread handles: its id, the caller, their address and user agent."""

    request_id: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    #: The user or client whose token the request has.
    actor_id: str | None = None


#: Not a request: the command line, or a background thread.
NOWHERE = Origin()

_origin: ContextVar[Origin] = ContextVar("origin", default=NOWHERE)


def bind_origin(origin: Origin) -> None:
    """Set the origin of what this thread does from now on."""
    _origin.set(origin)


def bind_actor(actor_id: str) -> None:
    """Set the user or client that makes the request, once authenticated."""
    _origin.set(replace(_origin.get(), actor_id=actor_id))


def current_origin() -> Origin:
    """The origin of what this thread does."""
    return _origin.get()


@dataclass(frozen=True, slots=True)
class Event:
    """One event; contains only ids and fixed words, never an address, a password, a token or a hash."""

    action: Action
    user_id: str | None = None
    session_id: str | None = None
    actor_id: str | None = None
    client_ip: str | None = None
    #: The account of a login attempt, as its limit counts it; only a keyed digest of it is stored.
    account: str | None = None
    detail: str | None = None
    device_id: str | None = None
    #: Set for an event that many processes may report, but that happens once: the end of a session, a new
    #: key.
    once: str | None = None
    #: The origin, if it is not the request that this thread handles.
    origin: Origin | None = None


class AuditLog(Protocol):
    """Records events."""

    def record(self, event: Event) -> None:
        """Record *event*; never raises, and does not wait for a store that does not answer."""


class TransactionalAuditLog(AuditLog, Protocol):
    """The same for events whose rows are stored in the transaction of the change."""

    def draft(self, event: Event) -> Entry:
        """The row of *event*."""

    def stored(self, entry: Entry) -> None:
        """Count and log *entry*, once it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the trail.  Ids rise with the time of the event: they are its order."""

    id: str
    at: datetime
    action: str
    user_id: str | None = None
    actor_id: str | None = None
    session_id: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    device_id: str | None = None
    account: str | None = None
    detail: str | None = None
    request_id: str | None = None
    #: Number of events, at least: more than one if equal events share the row.
    count: int = 1
    #: The key by which equal events share a row; None: it has its own row.
    once: str | None = None

    @property
    def is_by_another(self) -> bool:
        """True if an administrator, an operator or a service acted on the user."""
        is_operators = self.actor_id is None and self.action in BY_OPERATORS
        return is_operators or self.actor_id not in {None, self.user_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """One page of the trail, newest first; ``after`` is the last id of the page before."""

    #: Empty: all of them.
    actions: frozenset[str] = frozenset()
    user_id: str | None = None
    actor_id: str | None = None
    client_ip: str | None = None
    #: First time included, and first time excluded.
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    after: str | None = None


class AuditTrail(Protocol):
    """The rows, in SQL.  Raises StoreUnavailable."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Add *entries* in one transaction; those already stored are skipped."""

    def page(self, wanted: AuditFilter) -> list[Entry]:
        """At most ``limit + 1`` entries; the extra one shows that there is a next page."""

    def prune(self, *, before: datetime, most: int) -> int:
        """Delete the oldest entries from before *before*, at most *most*; returns their number."""


@dataclass(frozen=True, slots=True)
class AuditBook:
    """Reads the audit trail."""

    trail: AuditTrail

    def page(self, wanted: AuditFilter) -> tuple[list[Entry], str | None]:
        """The entries of one page, and the cursor of the next."""
        found = self.trail.page(wanted)
        page = found[: wanted.limit]
        return page, page[-1].id if len(found) > wanted.limit else None

    def of_user(self, user_id: UserId, *, limit: int, after: str | None) -> tuple[list[Entry], str | None]:
        """The same, with the events that users may see of their own account."""
        return self.page(AuditFilter(actions=PERSONAL, user_id=user_id, limit=limit, after=after))
