"""The master process: options of gunicorn, and what happens before, between and after its workers."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from authsvc.observability.figures import FOLDER_VARIABLE, forget_figures, forget_process
from authsvc.server.arrival import MAX_FIELD_BYTES, MAX_FIELDS, MAX_LINE_BYTES
from authsvc.server.worker import Worker

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from authsvc.server import ServerOptions

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
#: Descriptors of a worker that are not client connections: pools, keys, log, listeners, metrics.
RESERVED_DESCRIPTORS = 256
#: This many consecutive failed workers are replaced at once, further ones after 0.5 s, 1 s, 2 s and so on.
FREE_DEATHS = 4
#: The number of ``mallopt``'s option in glibc's ``malloc.h``.
M_ARENA_MAX = -8
MEMORY_FOLDER = "/dev/shm"  # noqa: S108 - only ever with mkdtemp and unlinked files


class Background(Protocol):
    """The part of an application that runs threads."""

    def start(self) -> None:
        """Start them; called after the fork."""

    def close(self) -> None:
        """Stop them; called when the worker ends regularly."""


class ServiceLog(Logger):  # type: ignore[misc]  # gunicorn has no annotations
    """gunicorn's log, as records like all others."""

    def setup(self, cfg: Config) -> None:
        """Install no handler: the root logger has one."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.setLevel(cfg.loglevel.upper())
        self.error_log.propagate = True


class Service(BaseApplication):  # type: ignore[misc]
    """gunicorn's view of the application."""

    def __init__(self, options: ServerOptions, load: Callable[[], WSGIApplication]) -> None:
        self.options = options
        self._load = load
        super().__init__(prog="authsvc")

    def load_config(self) -> None:
        """Use only these options, not the command line or the environment."""
        for name, value in gunicorn_options(self.options).items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Run the master until it is told to stop."""
        Master(self).run()

    def load(self) -> WSGIApplication:
        """Make the application; gunicorn keeps it."""
        with _stopping_all_on_failure():
            return self._load()


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, with growing pauses before it replaces workers that fail at their start."""

    def __init__(self, app: Service) -> None:
        super().__init__(app)
        self._timings = app.options.timings
        self._born_at_s: dict[int, float] = {}
        self._deaths = 0
        self._spawns_at_s = 0.0

    def spawn_workers(self) -> None:
        """Replace missing workers, unless a pause is running: gunicorn calls this again every second."""
        if time.monotonic() >= self._spawns_at_s:
            super().spawn_workers()

    def spawn_worker(self) -> int:
        """Start a worker, and record the time."""
        pid: int = super().spawn_worker()
        self._born_at_s[pid] = time.monotonic()
        return pid

    def reap_workers(self) -> None:
        """Record which workers ended, and how long they lived."""
        super().reap_workers()
        now_s = time.monotonic()
        for pid in self._born_at_s.keys() - self.WORKERS.keys():
            is_young = now_s - self._born_at_s.pop(pid) < self._timings.young_s
            self._deaths = self._deaths + 1 if is_young else 0
            pause_s = _pause_s(self._deaths, longest_s=self._timings.longest_pause_s)
            self._spawns_at_s = now_s + pause_s
            if pause_s:
                log.error("worker.dies_at_once", extra={"deaths": self._deaths, "pause_s": pause_s})


def _pause_s(deaths: int, *, longest_s: float) -> float:
    """Pause in seconds before the next worker, after several failed at their start."""
    return min(longest_s, 0.5 * 2.0 ** (deaths - FREE_DEATHS - 1)) if deaths > FREE_DEATHS else 0.0


def run(options: ServerOptions, load: Callable[[], WSGIApplication]) -> NoReturn:
    """Run the master; see :func:`authsvc.server.serve`."""
    try:
        Service(options, load).run()
    except HaltServer as failure:  # gunicorn does not handle this if several workers fail at once
        raise SystemExit(failure.exit_status) from failure
    raise SystemExit


def gunicorn_options(options: ServerOptions) -> dict[str, Any]:
    """Return the settings of gunicorn that differ from its defaults."""
    return {
        "bind": [_address(options.host, port) for port in (options.port, options.metrics_port)],
        "workers": options.workers,
        "worker_class": Worker,
        "threads": options.threads,
        "worker_connections": _connections(),
        "worker_tmp_dir": _memory_folder(),
        "timeout": options.timings.worker_s,
        "graceful_timeout": options.timings.graceful_s,
        "keepalive": options.timings.keepalive_s,
        "limit_request_line": MAX_LINE_BYTES,
        "limit_request_fields": MAX_FIELDS,
        "limit_request_field_size": MAX_FIELD_BYTES,
        # The application evaluates X-Forwarded-For itself; no header changes scheme or path.
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        "control_socket_disable": True,
        "preload_app": False,
        "sendfile": False,
        "proc_name": "authsvc",
        "logger_class": ServiceLog,
        "loglevel": options.log_level,
        "accesslog": None,
        "on_starting": lambda master: _before_fork(master.app, options),
        "when_ready": lambda _: _when_ready(),
        "post_worker_init": on_worker_start,
        "worker_exit": lambda _, worker: on_worker_stop(worker),
        "child_exit": lambda _, worker: forget_process(worker.pid),
    }


def on_worker_start(worker: Worker) -> None:
    """Start the application's background threads; freeze existing objects for the garbage collector."""
    services = _services_of(worker)
    if services is not None:
        with _stopping_all_on_failure():
            services.start()
    gc.collect()
    gc.freeze()


def on_worker_stop(worker: Worker) -> None:
    """Stop what :func:`on_worker_start` started."""
    services = _services_of(worker)
    if services is not None:
        services.close()


def prepare_figures(given: Path | None) -> None:
    """
    Make the folder of the workers' metrics: the one *given*, or one for this run alone.

    Metrics of an earlier run are deleted, because they would be added to those of this one; other files stay.
    If no folder can be made, each worker counts in its own memory.
    """
    os.environ.pop(FOLDER_VARIABLE, None)
    try:
        folder = given or Path(tempfile.mkdtemp(prefix="authsvc-metrics-", dir=_memory_folder()))
        folder.mkdir(parents=True, exist_ok=True)
        forget_figures(folder)
    except OSError as error:
        log.warning("metrics.in_memory", extra={"cause": error.strerror, "folder": str(given or "")})
        return
    os.environ[FOLDER_VARIABLE] = str(folder)
    if given is None:
        atexit.register(_remove, str(folder), os.getpid())


def share_heap() -> None:
    """
    Let all threads allocate from one heap, unless the environment sets another number.

    glibc gives each thread its own, up to eight for each core; what is free in one is of no use to another.
    That costs a worker 10 MB, and saves no time: threads that allocate hold the interpreter's lock.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if set_option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        set_option(M_ARENA_MAX, 1)


def _remove(folder: str, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # the workers inherit the exit handlers
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stopping_all_on_failure() -> Iterator[None]:
    """Let the whole service exit when a worker cannot start: its replacements could not either."""
    try:
        yield
    except SystemExit as refusal:
        sys.exit(Arbiter.WORKER_BOOT_ERROR if refusal.code else 0)
    except Exception as error:
        log.critical("worker.failed", exc_info=error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)


def _before_fork(app: BaseApplication, options: ServerOptions) -> None:
    """Make the application that all workers share, also those that start later."""
    app.options = options  # gunicorn's own application, of ``gunicorn wsgi:app``, has none
    share_heap()
    prepare_figures(options.figures)
    gc.disable()  # until all is made: there is hardly any garbage, and collection takes 0.1 s
    app.wsgi()
    # The workers make their own; a gauge of the master, which never changes, would count as one of theirs.
    if FOLDER_VARIABLE in os.environ:
        forget_figures(Path(os.environ[FOLDER_VARIABLE]))


def _when_ready() -> None:
    """Just before the fork: keep the collector from the objects that the workers share."""
    gc.freeze()
    gc.enable()


def _services_of(worker: Worker) -> Background | None:
    # A worker that failed to load has no application.
    services: Background | None = getattr(getattr(worker, "wsgi", None), "services", None)
    return services


def _memory_folder() -> str | None:
    """Return a folder in memory, or None for the system's default."""
    return MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connections() -> int:
    """Largest number of client connections of a worker, within the system's limit of descriptors."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(64, min(MAX_CONNECTIONS, allowed - RESERVED_DESCRIPTORS))
