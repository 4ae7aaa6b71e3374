"""
What refresh, logout, own profile and the start cost the service, for one or more trees of it in one run.

    python benchmarks/costs.py [--tree DIR ...] [--rounds 3]

Brings its own PostgreSQL and Redis, and serves with two workers.  The trees take turns; the figures are
medians over the rounds.  CPU is what the kernel charged master and workers for each answered request: it
counts what was done, however busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from tests import ROOT
from tests.rig import COMMAND, PASSWORD, Service, development, run_command
from tests.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 8
SESSIONS = 12
REFRESHES = 5
PROFILES = 10

Figures = dict[str, list[float]]


def main() -> None:
    """Measure every tree in turn and print one line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, action="append", help="default: this one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trees = options.tree or [ROOT]
    found: dict[Path, Figures] = {tree: defaultdict(list) for tree in trees}
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        PostgresServer(fsync=True) as postgres,
    ):
        envs = {tree: prepared(tree, postgres.create_database(), redis.url, Path(folder)) for tree in trees}
        for turn in range(options.rounds):
            for tree in trees if turn % 2 == 0 else reversed(trees):
                measure(envs[tree], Path(folder), found[tree])
    for name in found[trees[0]]:
        print(f"{name}: {', '.join(f'{statistics.median(found[tree][name]):.2f}' for tree in trees)}")


def prepared(tree: Path, database_url: str, redis_url: str, folder: Path) -> dict[str, str]:
    """The environment of *tree*, with a database of its own that is up to date."""
    env = development(
        database_url, redis_url, folder, WEB_CONCURRENCY="2", SESSION_MAX_PER_USER="1000",
        CACHE_KEY_PREFIX=f"tree{abs(hash(tree)) % 10**6}", PYTHONPATH=str(tree),
    )  # fmt: skip
    run_command("db", "upgrade", env=env, folder=folder).check_returncode()
    return env


def measure(env: dict[str, str], folder: Path, figures: Figures) -> None:
    """One round of one tree."""
    figures["authsvc --help, s of CPU"].append(help_cpu_s(env, folder))
    began = time.perf_counter()
    with Service(env, folder).start(ready_within_s=60) as service:
        figures["serve to ready, s"].append(time.perf_counter() - began)
        figures["serve to ready, s of CPU"].append(sum(map(cpu_s, processes(service))))
        time.sleep(2)
        figures["idle, MB PSS"].append(sum(one.memory_full_info().pss for one in processes(service)) / 1e6)
        email = f"user{time.time_ns()}@example.com"
        service.register(email)
        callers = [Caller(service, email) for _ in range(CONNECTIONS)]
        for name, act in (
            ("login", Caller.log_in),
            ("refresh", Caller.refresh),
            ("own profile", Caller.profile),
            ("logout", Caller.log_out),
        ):
            figures[f"{name}, ms of CPU"].append(cost_ms(service, callers, act))
        figures["peak of a worker, MB"].append(max(map(peak_mb, service.workers())))


def help_cpu_s(env: dict[str, str], folder: Path) -> float:
    """CPU seconds of ``authsvc --help``."""
    process = psutil.Popen([*COMMAND, "--help"], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    before = psutil.Process().cpu_times()
    process.wait()
    after = psutil.Process().cpu_times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


def processes(service: Service) -> list[psutil.Process]:
    """The master and its workers."""
    assert service.process is not None
    master = psutil.Process(service.process.pid)
    return [master, *master.children()]


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that *process* itself has used."""
    times = process.cpu_times()
    return times.user + times.system


def peak_mb(pid: int) -> float:
    """The highest resident size, shared pages included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def cost_ms(service: Service, callers: list[Caller], act: Callable[[Caller], int]) -> float:
    """CPU milliseconds of the service for each request of *act*, all callers at once."""
    watched = processes(service)
    before = sum(map(cpu_s, watched))
    with ThreadPoolExecutor(len(callers)) as pool:
        answered = sum(pool.map(act, callers))
    return (sum(map(cpu_s, watched)) - before) * 1000 / answered


class Caller:
    """One kept connection with sessions of its own; each act returns how many requests were answered."""

    def __init__(self, service: Service, email: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
        self._email = email
        self._pairs: list[dict[str, Any]] = []

    def log_in(self) -> int:
        """Open the sessions."""
        form = {"email": self._email, "password": PASSWORD}
        self._pairs = [self._send("POST", "/v1/auth/login", 200, form) for _ in range(SESSIONS)]
        return SESSIONS

    def refresh(self) -> int:
        """Rotate the refresh token of each session, several times."""
        for _ in range(REFRESHES):
            self._pairs = [
                self._send("POST", "/v1/auth/refresh", 200, {"refresh_token": pair["refresh_token"]})
                for pair in self._pairs
            ]
        return REFRESHES * SESSIONS

    def profile(self) -> int:
        """Read the own profile with the token of each session, several times."""
        for _ in range(PROFILES):
            for pair in self._pairs:
                self._send("GET", "/v1/me", 200, token=pair["access_token"])
        return PROFILES * SESSIONS

    def log_out(self) -> int:
        """End every session by its access token."""
        for pair in self._pairs:
            self._send("POST", "/v1/auth/logout", 204, token=pair["access_token"])
        return SESSIONS

    def _send(
        self, method: str, path: str, status: int, form: dict[str, str] | None = None, *, token: str = ""
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = None
        if form is not None:
            headers["Content-Type"], body = "application/json", json.dumps(form)
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != status:
            raise AssertionError(f"{method} {path}: {answer.status} {text[:200]!r}")
        found: dict[str, Any] = json.loads(text) if text else {}
        return found


if __name__ == "__main__":
    main()
