"""
Real servers for the tests: Redis' protocol (Valkey) and PostgreSQL, each in a tenth of a second or so.

``RedisServer`` and ``PostgresServer`` are processes of the test run, on a random port of 127.0.0.1, that a
test may stop, kill, freeze, restart and restore.  ``Remote`` stands for a server that somebody else runs.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql
from redis import Redis

from tests.processes import ServerProcess, wait_until
from tests.servers.binaries import NOBODY, postgres_binaries, redis_binary

#: What a server that is up says to PING; also to somebody it does not know.
_READY = (b"+PONG", b"-NOAUTH", b"-NOPERM")


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that the test run was pointed at; it cannot be stopped or broken from here."""

    url: str

    @property
    def host(self) -> str:
        """Name or address."""
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        """The port in the URL, else the usual one of its scheme."""
        parts = urlsplit(self.url)
        return parts.port or (5432 if parts.scheme.startswith("postgres") else 6379)

    def create_database(self, *, template: str = "template1") -> str:
        """Create an empty database, or a copy of *template*, and return its URL (PostgreSQL alone)."""
        return create_database(self.url, template=template)


class RedisServer(ServerProcess):
    """
    A Redis-protocol server that keeps its data in memory alone, unless told otherwise.

    *options* are those of the command line (``"--maxmemory", "8mb"``); *password* is asked for.
    Its folder outlives restarts: with ``"--appendonly", "yes"`` the data do too.
    """

    name = "redis"

    def __init__(self, *options: str, password: str = "") -> None:
        super().__init__()
        self.options = options
        self.password = password
        self.data = self.folder / "data"
        self.data.mkdir()
        self._dump_numbers = count(1)
        self._answers: tuple[bytes, ...] = _READY

    @property
    def url(self) -> str:
        """The URL that redis-py takes, database 0."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}{self.host}:{self.port}/0"

    def save_dump(self) -> Path:
        """Write all data to a file, for :meth:`restore`."""
        with Redis.from_url(self.url) as client:
            client.execute_command("SAVE")
        dump = self.folder / f"dump-{next(self._dump_numbers)}.rdb"
        shutil.copy2(self._rdb, dump)
        self._forget_rdb()
        return dump

    def restore(self, dump: Path) -> None:
        """Kill the server and bring it up with what *dump* holds alone, as after a restored backup."""
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir()
        shutil.copy2(dump, self._rdb)
        self._restore_into_aof() if "yes" in self._option("--appendonly") else self.start()
        self._forget_rdb()

    def begin_loading(self, dump: Path, *, us_per_key: int) -> None:
        """Kill the server, start it with *dump* to read, slowly, and return while it answers LOADING."""
        self.kill()
        shutil.copy2(dump, self._rdb)
        slow = ("--key-load-delay", str(us_per_key), "--loading-process-events-interval-bytes", "1024")
        usual, self.options, self._answers = self.options, (*self.options, *slow), (b"-LOADING",)
        try:
            self.start()
        finally:
            self.options, self._answers = usual, _READY
            self._forget_rdb()

    @property
    def _rdb(self) -> Path:
        return self.data / "dump.rdb"

    def _forget_rdb(self) -> None:
        # Else a server that is meant to lose its memory would find it again at the next start.
        if not self._option("--save"):
            self._rdb.unlink(missing_ok=True)

    def _restore_into_aof(self) -> None:
        # A server with an append-only file reads that alone, so it first reads the dump without one.
        self.options = (*self.options, "--appendonly", "no")
        self.start()
        self.options = self.options[:-2]
        with Redis.from_url(self.url, decode_responses=True) as client:
            client.config_set("appendonly", "yes")
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="new AOF")

    def _option(self, name: str) -> tuple[str, ...]:
        return tuple(value for key, value in zip(self.options, self.options[1:], strict=False) if key == name)

    def _command(self) -> list[str]:
        defaults = ["--port", str(self.port), "--bind", self.host, "--dir", str(self.data), "--save", ""]
        password = ["--requirepass", self.password] if self.password else []
        return [str(redis_binary()), *defaults, *password, *self.options]

    def _is_ready(self) -> bool:
        # By hand: any answer but "loading" will do, also "who are you?".
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(self._answers)
        except OSError:
            return False


class PostgresServer(ServerProcess):
    """
    A PostgreSQL server; ``fsync=True`` for tests that kill it and count what was acknowledged.

    *options* are those of ``postgres`` (``"-c", "max_connections=5"``).
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": end the sessions, then stop

    def __init__(self, *options: str, fsync: bool = False) -> None:
        super().__init__()
        self.options = options
        self.fsync = fsync
        self.data = self.folder / "data"
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._initialise()

    @property
    def url(self) -> str:
        """The administrator's URL; give it to :meth:`create_database`'s callers, not to the service."""
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def create_database(self, *, template: str = "template1") -> str:
        """Create an empty database, or a copy of *template*, and return its URL."""
        return create_database(self.url, template=template)

    def _initialise(self) -> None:
        subprocess.run(["cp", "-R", initialised(), self.data], check=True, **self._popen_options())
        self.data.chmod(0o700)

    def _command(self) -> list[str]:
        switch = "on" if self.fsync else "off"
        names = ("fsync", "synchronous_commit", "full_page_writes")
        settings = ["max_connections=200", *(f"{name}={switch}" for name in names)]
        flags = [word for setting in settings for word in ("-c", setting)]
        where = ["-D", str(self.data), "-h", self.host, "-p", str(self.port), "-k", ""]
        return [str(postgres_binaries() / "postgres"), *where, *flags, *self.options]

    def _popen_options(self) -> dict[str, Any]:
        return {"cwd": self.folder, **unprivileged()}

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@functools.cache
def initialised() -> Path:
    """Return a data folder of a server that never ran, made once: ``initdb`` takes longer than a copy."""
    folder = Path(tempfile.mkdtemp(prefix="authsvc-initdb-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    command = [
        str(postgres_binaries() / "initdb"),
        "--pgdata",
        str(folder / "data"),
        "--username",
        "postgres",
    ]
    flags = ["--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
    subprocess.run([*command, *flags], check=True, capture_output=True, cwd=folder, **unprivileged())
    return folder / "data"


def unprivileged() -> dict[str, Any]:
    """Return how a child process is started that must not be root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def create_database(admin_url: str, *, template: str = "template1") -> str:
    """Create a database from *template*, to which nobody may be connected; return its URL."""
    name = f"authsvc_test_{uuid4().hex}"
    names = map(sql.Identifier, (name, template))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
    return urlsplit(admin_url)._replace(path=f"/{name}").geturl()


def drop_database(admin_url: str, url: str) -> None:
    """Drop the database of *url*, whoever is connected to it."""
    name = sql.Identifier(urlsplit(url).path.removeprefix("/"))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
