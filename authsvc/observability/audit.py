"""Security events as structured log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from authsvc.domain.audit import Action, Event

log = logging.getLogger("authsvc.audit")

_ALARMING = frozenset(
    {Action.REFRESH_REUSED, Action.HASH_MALFORMED, Action.LIMIT_REACHED, Action.LIMIT_UNCOUNTED}
)


@dataclass(frozen=True, slots=True)
class LoggedAudit:
    """Writes one record per event, ids and words alone; *limit_reached* hears the rule of each refusal."""

    limit_reached: Callable[[str], None]

    def record(self, event: Event) -> None:
        """Hand *event* to the log, which neither blocks nor raises."""
        if event.action is Action.LIMIT_REACHED:
            self.limit_reached(event.detail or "")
        fields = {
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
