"""The thread that sends what waits in the outbox; one in each worker process."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from authsvc.domain.accounts.mails import Delivery, Mail, MailState, Outbox, next_try, wording
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.mail.letters import Letters
from authsvc.mail.transports import MailRefused, RelayUnavailable, Transport

INTERVAL_S: Final = 1.0
#: Mails that are claimed at once; their lease is as long as two of them may take at worst.
BATCH: Final = 10
#: So many failures in a row, and nothing is tried for so long (seconds).
MOST_FAILURES: Final = 5
PAUSE_S: Final = 30.0
MINUTE_S: Final = 60.0
#: A claimed mail is not begun when its lease has run for longer than this (seconds).
BEGUN_WITHIN_S: Final = 25.0

log = logging.getLogger(__name__)


def _unheard(_template: str, _result: str) -> None:
    """Stand in for a callback that nobody gave."""


@dataclass(slots=True, kw_only=True)
class MailRun:
    """
    One round after another over the outbox; holds no transaction while the relay is talked to.

    *most_per_minute* bounds what this process sends.  *on_result* hears of each mail: template and
    ``sent``, ``retried``, ``failed`` or ``void``.
    """

    outbox: Outbox
    letters: Letters
    transport: Transport
    clock: Clock
    monotonic: Monotonic
    most_per_minute: int
    on_result: Callable[[str, str], None] = _unheard
    #: Names this process in the leases.
    owner: str = field(default_factory=lambda: secrets.token_hex(16))
    _failures: int = field(default=0, init=False)
    _paused_until_s: float = field(default=0.0, init=False)
    _sent_at_s: list[float] = field(default_factory=list, init=False)

    def round(self, is_over: Callable[[], bool] = lambda: False) -> int:
        """Send what is due; how many mails were taken.  Raises StoreUnavailable."""
        now_s = self.monotonic()
        if now_s < self._paused_until_s:
            return 0
        self._sent_at_s = [at_s for at_s in self._sent_at_s if now_s - at_s < MINUTE_S]
        room = min(BATCH, self.most_per_minute - len(self._sent_at_s))
        claimed = self.outbox.claim(most=room, now=self.clock(), owner=self.owner) if room > 0 else ()
        for delivery in claimed:
            is_late = self.monotonic() - now_s > BEGUN_WITHIN_S
            if is_late or is_over() or self.monotonic() < self._paused_until_s:
                self._put_back(delivery.mail)
            else:
                self._deliver(delivery)
        return len(claimed)

    def _deliver(self, delivery: Delivery) -> None:
        """One mail, whatever happens to it; a mail that nobody thought of must not stop the others."""
        mail = delivery.mail
        words = wording(delivery, self.clock())
        if words is None:
            self._settle(mail, MailState.VOID, "void")
            return
        try:
            message = self.letters.letter(mail, words, delivery.ticket)
            self._sent_at_s.append(self.monotonic())
            self.transport.send(message)
        except MailRefused as refused:
            self._failed(mail, str(refused), for_good=True)
        except RelayUnavailable as lost:
            self._failed(mail, str(lost), for_good=False)
        except Exception as error:
            log.exception("mail.crashed", extra={"mail": mail.id})
            self._failed(mail, type(error).__name__, for_good=False)
        else:
            self._succeeded(mail)

    def _succeeded(self, mail: Mail) -> None:
        had_failed, self._failures = self._failures > 0, 0
        self._settle(mail, MailState.SENT, "sent")
        if had_failed:
            self.outbox.bring_forward(now=self.clock())

    def _failed(self, mail: Mail, cause: str, *, for_good: bool) -> None:
        again_at = None if for_good else next_try(mail, self.clock())
        log.warning("mail.failed", extra={"mail": mail.id, "cause": cause, "is_final": again_at is None})
        if again_at is None:
            self._settle(mail, MailState.FAILED, "failed")
        else:
            self.outbox.settle(
                mail,
                MailState.QUEUED,
                owner=self.owner,
                now=self.clock(),
                next_try_at=again_at,
                waits_for_relay=True,
            )
            self.on_result(mail.template.value, "retried")
        if not for_good:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                self._paused_until_s = self.monotonic() + PAUSE_S

    def _settle(self, mail: Mail, state: MailState, result: str) -> None:
        self.outbox.settle(mail, state, owner=self.owner, now=self.clock())
        self.on_result(mail.template.value, result)

    def _put_back(self, mail: Mail) -> None:
        """Let others have a mail that was claimed and not begun: that was no try."""
        self.outbox.release(mail, owner=self.owner)


class MailThread:
    """Runs rounds on a thread of its own, and at once when it is woken."""

    def __init__(self, run: MailRun, alongside: Callable[[], object]) -> None:
        self._run_once = run
        self._alongside = alongside
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mail-sender", daemon=True)

    def start(self) -> None:
        """Begin; once per process, after the fork."""
        self._thread.start()

    def wake(self) -> None:
        """A mail was committed: do not wait for the second to pass."""
        self._wake.set()

    def close(self) -> None:
        """Finish the mail in hand, and stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            if self._round() == 0:
                self._wake.wait(INTERVAL_S)

    def _round(self) -> int:
        try:
            taken = self._run_once.round(self._stop.is_set)
            self._alongside()
        except StoreUnavailable as error:
            log.debug("mail.delayed", extra={"cause": error.store})
            return 0
        except Exception:
            # The edge of the thread: it must outlive what nobody thought of.
            log.exception("mail.crashed")
            return 0
        return taken
