"""Requests that begin at one moment, over lines to different workers, and what is left after them."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from tests.e2e.estate import ROOT, create_root, running
from tests.e2e.lines import Line, Reply, open_lines
from tests.rig import HOPELESS_S, PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.rig import Service

Pair: TypeAlias = "dict[str, Any]"

#: Contestants at most, half of them with each of the two workers.
LINES = 8


@dataclass(slots=True)
class Track:
    """Lines to both workers of *service*, in turn, and a thread for each."""

    service: Service
    lines: list[Line]
    threads: ThreadPoolExecutor
    rounds: int = 0

    def race(self, *runs: Callable[[Line], Reply]) -> list[Reply]:
        """What each of *runs* was answered; neighbours ask different workers, others in the next round."""
        self.rounds += 1
        lines = self.lines[self.rounds % LINES :] + self.lines[: self.rounds % LINES]
        for line in lines[: len(runs)]:
            line.keep_open()
        gate = Barrier(len(runs))

        def start(run: Callable[[Line], Reply], line: Line) -> Reply:
            gate.wait(HOPELESS_S)
            return run(line)

        pending = [self.threads.submit(start, run, line) for run, line in zip(runs, lines, strict=False)]
        return [answer.result() for answer in pending]

    def statuses(self, token: str) -> list[int]:
        """What each worker says of an access token."""
        return [line.verify(token).status for line in self.lines[:2]]

    def log_in(self, email: str, password: str = PASSWORD) -> Pair:
        """A new session."""
        reply = self.lines[0].log_in(email, password)
        assert reply.status == 200, reply
        pair: Pair = reply.json
        return pair

    def newcomer(self) -> str:
        """Somebody new's address."""
        email = f"{uuid4().hex}@example.com"
        assert register(email)(self.lines[0]).status == 201
        return email

    def admin(self) -> str:
        """An access token of the first admin."""
        return str(self.log_in(ROOT)["access_token"])

    def user_id(self, token: str) -> str:
        """Whose access token it is."""
        return str(self.lines[0].ask("GET", "/v1/me", token=token).json["id"])


@contextmanager
def open_track(service: Service) -> Iterator[Track]:
    """Lines and threads for *service*, which runs."""
    with ThreadPoolExecutor(LINES) as threads, open_lines(service, each=LINES // 2) as lines:
        yield Track(service, lines, threads)


@contextmanager
def open_tracks(env: dict[str, str], folder: Path) -> Iterator[tuple[Track, Track]]:
    """Two replicas on the same stores; the second has no grace for refresh tokens."""
    create_root(env, folder)
    with (
        running(env, folder) as service,
        running(env | {"REFRESH_GRACE_SECONDS": "0"}, folder) as strict,
        open_track(service) as track,
        open_track(strict) as strict_track,
    ):
        yield track, strict_track


def register(email: str) -> Callable[[Line], Reply]:
    """Sign up."""
    body = {"email": email, "password": PASSWORD}
    return lambda line: line.ask("POST", "/v1/auth/register", body=body)


def refresh(pair: Pair) -> Callable[[Line], Reply]:
    """Trade the refresh token."""
    return lambda line: line.refresh(pair["refresh_token"])


def log_in(email: str, password: str = PASSWORD) -> Callable[[Line], Reply]:
    """Log in."""
    return lambda line: line.log_in(email, password)


def call(method: str, path: str, pair: Pair, body: object = None) -> Callable[[Line], Reply]:
    """Ask as whoever has the access token of *pair*."""
    options: dict[str, Any] = {} if body is None else {"body": body}
    return lambda line: line.ask(method, path, token=pair["access_token"], **options)


def change_password(pair: Pair, current: str, new: str) -> Callable[[Line], Reply]:
    """Set another password."""
    passwords = {"current_password": current, "new_password": new}
    return call("POST", "/v1/me/password", pair, passwords)


@dataclass(slots=True)
class Watched:
    """A change, and checks of *token* that go on beside it until each watcher saw what came after it."""

    token: str
    answered_at_s: float = 0.0
    answered: Event = field(default_factory=Event)
    #: What checks were answered that began before, and after, the change was.
    before: Counter[int] = field(default_factory=Counter)
    after: Counter[int] = field(default_factory=Counter)

    def change(self, run: Callable[[Line], Reply]) -> Callable[[Line], Reply]:
        """*run*, noting when its answer was there."""

        def noted(line: Line) -> Reply:
            reply = run(line)
            self.answered_at_s = time.monotonic()
            self.answered.set()
            return reply

        return noted

    def look(self, line: Line) -> Reply:
        """Check again and again, the last time after the answer."""
        while True:
            has_answered = self.answered.is_set()
            began_s = time.monotonic()
            reply = line.verify(self.token)
            came_after = has_answered and began_s > self.answered_at_s
            (self.after if came_after else self.before)[reply.status] += 1
            if came_after:
                return reply


def report(what: str, tally: Counter[Any]) -> None:
    """Print what came of the rounds, for whoever looks long."""
    print(f"{what}: {dict(tally)}")  # noqa: T201 - shown by `pytest -s` or when a test fails
