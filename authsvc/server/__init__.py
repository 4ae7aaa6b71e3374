"""The HTTP server: gunicorn with a worker of our own, on the public port and the metrics port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from authsvc.settings import HttpSettings, Problem

if TYPE_CHECKING:
    from pathlib import Path
    from wsgiref.types import WSGIApplication

__all__ = ["THREADS_PER_WORKER", "ServerOptions", "ServerTimings", "listening_problems", "serve"]

#: Threads wait for Redis, for SQL or for the hashing lane.  With 32, others are still answered while 30
#: requests wait for their deadlines.  They cost 1 MB, and one interpreter cannot keep more busy.
THREADS_PER_WORKER = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimings:
    """How long clients and workers are waited for (seconds)."""

    #: A request must have arrived, its body included, so long after its first byte.
    read_s: float = 5.0
    #: An answer that does not fit the socket's buffer must have been taken by then.
    send_s: float = 10.0
    #: A connection closes when the client has closed it too, or so long after; before, it could lose the
    #: answer.
    linger_s: float = 2.0
    #: Longer than proxies keep an idle connection (60 s as a rule), so that they close first and lose no
    #: request.
    keepalive_s: int = 75
    #: A worker whose main loop stands still for so long is killed.
    worker_s: int = 15
    #: After SIGTERM, for the requests that are under way.
    graceful_s: int = 20
    #: A stopping worker still accepts for so long while it has work, to say to probes that it is not ready.
    notice_s: float = 2.0
    #: The rest of the loop, with its signals, waits for token checks for so long at most.
    checks_s: float = 0.5
    #: How often the lane of checks is looked after, and the master is told that the loop goes round;
    #: gunicorn tells it in every round.
    upkeep_s: float = 0.5
    notify_s: float = 0.5
    #: A worker that lived for less died at once; the pauses between many of those grow up to the second.
    young_s: float = 5.0
    longest_pause_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where to listen, and with what."""

    host: str
    port: int
    metrics_port: int
    workers: int
    threads: int = THREADS_PER_WORKER
    timings: ServerTimings = field(default_factory=ServerTimings)
    log_level: str = "info"
    #: Folder of the workers' figures; None: one for this run alone.
    figures: Path | None = None
    #: Modules to import before the fork, so that the workers share their memory and start at once.
    preload: tuple[str, ...] = ()
    #: Paths: requests on them and below them are answered after their head, for nobody reads their bodies.
    bodiless: tuple[str, ...] = ()
    #: Paths: a POST request on them takes a thread for a long time.  Some threads are reserved for all other
    #: requests.
    lengthy: tuple[str, ...] = ()


def listening_problems(http: HttpSettings) -> Iterator[Problem]:
    """What keeps the service from listening on its two ports, asked by listening there for a moment."""
    for name, number in (("PORT", http.port), ("METRICS_PORT", http.metrics_port)):
        family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((http.host, number))
                probe.listen()
            except OSError as error:
                yield Problem(name=name, message=_not_listening(number, error))


def _not_listening(number: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{number} is taken: another process listens there; stop it, or choose another port"
    if error.errno == errno.EACCES:
        return f"{number} is not for this user: below 1024 only root may listen; choose another port"
    return f"{number} cannot be listened on at HOST ({error.strerror})"


def serve(options: ServerOptions, load: Callable[[], WSGIApplication]) -> NoReturn:
    """
    Serve until SIGTERM, then exit with status 0.

    *load* makes the application in each worker, after the fork.  If what it returns has an attribute
    ``services``, their ``start()`` is called when the worker is up and their ``close()`` when it ends.
    If it raises, or exits with another status than 0, the whole service exits with a status that is not 0.
    """
    # Imported here, because importing gunicorn takes 0.1 s and fails on a malformed WEB_CONCURRENCY: only a
    # command that starts a server needs it.
    from authsvc.server.process import run  # noqa: PLC0415

    run(options, load)
