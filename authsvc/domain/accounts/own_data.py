"""What is kept about one person, for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from authsvc.domain.accounts.factors import Factor
from authsvc.domain.accounts.mails import Mail
from authsvc.domain.audit import Action, AuditLog, Entry, Event
from authsvc.domain.ratelimits import Limits, Rule
from authsvc.domain.sessions import Session
from authsvc.domain.users import User
from authsvc.domain.values.identifiers import UserId

#: Events in an export, the newest.
MOST_EVENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnData:
    """Everything, as SQL had it at one moment."""

    user: User
    sessions: Sequence[Session]
    #: Their secrets are not for an export.
    factors: Sequence[Factor]
    mails: Sequence[Mail]
    events: Sequence[Entry]


class OwnDataStore(Protocol):
    """Reads it.  Raises StoreUnavailable."""

    def snapshot(self, user_id: UserId, *, most_events: int) -> OwnData:
        """Everything about one user, of one moment; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDataExport:
    """Hands people what is kept about them, a few times a day."""

    store: OwnDataStore
    limits: Limits
    audit: AuditLog

    def read(self, user_id: UserId) -> OwnData:
        """Everything about the caller; raises RateLimited, StoreUnavailable."""
        taken = self.limits.take(Rule.EXPORT, user_id)
        try:
            found = self.store.snapshot(user_id, most_events=MOST_EVENTS)
        except BaseException:
            self.limits.refund(taken)
            raise
        self.audit.record(Event(Action.ACCOUNT_EXPORTED, user_id=user_id))
        return found
