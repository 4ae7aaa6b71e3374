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

#: Threads wait for Redis, for SQL or for the hashing lane.  With 32, other requests are still answered while
#: 30 wait for their deadlines. They take 1 MB, and one interpreter cannot use more.
THREADS_PER_WORKER = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimings:
    """Time limits for clients and workers (seconds)."""

    #: A request, with its body, must have arrived this long after its first byte.
    read_s: float = 5.0
    #: The client must have received an answer that is larger than the socket's buffer within this time.
    send_s: float = 10.0
    #: A connection is closed once the client has closed its side, or after this time; earlier, the answer
    #: could be lost.
    linger_s: float = 2.0
    #: Longer than proxies keep an idle connection (usually 60 s), so that they close first and no request is
    #: lost.
    keepalive_s: int = 75
    #: A worker is killed if its main loop makes no progress for this time.
    worker_s: int = 15
    #: Time for running requests after SIGTERM.
    graceful_s: int = 20
    #: A stopping worker with work still accepts connections for this time, to tell probes that it is not
    #: ready.
    notice_s: float = 2.0
    #: Longest time that token checks may delay the rest of the loop, including signals.
    checks_s: float = 0.5
    #: How long a thread that computes may keep the interpreter from the loop and from other threads.
    switch_s: float = 0.002
    #: Interval of the check lane's upkeep, and of the heartbeat to the master, which gunicorn sends in every
    #: round.
    upkeep_s: float = 0.5
    notify_s: float = 0.5
    #: A worker that lived for less than the first failed at its start; pauses between such restarts grow up
    #: to the second.
    young_s: float = 5.0
    longest_pause_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Options of the server."""

    host: str
    port: int
    metrics_port: int
    workers: int
    threads: int = THREADS_PER_WORKER
    timings: ServerTimings = field(default_factory=ServerTimings)
    log_level: str = "info"
    #: Folder of the workers' metrics; None: a temporary one for this run.
    figures: Path | None = None
    #: Paths: requests to them and below are answered after their head, because their bodies are not read.
    bodiless: tuple[str, ...] = ()
    #: Paths: a POST request to them occupies a thread for a long time.  Some threads are reserved for all
    #: other requests.
    lengthy: tuple[str, ...] = ()


def listening_problems(http: HttpSettings) -> Iterator[Problem]:
    """Problems with the two ports, found by listening there for a moment."""
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

    *load* makes the application once, before the fork: the workers share its memory. It must not start a
    thread, open a connection or file that it keeps, or make what may differ between processes.  If what it
    returns has an attribute ``services``, their ``start()`` is called in each worker when it is up, and their
    ``close()`` when it ends.  If one of them fails, the whole service exits with a status that is not 0.
    """
    # Imported here, because importing gunicorn takes 0.1 s and fails on a malformed WEB_CONCURRENCY: only a
    # command that starts a server needs it.
    from authsvc.server.process import run  # noqa: PLC0415

    run(options, load)
