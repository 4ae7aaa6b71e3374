"""Security events as structured log lines, counters, and rows of the audit trail."""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass, field, replace

from authsvc.domain.audit import OPERATIONAL, TALLIED, Action, Entry, Event, current_origin
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import is_id, timed_id
from authsvc.observability.metrics import Metrics
from authsvc.observability.redaction import email_digest, scrub_text
from authsvc.observability.trail import Tally, TrailWriter

log = logging.getLogger("authsvc.audit")

#: For events that any caller can cause: equal ones within this time share a row, up to this many rows per
#: process.
TALLY_WINDOW_S = 900
TALLY_ROWS = 1000

_ALARMING = frozenset(
    {
        *(Action.REFRESH_REUSED, Action.HASH_MALFORMED, Action.LIMIT_REACHED, Action.LIMIT_UNCOUNTED),
        *(Action.MAIL_FAILED, Action.FACTOR_LOCKED),
    }
)
_LOGGED = (
    *("account", "user_id", "session_id", "actor_id", "client_ip", "user_agent", "device_id", "detail"),
)
_LENGTHS = {"client_ip": 45, "user_agent": 512, "device_id": 200, "detail": 200}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAudit:
    """
    Writes one log line per event, with ids and fixed words only, counts it, and has it stored.

    The account of a login attempt is stored as a digest keyed with *key*: records about one account can be
    matched, but not found from a list of addresses.
    """

    metrics: Metrics
    key: bytes = field(repr=False)
    writer: TrailWriter
    clock: Clock
    tally: Tally = field(default_factory=lambda: Tally(window_s=TALLY_WINDOW_S, most=TALLY_ROWS))

    def record(self, event: Event) -> None:
        """Log, count and store *event*; see :class:`TrailWriter` for what happens when SQL is away."""
        if event.action is Action.LIMIT_REACHED:
            self.metrics.rate_limited(event.detail or "")
        entry = self.draft(event)
        self.stored(entry)
        if event.action in TALLIED:
            self._tally(entry, subject=event.client_ip)
        elif event.action not in OPERATIONAL:
            # An event that no request caused must not delay the request that noticed it.
            store = self.writer.put_and_wait if event.origin is None else self.writer.put
            store(entry)

    def stored(self, entry: Entry) -> None:
        """Count and log *entry*, whose row the caller writes."""
        self.metrics.security_event(entry.action)
        level = logging.WARNING if entry.action in _ALARMING else logging.INFO
        facts = {name: getattr(entry, name) for name in _LOGGED}
        log.log(
            level, entry.action, extra={name: value for name, value in facts.items() if value is not None}
        )

    def draft(self, event: Event) -> Entry:
        """The row of *event*, with data of the request that this thread handles."""
        now, origin = self.clock(), event.origin or current_origin()
        return Entry(
            id=timed_id(now),
            at=now,
            action=event.action.value,
            user_id=_id(event.user_id),
            actor_id=_id(event.actor_id or origin.actor_id),
            session_id=_id(event.session_id),
            client_ip=_text("client_ip", event.client_ip or origin.client_ip),
            user_agent=_text("user_agent", origin.user_agent),
            device_id=_text("device_id", event.device_id),
            account=email_digest(self.key, event.account) if event.account else None,
            detail=_text("detail", event.detail),
            request_id=origin.request_id,
            once=self._shared(event.action, event.once) if event.once else None,
        )

    def _tally(self, entry: Entry, *, subject: str | None) -> None:
        """Store the first event of its kind, later only increases of its row's count; does not wait."""
        kind = [entry.detail, entry.user_id, entry.session_id, entry.account, subject]
        once = self._shared(entry.action, *kind, self.tally.window(entry.at))
        rise = self.tally.see(once, entry.at)
        if rise is None:
            self.writer.lose(1)
        elif rise:
            self.writer.put(replace(entry, once=once, count=rise))

    def _shared(self, *parts: object) -> str:
        """The key that all entries of one row share, as a digest."""
        return hmac.digest(self.key, repr(parts).encode("utf-8", "replace"), "sha256").hex()


def _id(text: str | None) -> str | None:
    """*text* if it is an identifier, else None: the columns accept nothing else."""
    return text if text is not None and is_id(text) else None


def _text(name: str, text: str | None) -> str | None:
    """*text*, redacted for storage: callers choose it, and could put a secret or an address there."""
    return None if text is None else scrub_text(text)[: _LENGTHS[name]].replace("\x00", "")
