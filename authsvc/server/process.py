"""The master process: options of gunicorn, and what happens before, between and after its workers."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from authsvc.observability.figures import FOLDER_VARIABLE, forget_process
from authsvc.server import GRACEFUL_TIMEOUT_S
from authsvc.server.arrival import MAX_FIELD_BYTES, MAX_FIELDS, MAX_LINE_BYTES
from authsvc.server.worker import Worker

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from authsvc.server import ServerOptions

log = logging.getLogger(__name__)

#: A worker whose main loop stands still for so long is killed.
TIMEOUT_S = 15
#: Longer than proxies keep an idle connection (60 s as a rule), so that they close first and lose no request.
KEEPALIVE_S = 75
MAX_CONNECTIONS = 4096
#: Descriptors of a worker that are no client's: pools, keys, log, listeners, figures.
RESERVED_DESCRIPTORS = 256
MEMORY_FOLDER = "/dev/shm"  # noqa: S108 - only ever with mkdtemp and unlinked files


class Background(Protocol):
    """What an application brings along that needs threads."""

    def start(self) -> None:
        """Start them; called after the fork."""

    def close(self) -> None:
        """Stop them; called when the worker ends in good order."""


class ServiceLog(Logger):  # type: ignore[misc]  # gunicorn has no annotations
    """gunicorn's log, as records like all others."""

    def setup(self, cfg: Config) -> None:
        """Install no handler: the root's is there."""
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
        """Take the options from here alone: neither command line nor environment has a say."""
        for name, value in gunicorn_options(self.options).items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        """Make the application, in a worker."""
        with _stopping_all_on_failure():
            return self._load()


def run(options: ServerOptions, load: Callable[[], WSGIApplication]) -> NoReturn:
    """Run the master; see :func:`authsvc.server.serve`."""
    try:
        Service(options, load).run()
    except HaltServer as failure:  # raised past gunicorn's own handling when several workers fail at once
        raise SystemExit(failure.exit_status) from failure
    raise SystemExit


def gunicorn_options(options: ServerOptions) -> dict[str, Any]:
    """Return all of gunicorn's settings that differ from its own."""
    return {
        "bind": [_address(options.host, port) for port in (options.port, options.metrics_port)],
        "workers": options.workers,
        "worker_class": Worker,
        "threads": options.threads,
        "worker_connections": _connections(),
        "worker_tmp_dir": _memory_folder(),
        "timeout": TIMEOUT_S,
        "graceful_timeout": GRACEFUL_TIMEOUT_S,
        "keepalive": KEEPALIVE_S,
        "limit_request_line": MAX_LINE_BYTES,
        "limit_request_fields": MAX_FIELDS,
        "limit_request_field_size": MAX_FIELD_BYTES,
        # The application walks X-Forwarded-For itself; no header of anybody's changes scheme or path.
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
        "on_starting": lambda _: _before_fork(options.preload),
        "when_ready": lambda _: gc.freeze(),
        "post_worker_init": on_worker_start,
        "worker_exit": lambda _, worker: on_worker_stop(worker),
        "child_exit": lambda _, worker: forget_process(worker.pid),
    }


def on_worker_start(worker: Worker) -> None:
    """Start what the application runs beside its requests; the collector then spares what is there."""
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


def prepare_figures() -> None:
    """
    Make the folder of the workers' metrics: the environment's, or one for this run alone.

    It is emptied: the figures of an earlier run would be added to those of this one.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given is None:
        own = tempfile.mkdtemp(prefix="authsvc-metrics-", dir=_memory_folder())
        os.environ[FOLDER_VARIABLE] = own
        atexit.register(_remove, own, os.getpid())
        return
    Path(given).mkdir(parents=True, exist_ok=True)
    for stale in Path(given).glob("*.db"):
        stale.unlink(missing_ok=True)


def _remove(folder: str, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # the workers inherit what is to be done at exit
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stopping_all_on_failure() -> Iterator[None]:
    """Let the master exit, too, when a worker cannot start: its successors could not either."""
    try:
        yield
    except SystemExit as refusal:
        sys.exit(Arbiter.WORKER_BOOT_ERROR if refusal.code else 0)
    except Exception as error:
        log.critical("worker.failed", exc_info=error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)


def _before_fork(preload: tuple[str, ...]) -> None:
    prepare_figures()
    for name in preload:
        import_module(name)


def _services_of(worker: Worker) -> Background | None:
    # A worker that failed to load has no application.
    services: Background | None = getattr(getattr(worker, "wsgi", None), "services", None)
    return services


def _memory_folder() -> str | None:
    """Return a folder whose files never wait for a disk, or None for the system's choice."""
    return MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connections() -> int:
    """Clients that one worker keeps open at most, within what the system lets it open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(64, min(MAX_CONNECTIONS, allowed - RESERVED_DESCRIPTORS))
