"""Server processes for the tests: start and stop them, kill them, freeze them with all their children."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
#: Below every system's ephemeral range: there, a client that hammers a closed port can connect to itself.
PORTS = range(15_000, 32_000)
POLL_S = 0.01
_handed_out: set[int] = set()


class ServerDied(Exception):
    """A server ended before it was ready; the text is the end of its log."""


def free_port() -> int:
    """
    Return a port of 127.0.0.1 that nobody listens on; it stays the same over restarts of its server.

    No other is given it meanwhile, also while nobody listens there: each process of a parallel run has ports
    of its own, and hands out each of them once.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = secrets.choice(PORTS[number::count])
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            _handed_out.add(port)
            return port


def wait_until(claim: Callable[[], bool], *, timeout_s: float = 60, what: str = "") -> None:
    """Poll *claim* until it is true; raises TimeoutError naming *what* after *timeout_s* seconds."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > deadline:
            message = f"still not true after {timeout_s} s: {what or claim}"
            raise TimeoutError(message)
        time.sleep(POLL_S)


def suspend_tree(root: psutil.Process) -> None:
    """Freeze *root*, then its children: once the parent stands still, no new ones appear."""
    for process in _each_of_tree(root):
        with suppress(psutil.NoSuchProcess):  # a child may end by itself before its turn
            process.suspend()
            wait_until(partial(_is_frozen, process), what=f"stop of process {process.pid}")


def resume_tree(root: psutil.Process) -> None:
    """Thaw *root* and its children."""
    for process in _each_of_tree(root):
        with suppress(psutil.NoSuchProcess):
            process.resume()


def kill_tree(root: psutil.Process) -> None:
    """SIGKILL *root* and its children; returns when all are gone, and with them their ports and memory."""
    suspend_tree(root)
    processes = list(_each_of_tree(root))
    for process in processes:
        process.kill()
    for process in processes:
        wait_until(partial(_has_gone, process), what=f"end of process {process.pid}")


def _each_of_tree(root: psutil.Process) -> Iterator[psutil.Process]:
    yield root
    yield from root.children(recursive=True)


def _is_frozen(process: psutil.Process) -> bool:
    return _has_gone(process) or process.status() == psutil.STATUS_STOPPED


def _has_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class ServerProcess(ABC):
    """
    One server at a fixed port of 127.0.0.1, with a folder of its own.

    A context manager.  Whatever becomes of a test, process and folder go at the end of the run.
    """

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.host = HOST
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"authsvc-{self.name}-"))
        self.log_path = self.folder / "log"
        self._process: psutil.Popen | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _popen_options(self) -> dict[str, Any]:
        return {}

    def start(self, *, timeout_s: float = 90) -> Self:
        """Start and wait until it answers; raises ServerDied if it ends instead."""
        with self.log_path.open("ab") as log:
            self._process = psutil.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the test run alone: the servers must outlive its clean-up.
                start_new_session=True,
                **self._popen_options(),
            )
        wait_until(self._is_up, timeout_s=timeout_s, what=f"{self.name} ready on port {self.port}")
        return self

    def stop(self) -> None:
        """End in good order, as an operator would; does nothing when it is not running."""
        if self._is_alive():
            resume_tree(self._running())
            self._running().send_signal(self.stop_signal)
        self._reap()

    def kill(self) -> None:
        """End it and its children by SIGKILL; does nothing when it is not running."""
        if self._is_alive():
            kill_tree(self._running())
        self._reap()

    def restart(self) -> Self:
        """Stop in good order and start again on the same port, with the same folder."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections are still accepted by the kernel, nothing is ever answered."""
        suspend_tree(self._running())

    def resume(self) -> None:
        """Thaw it (SIGCONT)."""
        resume_tree(self._running())

    def close(self) -> None:
        """Kill it and delete its folder; the end of this object's use."""
        if os.getpid() != self._owner:
            return  # a forked child of the test run ends, not the run
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _running(self) -> psutil.Popen:
        if self._process is None:
            message = f"{self.name} is not running"
            raise RuntimeError(message)
        return self._process

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(timeout=90)
            self._process = None

    def _is_up(self) -> bool:
        if not self._is_alive():
            raise ServerDied(self.log_path.read_text(errors="replace")[-2000:])
        return self._is_ready()
