"""
Processes of Python programs that begin with the service's modules loaded, because loading takes a second.

An interpreter that has loaded them forks for each process.  The process has arguments, environment, folder
and standard streams of its own, and ends as any other does.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib import import_module
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

#: What a serving process loads beside the modules of its command.
LOADED = ("authsvc.app", "authsvc.wiring", "psycopg_binary", "sqlalchemy.dialects.postgresql.psycopg")
#: How a process that nobody can ask about any more is said to have ended.
LOST = -signal.SIGKILL
_REQUEST_BYTES = 1 << 17
_REPLY_BYTES = 32
_FILES = range(3, 1 << 12)
_PROGRAM = "from tests.forking import next_program; exec(next_program({fd}))"


class Forked:
    """A process that an :class:`Interpreter` forked, with what tests use of ``subprocess.Popen``."""

    def __init__(self, command: Sequence[str], connection: socket.socket) -> None:
        self.args = command
        self.returncode: int | None = None
        self.pid = int(connection.recv(_REPLY_BYTES))
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._status_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises TimeoutExpired after *timeout* seconds."""
        status = self._status_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _status_within(self, seconds: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
                self.returncode = int(self._connection.recv(_REPLY_BYTES) or LOST)
                self._connection.close()
            return self.returncode


Process: TypeAlias = subprocess.Popen[bytes] | Forked


class Interpreter:
    """Loads the service, begins with the first request, and forks for each; what it forked outlives it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket
        self._lock = threading.Lock()

    def start(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: Sequence[IO[bytes]]
    ) -> Forked:
        """Run *command*, ``python -c …``; *streams* are stdin, stdout and stderr."""
        self._begin()
        _, _, program, *arguments = command
        request = {"program": program, "arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = [theirs.fileno(), *(stream.fileno() for stream in streams)]
        with theirs:
            socket.send_fds(self._requests, [json.dumps(request).encode()], files)
        return Forked(command, ours)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._requests.close()
            self._process.wait()

    def _begin(self) -> None:
        with self._lock:
            if self._process is None:
                # Not earlier: tests that may not use sockets never come here.
                self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-c", _PROGRAM.format(fd=theirs.fileno())],
                        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                    )


_interpreters: list[Interpreter] = []


@contextmanager
def warm_interpreter() -> Iterator[None]:
    """Let :func:`start_python` fork from one interpreter within the block."""
    _interpreters.append(Interpreter())
    try:
        yield
    finally:
        _interpreters.pop().close()


def start_python(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: Sequence[IO[bytes]]
) -> Process:
    """
    Start a program with *streams* for stdin, stdout and stderr.

    Within :func:`warm_interpreter` a ``python -c`` is forked; anything else is started as it is.
    """
    if _interpreters and list(command[:2]) == [sys.executable, "-c"]:
        return _interpreters[-1].start(command, cwd=cwd, env=env, streams=streams)
    stdin, out, err = streams
    return subprocess.Popen(command, cwd=cwd, env=dict(env), stdin=stdin, stdout=out, stderr=err)


def run_python(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str = "", within_s: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as :func:`start_python` starts it; raises TimeoutExpired."""
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        process = start_python(command, cwd=cwd, env=env, streams=(given, out, err))
        try:
            status = process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), err.read().decode())


def next_program(fd: int) -> str:
    """Fork for each request at the socket *fd*; returns in the new process, with what it is to run."""
    requests = socket.socket(fileno=fd)
    _load()
    waker, running = _woken_by_ends(), dict[int, socket.socket]()
    sources: list[int | socket.socket] = [requests, waker]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if waker in ready:
            os.read(waker, 1 << 12)
            _tell_ends(running)
        if requests in ready:
            data, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
            if not data:
                sys.exit()
            if program := _fork(json.loads(data), files, requests, running):
                return program


def _load() -> None:
    """Import what a process of the service imports, before any of them is there."""
    from authsvc.cli import COMMANDS, importing  # noqa: PLC0415 - only where it forks

    with importing():
        for name in (*LOADED, *(f"authsvc.cli.{command.module}" for command in COMMANDS)):
            import_module(name)
    gc.freeze()


def _woken_by_ends() -> int:
    """Return a file that is readable when a process has ended."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _tell_ends(running: dict[int, socket.socket]) -> None:
    """Say of each process that has ended how it did."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with running.pop(ended[0]) as connection, suppress(BrokenPipeError):
                connection.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


def _fork(
    request: dict[str, Any], files: list[int], requests: socket.socket, running: dict[int, socket.socket]
) -> str:
    """Fork; empty here, in the new process what it is to run."""
    connection, *streams = files
    pid = os.fork()
    if pid == 0:
        for held in (requests, *running.values()):
            held.detach()
        _become(request, streams)
        return str(request["program"])
    running[pid] = socket.socket(fileno=connection)
    for stream in streams:
        os.close(stream)
    with suppress(BrokenPipeError):
        running[pid].send(str(pid).encode())
    return ""


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the process that was asked for: signals, files, folder, environment, arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(_FILES.start, _FILES.stop)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["arguments"]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old, lines = getattr(sys, name), 1 if name == "stderr" else -1
        new = open(number, old.mode, lines, old.encoding, old.errors, closefd=False)  # noqa: SIM115 - it stays
        setattr(sys, name, new)
