"""
``authsvc`` with seams at which a test may kill the worker, and a clock that a test may set.

For tests alone: it wraps the service from outside, and is started in its place (``ENTRY``).  The folder that
``FAILPOINTS`` names holds what is wanted: a file with the name of a seam kills the next worker whose request
comes there, and is gone then; ``clock`` holds the seconds that the wall clock is ahead.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authsvc import wiring
from authsvc.cli import main
from authsvc.domain.revocations import Revocations
from authsvc.server import ServerTimings
from authsvc.server.exchange import ResponseSender
from authsvc.server.groups import GroupWorker
from authsvc.store.copies.index import RedisIndex
from authsvc.store.sessions import SqlSessionStore
from authsvc.store.sql import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

FOLDER = "FAILPOINTS"
CLOCK = "clock"
#: From the request to its answer; a refresh and a logout commit in a single statement.
BEFORE_COMMIT, AFTER_COMMIT, AFTER_REDIS, BEFORE_ANSWER = SEAMS = (
    "before-commit",
    "after-commit",
    "after-redis",
    "before-answer",
)
ENTRY = (sys.executable, "-c", "from tests.fault.failpoints import run; run()")
#: Threads that answer no request.
OTHERS = frozenset({"reconciler"})


def run() -> None:
    """Wrap the service, then run it."""
    folder = Path(os.environ[FOLDER])
    _wrap_transaction(folder)
    for many in ("rotate_free", "end_free"):
        _wrap(folder, SqlSessionStore, many, before=BEFORE_COMMIT, after=AFTER_COMMIT)
    _wrap(folder, Revocations, "_write", after=AFTER_REDIS)
    _wrap(folder, RedisIndex, "remember", after=AFTER_REDIS)
    _wrap(folder, ResponseSender, "send", before=BEFORE_ANSWER)
    _wrap(folder, GroupWorker, "_finish_group", before=BEFORE_ANSWER)
    _set_clock(folder)
    # A worker that a test kills does not die of itself: the next one need not wait.
    sys.exit(main(server_timings=ServerTimings(young_s=0)))


def _pass(folder: Path, seam: str) -> None:
    """Die here if that is wanted; whoever takes the file away dies, nobody else."""
    if threading.current_thread().name in OTHERS:
        return
    try:
        (folder / seam).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap_transaction(folder: Path) -> None:
    transaction: Callable[..., Any] = Database.transaction

    @contextmanager
    def wrapped(self: Database) -> Iterator[Any]:
        with transaction(self) as connection:
            yield connection
            _pass(folder, BEFORE_COMMIT)
        _pass(folder, AFTER_COMMIT)

    Database.transaction = wrapped  # type: ignore[method-assign]


def _wrap(folder: Path, owner: type, name: str, *, before: str = "", after: str = "") -> None:
    method = getattr(owner, name)

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            _pass(folder, before)
        result = method(*args, **kwargs)
        if after:
            _pass(folder, after)
        return result

    setattr(owner, name, wrapped)


def _set_clock(folder: Path) -> None:
    def shifted() -> datetime:
        return wiring.now() + timedelta(seconds=float((folder / CLOCK).read_text()))

    wiring.build = partial(wiring.build, clock=shifted)
