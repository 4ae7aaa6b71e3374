"""Follows the revocation feed on its own thread, and knows the age of its data."""

from __future__ import annotations

import json
import logging
import math
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from authsvc.domain.values.identifiers import is_id
from authsvc.verifier.known import Known, News, Until
from authsvc.verifier.transport import Connection, TransportError

PATH: Final = "/v1/revocations"
#: Entries per request.
PAGE: Final = 1000
#: Longest wait in a request (seconds); a third of the staleness limit, if that is less.
MOST_WAIT_S: Final = 5.0
#: Time that an answer may take beyond the wait (seconds).
GRACE_S: Final = 2.0
#: Pauses after failures (seconds): doubled from the first to the last, each shortened at random.
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 2.0
#: Interval between removals of expired entries (seconds).
FORGET_EVERY_S: Final = 60.0

_SUBJECTS: Final = {"session": "session_id", "token": "token_id", "user": "user_id"}

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    One page of the feed. Nothing is missing from it that was revoked before the request was sent plus
    ``waited_s`` (seconds,
    negative for before), unless ``has_more``.
    """

    news: tuple[News, ...]
    cursor: str
    is_reset: bool
    has_more: bool
    waited_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class View:
    """*known* has all revocations from before *as_of_s* (monotonic seconds), and perhaps later ones."""

    known: Known
    as_of_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """``wall_s`` decides when tokens expire; ``monotonic_s`` measures durations."""

    wall_s: Callable[[], float]
    monotonic_s: Callable[[], float]

    def now(self) -> Until:
        """Both."""
        return Until(self.wall_s(), self.monotonic_s())


class Feed:
    """
    Knowledge of revocations, kept up to date from :meth:`start` to :meth:`close`.

    ``view`` is None until the feed has been read completely once. *on_lag* is called after each answer with
    its age in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        clocks: Clocks,
        *,
        wait_s: float,
        on_lag: Callable[[float], None] | None = None,
    ) -> None:
        self._connection = connection
        self._clocks = clocks
        self._wait_s = wait_s
        self._on_lag = on_lag
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stop = threading.Event()
        #: Set once there is a view.
        self.caught_up = threading.Event()
        self.view: View | None = None
        self._cursor: str | None = None
        #: The data being read; after a reset it differs from that of the view until it is complete.
        self._reading = Known()
        self._is_complete = False
        self._failures = 0
        self._forgot_s = clocks.monotonic_s()

    def start(self) -> None:
        """Start to follow; further calls do nothing."""
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="verifier-feed", daemon=True)
                self._thread.start()

    @property
    def age_s(self) -> float:
        """Age of the known revocations in seconds; infinite before the first view."""
        view = self.view
        return self._clocks.monotonic_s() - view.as_of_s if view else math.inf

    def close(self) -> None:
        """Stop, even during a wait."""
        with self._starting:
            self._stop.set()
        self._connection.abort()
        if self._thread is not None:
            self._thread.join(timeout=GRACE_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self.turn())
        self._connection.close()

    def turn(self) -> float:
        """Send one request; returns the pause in seconds before the next one."""
        try:
            pause_s = self._absorb_next()
        except (TransportError, ValueError) as error:
            return self._failed(str(error))
        except Exception:
            # Top of the thread: it must go on after an unexpected error.
            log.exception("revocation feed: crashed")
            return self._failed("crashed")
        if self._failures:
            log.info("revocation feed: found again")
        self._failures = 0
        return pause_s

    def _absorb_next(self) -> float:
        wait_s = self._wait_s if self._is_complete else 0.0
        sent_s = self._clocks.monotonic_s()
        page = self._poll(wait_s)
        if page.is_reset:
            log.warning("revocation feed: the log is another one, reading it anew")
            self._reading = self._reading.without_epochs()
        for news in page.news:
            self._reading.add(news)
        self._cursor = page.cursor
        self._is_complete = not page.has_more
        if self._is_complete:
            self._publish(sent_s + page.waited_s)
        did_wait = self._clocks.monotonic_s() - sent_s >= wait_s / 2
        is_idle = self._is_complete and not page.news
        # A stopping server does not let us wait: pause, so as not to send requests in a loop.
        return max(page.retry_after_s, FIRST_PAUSE_S if is_idle and not did_wait else 0.0)

    def _poll(self, wait_s: float) -> Page:
        """The next page; raises TransportError or ValueError."""
        query = {"wait": f"{wait_s:.3f}", "limit": str(PAGE)}
        if self._cursor is not None:
            query["after"] = self._cursor
        answer = self._connection.request("GET", f"{PATH}?{urlencode(query)}", deadline_s=wait_s + GRACE_S)
        if answer.status == HTTPStatus.UNPROCESSABLE_ENTITY and self._cursor is not None:
            # The cursor is from another version of the service: start again, as after a reset.
            self._cursor, self._is_complete = None, False
            self._reading = self._reading.without_epochs()
        if answer.status != HTTPStatus.OK:
            raise TransportError(f"status {answer.status}")
        return read_page(answer.body, self._clocks.now())

    def _publish(self, as_of_s: float) -> None:
        """Let checks use the data read so far."""
        latest_s = max(as_of_s, self.view.as_of_s) if self.view else as_of_s
        self.view = View(self._reading, latest_s)
        self.caught_up.set()
        now = self._clocks.now()
        if now.monotonic_s - self._forgot_s >= FORGET_EVERY_S:
            self._forgot_s = now.monotonic_s
            self._reading.forget(now)
        if self._on_lag is not None:
            self._on_lag(now.monotonic_s - as_of_s)

    def _failed(self, cause: str) -> float:
        """Record a failure; the pause after it is random, so that many verifiers do not retry at once."""
        self._failures += 1
        if self._failures == 1 and not self._stop.is_set():
            log.warning("revocation feed: lost (%s), trying again", cause)
        most_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10))
        return random.uniform(most_s / 2, most_s)  # noqa: S311 - nothing is secret about it


def read_page(body: bytes, now: Until) -> Page:
    """Parse *body*, received *now*; raises ValueError unless it is a complete page."""
    try:
        document = json.loads(body)
        return Page(
            news=tuple(_news(item, now) for item in document["items"]),
            cursor=_typed(document["cursor"], str),
            is_reset=_typed(document["reset"], bool),
            has_more=_typed(document["has_more"], bool),
            waited_s=_typed(document["waited_ms"], int) / 1000,
            retry_after_s=_typed(document["retry_after_ms"] or 0, int) / 1000,
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a page of the feed") from error


def _news(item: Mapping[str, Any], now: Until) -> News:
    kind = item["kind"]
    subject = item[_SUBJECTS[kind]]
    if not is_id(subject):
        raise ValueError("not an identifier")
    until_s = datetime.fromisoformat(item["until"]).timestamp()
    return News(
        kind=kind,
        subject=subject,
        epoch=_typed(item["epoch"], int) if kind == "user" else 0,
        until=Until(until_s, now.monotonic_s + until_s - now.wall_s),
    )


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value
