"""The export of all data about one user, for that user."""

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

#: Largest number of events in an export; the newest are kept.
MOST_EVENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnData:
    """All data of one user, from one snapshot of SQL."""

    user: User
    sessions: Sequence[Session]
    #: Without their secrets.
    factors: Sequence[Factor]
    mails: Sequence[Mail]
    events: Sequence[Entry]


class OwnDataStore(Protocol):
    """Reads it.  Raises StoreUnavailable."""

    def snapshot(self, user_id: UserId, *, most_events: int) -> OwnData:
        """All data of one user, from one snapshot; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDataExport:
    """Exports the data of a user, within a daily limit."""

    store: OwnDataStore
    limits: Limits
    audit: AuditLog

    def read(self, user_id: UserId) -> OwnData:
        """All data of the caller; raises RateLimited, StoreUnavailable."""
        taken = self.limits.take(Rule.EXPORT, user_id)
        try:
            found = self.store.snapshot(user_id, most_events=MOST_EVENTS)
        except BaseException:
            self.limits.refund(taken)
            raise
        self.audit.record(Event(Action.ACCOUNT_EXPORTED, user_id=user_id))
        return found
