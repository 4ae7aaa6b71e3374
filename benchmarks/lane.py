"""
Token checks: their CPU by connections, and their latency while others make trouble.

    python benchmarks/lane.py [--seconds 5] [--lane on] [--only rates|troubles] [--matching TEXT]

Brings its own PostgreSQL and Redis, and serves in production mode with two workers and bcrypt cost 12,
once with the lane and once without it (``CHECK_LANE``).  The CPU of the service for one check does not
depend on the load generator; checks per second do: it takes its share of the cores.  Latency is of 100
checks a second, each counted from the moment it was due.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from benchmarks.load import closed_loop, open_loop, request
from benchmarks.main_job import patiently
from tests import ROOT
from tests.processes import HOST
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

USERS = 16
SESSIONS = 100
CHECKS_PER_S = 100
COST_LOG2 = 12
CONNECTIONS = (1, 16, 64)


@dataclass
class Bench:
    """A service with sessions, and what disturbs it."""

    service: Service
    redis: RedisServer
    seconds: float
    matching: str
    emails: list[str] = field(default_factory=list)
    checks: list[bytes] = field(default_factory=list)

    def prepare(self) -> None:
        """Register users and log in."""
        self.emails = [f"user{number}@example.com" for number in range(USERS)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._register, self.emails))
            tokens = list(pool.map(self._log_in, (self.emails * SESSIONS)[:SESSIONS]))
        self.checks = [request("GET", "/v1/auth/verify", token=token) for token in tokens]
        closed_loop(self.service.port, self.checks, connections=8, seconds=1)

    def _register(self, email: str) -> None:
        patiently(lambda: self.service.register(email))

    def _log_in(self, email: str) -> str:
        body = {"email": email, "password": PASSWORD}
        answer = patiently(lambda: self.service.call("POST", "/v1/auth/login", json=body))
        token: str = answer.json()["access_token"]
        return token

    def rates(self) -> None:
        """CPU and rate at each number of connections."""
        for connections in CONNECTIONS:
            before = self._cpu_s()
            result = closed_loop(
                self.service.port, self.checks, connections=connections, seconds=self.seconds
            )
            cpu_us = (self._cpu_s() - before) / len(result.latencies_s) * 1e6
            print(
                f"  {connections:>3} connections: {cpu_us:6.1f} µs of CPU for a check, "
                f"{result.per_s:8,.0f} per s, p99 {result.percentile_ms(99):6.2f} ms"
            )

    def troubles(self) -> None:
        """Latency of checks beside each trouble."""
        self._measure("calm", self._nothing)
        for name, trouble in TROUBLES.items():
            if self.matching in name:
                self._measure(name, lambda trouble=trouble: trouble(self))

    def _measure(self, name: str, trouble: Callable[[], AbstractContextManager[object]]) -> None:
        with ExitStack() as stack:
            stack.enter_context(trouble())
            stack.enter_context(punctual())
            result = open_loop(
                self.service.port, self.checks, per_s=CHECKS_PER_S, seconds=self.seconds, connections=64
            )
        figures = " / ".join(f"{result.percentile_ms(percent):8.1f}" for percent in (50, 99, 100))
        print(f"  {name:<42} p50 / p99 / longest, ms: {figures}   {result.statuses}")

    def _nothing(self) -> ExitStack:
        return ExitStack()

    def _cpu_s(self) -> float:
        total = 0.0
        for pid in self.service.workers():
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
        return total


@contextmanager
def punctual() -> Iterator[None]:
    """This process goes first, where it may: its own lateness is not the service's."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


@contextmanager
def connected(bench: Bench, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """*count* clients that have sent *data* and no more."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((HOST, bench.service.port))) for _ in range(count)
        ]
        for client in clients:
            client.sendall(data)
        time.sleep(0.5)
        yield clients


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """*work* in a thread, until it is told to stop."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    time.sleep(1)
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def logins(bench: Bench, connections: int) -> Iterator[None]:
    """*connections* clients who log in without pause; what they were told, and how long they waited."""
    code = (
        "import sys, json; from benchmarks.load import closed_loop;"
        "d = json.load(sys.stdin);"
        "r = closed_loop(d['port'], [t.encode() for t in d['requests']],"
        " connections=d['connections'], seconds=d['s']);"
        "print(f'    logins: {r.statuses}, longest {r.percentile_ms(100):,.0f} ms')"
    )
    bodies = [json.dumps({"email": email, "password": PASSWORD}) for email in bench.emails]
    payload = {
        "port": bench.service.port,
        "requests": [request("POST", "/v1/auth/login", body=body.encode()).decode() for body in bodies],
        "connections": connections,
        "s": bench.seconds + 3,
    }
    storm = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
    assert storm.stdin
    storm.stdin.write(json.dumps(payload).encode())
    storm.stdin.close()
    time.sleep(2)
    try:
        yield
    finally:
        storm.wait()


@contextmanager
def slow_heads(bench: Bench) -> Iterator[None]:
    """50 clients who send a byte of a head every tenth of a second, and begin again when they are refused."""

    def drip(stop: threading.Event) -> None:
        with ExitStack() as stack:
            clients = [_slow_client(bench, stack) for _ in range(50)]
            while not stop.wait(0.1):
                for place, client in enumerate(clients):
                    try:
                        client.sendall(b"a")
                    except OSError:
                        clients[place] = _slow_client(bench, stack)

    with beside(drip):
        yield


def _slow_client(bench: Bench, stack: ExitStack) -> socket.socket:
    client = stack.enter_context(socket.create_connection((HOST, bench.service.port)))
    client.sendall(b"GET /v1/auth/verify HTTP/1.1\r\nX-Slow: ")
    return client


@contextmanager
def endless_pipeline(bench: Bench) -> Iterator[None]:
    """One client who sends checks without waiting for answers, which it reads as they come."""

    def send(stop: threading.Event) -> None:
        with socket.create_connection((HOST, bench.service.port)) as client:
            client.settimeout(0.01)
            many = b"".join(bench.checks[:50])
            while not stop.is_set():
                with suppress(TimeoutError):
                    client.sendall(many)
                with suppress(TimeoutError):
                    while client.recv(1 << 20):
                        pass

    with beside(send):
        yield


@contextmanager
def hung_redis(bench: Bench) -> Iterator[None]:
    """Redis stands still from half a second into the measurement on, and goes on afterwards."""
    timer = threading.Timer(0.5, bench.redis.pause)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        bench.redis.resume()
        time.sleep(5)


@contextmanager
def stopped_redis(bench: Bench) -> Iterator[None]:
    """Redis is killed half a second into the measurement, and comes back empty afterwards."""
    timer = threading.Timer(0.5, bench.redis.kill)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        bench.redis.start()
        time.sleep(5)


TROUBLES: Mapping[str, Callable[[Bench], AbstractContextManager[object]]] = {
    "16 clients log in without pause": lambda bench: logins(bench, 16),
    "300 clients log in without pause": lambda bench: logins(bench, 300),
    "1,000 idle connections": lambda bench: connected(bench, 1000, bench.checks[0]),
    "500 silent connections": lambda bench: connected(bench, 500),
    "50 clients with slow heads": slow_heads,
    "one endless pipeline": endless_pipeline,
    "Redis hangs": hung_redis,
    "Redis is killed": stopped_redis,
}


def main() -> None:
    """Measure with the lane, then without it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", choices=("rates", "troubles"))
    parser.add_argument("--lane", nargs="+", choices=("on", "off"), default=("on", "off"))
    parser.add_argument("--matching", default="", help="only troubles with this in their name")
    options = parser.parse_args()
    for lane in options.lane:
        print(f"CHECK_LANE={lane}")
        with (
            tempfile.TemporaryDirectory() as folder,
            RedisServer() as redis,
            PostgresServer(fsync=True) as postgres,
        ):
            env = environment(postgres.create_database(), redis.url, Path(folder), **_overrides(lane))
            migrate(env)
            with Service(env, Path(folder)) as service:
                bench = Bench(service, redis, options.seconds, options.matching)
                bench.prepare()
                if options.only != "troubles":
                    bench.rates()
                if options.only != "rates":
                    bench.troubles()


def _overrides(lane: str) -> dict[str, str]:
    return {
        "BCRYPT_COST": str(COST_LOG2),
        "LOG_LEVEL": "error",
        "SESSION_MAX_PER_USER": "100000",
        "CHECK_LANE": lane,
    }


if __name__ == "__main__":
    main()
