"""Security events as structured log lines."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from authsvc.domain.audit import Action, Event
from authsvc.observability.metrics import Metrics
from authsvc.observability.redaction import email_digest

log = logging.getLogger("authsvc.audit")

_ALARMING = frozenset(
    {Action.REFRESH_REUSED, Action.HASH_MALFORMED, Action.LIMIT_REACHED, Action.LIMIT_UNCOUNTED}
)


@dataclass(frozen=True, slots=True)
class LoggedAudit:
    """
    Writes one record per event, ids and words alone, and counts it.

    An account that was tried is written as a digest under *key*: two records about it can be told to be
    about one, and nobody can look it up in a list of addresses.
    """

    metrics: Metrics
    key: bytes = field(repr=False)

    def record(self, event: Event) -> None:
        """Hand *event* to the log, which neither blocks nor raises."""
        self.metrics.security_event(event.action.value)
        if event.action is Action.LIMIT_REACHED:
            self.metrics.rate_limited(event.detail or "")
        fields = {
            "account": email_digest(self.key, event.account) if event.account else None,
            "user_id": event.user_id,
            "session_id": event.session_id,
            "actor_id": event.actor_id,
            "client_ip": event.client_ip,
            "detail": event.detail,
        }
        level = logging.WARNING if event.action in _ALARMING else logging.INFO
        log.log(
            level,
            event.action.value,
            extra={name: value for name, value in fields.items() if value is not None},
        )
