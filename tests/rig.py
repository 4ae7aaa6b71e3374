"""The whole service for tests: its environment, the application in this process, and real processes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psutil
import requests
from redis import Redis, RedisCluster

from authsvc.cli.keys import generate_key
from authsvc.settings import Settings
from authsvc.store.migrations import upgrade
from authsvc.wiring.stores import open_database
from tests import ROOT
from tests.forking import Process, run_python, start_python
from tests.processes import HOST, free_port, resume_tree, suspend_tree, wait_until
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

#: No answer takes so long (seconds), however busy the machine is.
HOPELESS_S = 60

PASSWORD = "correct horse battery staple"
#: What the installed ``authsvc`` runs, also where it is not installed.
COMMAND = (sys.executable, "-c", "import sys; from authsvc.cli import main; sys.exit(main())")


def environment(database_url: str, redis_url: str, folder: Path, **overrides: str) -> dict[str, str]:
    """Production settings for the two stores, with a new signing key in *folder*; cheap hashes, no limits."""
    keys = folder / "keys"
    if not keys.exists():
        keys.mkdir(mode=0o700)
        generate_key(keys, "ES256")
    return {
        "AUTHSVC_ENV": "production",
        "HOST": "127.0.0.1",
        "PORT": "8080",
        "METRICS_PORT": "9464",
        "WEB_CONCURRENCY": "2",
        "DATABASE_URL": database_url,
        **redis_settings(redis_url),
        "JWT_ISSUER": "http://127.0.0.1:8080",
        "JWT_AUDIENCE": "tests",
        "JWT_KEYS_DIR": str(keys),
        "TOKEN_SECRET": "tests-token-secret-" + "0123456789abcdef" * 2,
        "PASSWORD_PEPPER": "tests-pepper-" + "fedcba9876543210" * 2,
        "BCRYPT_COST": "10",
        "RATE_LIMIT_LOGIN_IP": "off",
        "RATE_LIMIT_LOGIN_ACCOUNT": "off",
        "RATE_LIMIT_REGISTER_IP": "off",
        "RATE_LIMIT_REFRESH": "off",
        "LOG_LEVEL": "info",
        **overrides,
    }


def redis_settings(url: str) -> dict[str, str]:
    """The settings that name the Redis of *url*; several servers with commas between them are a cluster."""
    if "," not in url:
        return {"REDIS_URL": url}
    return {"REDIS_CLUSTER_ENABLED": "true", "REDIS_CLUSTER_NODES": url}


def operator_of(env: Mapping[str, str]) -> Any:
    """A client of the Redis that *env* names, one server or a cluster, for whoever looks at its keys."""
    nodes = env.get("REDIS_CLUSTER_NODES")
    if nodes is None:
        return Redis.from_url(env["REDIS_URL"], decode_responses=True)
    return RedisCluster.from_url(f"redis://{nodes.split(',')[0]}", decode_responses=True)


def development(database_url: str, redis_url: str, folder: Path, **overrides: str) -> dict[str, str]:
    """The same for an application in this process: development, so that hashing may be cheap (cost 4)."""
    env = environment(database_url, redis_url, folder, **overrides)
    return (
        env
        | {"AUTHSVC_ENV": "development", "MAIL_TRANSPORT": "off", "BCRYPT_COST": "4", "WEB_CONCURRENCY": "1"}
        | overrides
    )


def migrate(env: Mapping[str, str]) -> None:
    """Bring the database of *env* up to date."""
    database = open_database(Settings.from_env(env), UNHURRIED)
    upgrade(database)
    database.close()


def run_command(
    *arguments: str,
    env: Mapping[str, str],
    folder: Path,
    stdin: str = "",
    within_s: float = 180,
    entry: tuple[str, ...] = COMMAND,
) -> subprocess.CompletedProcess[str]:
    """Run ``authsvc`` with *arguments* in *folder*, with nothing of this process's environment but PATH."""
    return run_python(
        [*entry, *arguments], cwd=folder, env=_process_environment(env), stdin=stdin, within_s=within_s
    )


def _process_environment(env: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}


class Service:
    """
    ``authsvc serve`` (or another *command* or *entry*) as a process with workers, on free ports of 127.0.0.1.

    Its log is in ``log``, a file.  A context manager: it is stopped at the end, killed if it must be.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        folder: Path,
        *,
        command: str = "serve",
        entry: tuple[str, ...] = COMMAND,
    ) -> None:
        self.command = (*entry, command)
        self.port = self.metrics_port = free_port()
        while self.metrics_port == self.port:
            self.metrics_port = free_port()
        self.env = {**env, "PORT": str(self.port), "METRICS_PORT": str(self.metrics_port)}
        self.log = folder / f"service-{self.port}.log"
        self.process: Process | None = None

    @property
    def url(self) -> str:
        """The public port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The scrape."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def start(self, *, ready_within_s: float = 120) -> Self:
        """Start, and wait until all workers are ready."""
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self.process = start_python(
                self.command,
                cwd=self.log.parent,
                env=_process_environment(self.env),
                streams=(nothing, log, log),
            )
        try:
            self.wait_ready(ready_within_s)
            wait_until(self._is_whole, timeout_s=ready_within_s, what="all workers ready")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def wait_ready(self, within_s: float = 10) -> float:
        """Wait until ``/v1/health/ready`` says 200; the seconds that took."""
        began = time.monotonic()
        while not self._is_ready():
            if self.process is None or self.process.poll() is not None or time.monotonic() - began > within_s:
                raise AssertionError(f"not ready after {within_s} s:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)
        return time.monotonic() - began

    def workers(self) -> list[int]:
        """The pids of the worker processes."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def from_each_worker(self, question: Callable[[], T]) -> list[T]:
        """What *question* returns for each worker in turn; meanwhile the others are frozen."""
        return [self.from_worker(position, question) for position in range(len(self.workers()))]

    def from_worker(self, position: int, question: Callable[[], T]) -> T:
        """What *question* returns while all workers but the one at *position* are frozen."""
        processes = [psutil.Process(pid) for index, pid in enumerate(self.workers()) if index != position]
        try:
            for process in processes:
                suspend_tree(process)
            return question()
        finally:
            for process in processes:
                resume_tree(process)

    def stop(self, *, within_s: float = 90) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def call(self, method: str, path: str, *, token: str | None = None, **options: Any) -> requests.Response:
        """One request over a connection of its own, so that the kernel deals it to any worker."""
        headers = {"Connection": "close", **options.pop("headers", {})}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return requests.request(method, self.url + path, headers=headers, timeout=HOPELESS_S, **options)

    def register(self, email: str, password: str = PASSWORD) -> requests.Response:
        """Sign up."""
        return self.call("POST", "/v1/auth/register", json={"email": email, "password": password})

    def log_in(self, email: str, password: str = PASSWORD) -> dict[str, Any]:
        """Log in and return the token pair."""
        answer = self.call("POST", "/v1/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        pair: dict[str, Any] = answer.json()
        return pair

    def verify(self, token: str) -> int:
        """The status that a gateway gets for *token*, over a connection of its own."""
        connection = HTTPConnection(HOST, self.port, timeout=HOPELESS_S)
        try:
            headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
            connection.request("GET", "/v1/auth/verify", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def verify_everywhere(self, token: str, *, times: int = 20) -> Counter[int]:
        """The statuses of *times* checks of *token* by each worker."""
        answers = self.from_each_worker(lambda: Counter(self.verify(token) for _ in range(times)))
        return sum(answers, Counter())

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/v1/health/ready").status_code == 200
        except requests.ConnectionError:
            return False

    def _is_whole(self) -> bool:
        """They are forked one after the other: the first may be ready before there is a second."""
        count = int(self.env.get("WEB_CONCURRENCY", "1"))
        is_whole = len(self.workers()) == count and all(self.from_each_worker(self._is_ready))
        if not is_whole:
            # from_each_worker stops all workers but one: without a pause, the others would never start.
            time.sleep(0.2)
        return is_whole
