"""The thread that sends the mails of the outbox; one in each worker process."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from authsvc.domain.accounts.mails import Delivery, MailState, MailTimings, Outbox, wording
from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.mail.letters import Letters
from authsvc.mail.transports import MailDeferred, MailRefused, RelayUnavailable, Transport

#: Mails per claim.
BATCH: Final = 10
#: Consecutive failures after which sending pauses.
MOST_FAILURES: Final = 5
MINUTE_S: Final = 60.0

log = logging.getLogger(__name__)


def _new_owner() -> str:
    return secrets.token_hex(16)


@dataclass(slots=True, kw_only=True)
class MailRun:
    """
    Sends the mails of the outbox, in rounds; no transaction is open while it talks to the relay.

    *most_per_minute* limits what this process sends. *on_result* is called for each mail with template and
    ``sent``, ``retried``, ``failed`` or ``void``.
    """

    outbox: Outbox
    letters: Letters
    transport: Transport
    audit: AuditLog
    clock: Clock
    monotonic: Monotonic
    most_per_minute: int
    on_result: Callable[[str, str], None]
    timings: MailTimings = field(default_factory=MailTimings)
    #: Names this process in the leases.
    owner: str = field(default_factory=_new_owner)
    _failures: int = field(default=0, init=False)
    _paused_until_s: float = field(default=0.0, init=False)
    #: False at first and after a failure: the next success makes mails due that wait for the relay.
    _is_relay_up: bool = field(default=False, init=False)
    _sent_at_s: list[float] = field(default_factory=list, init=False)
    #: Results that are not stored in SQL yet.
    _unwritten: list[Callable[[], None]] = field(default_factory=list, init=False)

    def start(self) -> None:
        """Take a name of its own for this process: the one that it was made in may have forked others."""
        self.owner = _new_owner()

    def round(self, is_over: Callable[[], bool] = lambda: False) -> int:
        """Send the mails that are due; returns the number of claimed mails. Raises StoreUnavailable."""
        self._write()
        began_s = self.monotonic()
        room = self._room(began_s)
        claimed = self._claim(room) if room > 0 else ()
        for delivery in claimed:
            if is_over() or not self._may_begin(began_s):
                self._later(partial(self.outbox.release, delivery.mail, owner=self.owner))
            else:
                self._deliver(delivery)
        self._write()
        return len(claimed)

    def state(self) -> str | None:
        """``up`` or ``delayed``; None if SQL is away."""
        try:
            _, oldest_s = self.outbox.waiting(now=self.clock())
        except StoreUnavailable:
            return None
        return "delayed" if oldest_s > self.timings.delayed_s else "up"

    def _claim(self, room: int) -> Sequence[Delivery]:
        return self.outbox.claim(most=room, now=self.clock(), owner=self.owner, lease_s=self.timings.lease_s)

    def _room(self, now_s: float) -> int:
        """How many mails may be claimed now."""
        if now_s < self._paused_until_s:
            return 0
        self._sent_at_s = [at_s for at_s in self._sent_at_s if now_s - at_s < MINUTE_S]
        return min(BATCH, self.most_per_minute - len(self._sent_at_s))

    def _may_begin(self, began_s: float) -> bool:
        """True if the lease is long enough, sending is not paused, and SQL accepts results."""
        now_s = self.monotonic()
        return (
            now_s - began_s <= self.timings.begun_within_s
            and now_s >= self._paused_until_s
            and not self._unwritten
        )

    def _deliver(self, delivery: Delivery) -> None:
        """Send one mail; an unexpected error in one must not stop the others."""
        words = wording(delivery, self.clock())
        if words is None:
            self._settle(delivery, MailState.VOID, "void")
            return
        try:
            message = self.letters.letter(delivery.mail, words, delivery.ticket)
            self._sent_at_s.append(self.monotonic())
            self.transport.send(message)
        except MailRefused as refused:
            self._fail(delivery, str(refused))
        except (MailDeferred, RelayUnavailable) as error:
            self._note_failure()
            self._try_again(delivery, str(error), waits_for_relay=isinstance(error, RelayUnavailable))
        except Exception as error:  # noqa: BLE001 - the class alone: its text may quote an address
            self._try_again(delivery, type(error).__name__, waits_for_relay=False)
        else:
            self._succeeded(delivery)

    def _succeeded(self, delivery: Delivery) -> None:
        self._failures = 0
        self._settle(delivery, MailState.SENT, "sent")
        if not self._is_relay_up:
            self._is_relay_up = True
            self._later(lambda: self.outbox.bring_forward(now=self.clock()))

    def _note_failure(self) -> None:
        self._is_relay_up = False
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self._failures = 0
            self._paused_until_s = self.monotonic() + self.timings.pause_s

    def _try_again(self, delivery: Delivery, cause: str, *, waits_for_relay: bool) -> None:
        again_at = self.timings.next_try(delivery.mail, self.clock())
        if again_at is None:
            self._fail(delivery, cause)
            return
        log.warning("mail.retried", extra={"mail": delivery.mail.id, "cause": cause})
        self._settle(
            delivery, MailState.QUEUED, "retried", next_try_at=again_at, waits_for_relay=waits_for_relay
        )

    def _fail(self, delivery: Delivery, cause: str) -> None:
        """Give the mail up; the audit event has the reason."""
        mail, user = delivery.mail, delivery.user
        detail = f"{mail.template} {mail.id}: {cause}"
        failed = Event(Action.MAIL_FAILED, user_id=user.id if user else None, detail=detail)
        self._settle(delivery, MailState.FAILED, "failed", event=failed)

    def _settle(
        self,
        delivery: Delivery,
        state: MailState,
        result: str,
        *,
        next_try_at: datetime | None = None,
        waits_for_relay: bool = False,
        event: Event | None = None,
    ) -> None:
        """Store the result of an attempt, and report it once it is stored."""
        mail = delivery.mail

        def write() -> None:
            is_written = self.outbox.settle(
                mail,
                state,
                owner=self.owner,
                now=self.clock(),
                next_try_at=next_try_at,
                waits_for_relay=waits_for_relay,
            )
            if not is_written:
                log.warning("mail.lease_lost", extra={"mail": mail.id, "result": result})
                return
            self.on_result(mail.template.value, result)
            if event is not None:
                self.audit.record(event)

        self._later(write)

    def _later(self, write: Callable[[], None]) -> None:
        """Store a result now if SQL answers, else before the next mails are claimed."""
        self._unwritten.append(write)
        with suppress(StoreUnavailable):
            self._write()

    def _write(self) -> None:
        """Store the remaining results, in order; raises StoreUnavailable."""
        while self._unwritten:
            write = self._unwritten.pop(0)
            try:
                write()
            except StoreUnavailable:
                self._unwritten.insert(0, write)
                raise


class MailThread:
    """Runs rounds on its own thread, and at once when it is woken."""

    def __init__(self, run: MailRun, alongside: Callable[[], object]) -> None:
        self._run_once = run
        self._alongside = alongside
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; once per process, after the fork."""
        self._run_once.start()
        self._thread = threading.Thread(target=self._run, name="mail-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Start a round now, because a mail was committed."""
        self._wake.set()

    def close(self) -> None:
        """Finish the current mail, and stop."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            if self._round() == 0:
                self._wake.wait(self._run_once.timings.interval_s)

    def _round(self) -> int:
        try:
            taken = self._run_once.round(self._stop.is_set)
            self._alongside()
        except StoreUnavailable as error:
            log.debug("mail.delayed", extra={"cause": error.store})
            return 0
        except Exception:
            # Top of the thread: it must go on after an unexpected error.
            log.exception("mail.crashed")
            return 0
        return taken
