"""
The service's figures on this machine, as ratios within one run.

    python benchmarks/figures.py [--rounds 3] [--seconds 5]

Brings its own PostgreSQL and Redis, and serves in production mode with two workers and bcrypt cost 12.
Only ratios between rows of one run mean anything: the load generator shares the cores with the service.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import bcrypt
import psutil

from benchmarks.load import Result, closed_loop, open_loop, request, rounds_and_seconds
from tests import ROOT
from tests.processes import free_port
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

USERS = 16
CONNECTIONS = 16
COST_LOG2 = 12
CHECKS_PER_S = 100


def main() -> None:
    """Measure everything and print one line for each figure."""
    options = rounds_and_seconds(__doc__, rounds=3, seconds=5).parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        PostgresServer(fsync=True) as postgres,
    ):
        env = environment(
            postgres.create_database(),
            redis.url,
            Path(folder),
            BCRYPT_COST=str(COST_LOG2),
            LOG_LEVEL="warning",
            SESSION_MAX_PER_USER="100000",
        )
        migrate(env)
        began = time.perf_counter()
        with Service(env, Path(folder)) as service:
            print(f"start to ready: {time.perf_counter() - began:.2f} s")
            measure(service, options.rounds, options.seconds)


def measure(service: Service, rounds: int, seconds: float) -> None:
    """Run every comparison against *service*."""
    emails = [f"user{number}@example.com" for number in range(USERS)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(service.register, emails))
        tokens = [pair["access_token"] for pair in pool.map(service.log_in, emails)]
    checks = [request("GET", "/v1/auth/verify", token=token) for token in tokens]
    logins = [_login(email) for email in emails]
    print(f"idle memory: {_pss_mb(service):.0f} MB PSS, workers and master")
    _compare_checks(service, checks, rounds, seconds)
    _compare_logins(service, logins, rounds, seconds)
    _compare_storm(service, checks, logins, rounds, seconds)
    print(f"peak memory of a worker: {_peak_mb(service):.0f} MB resident")


def _compare_checks(service: Service, checks: list[bytes], rounds: int, seconds: float) -> None:
    """A check against an empty Flask route under the same server, 16 connections each."""
    port, metrics_port = free_port(), free_port()
    bare = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "bare.py"), str(port), str(metrics_port)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    try:
        _wait_for(port)
        pairs = []
        for _ in range(rounds):
            check = closed_loop(service.port, checks, connections=CONNECTIONS, seconds=seconds)
            empty = closed_loop(port, [request("GET", "/")], connections=CONNECTIONS, seconds=seconds)
            _require(check, 200)
            pairs.append((check.per_s, empty.per_s))
        _say("check / empty Flask route, per s", pairs, "≥ 0.6")
    finally:
        bare.terminate()
        bare.wait()


def _compare_logins(service: Service, logins: list[bytes], rounds: int, seconds: float) -> None:
    """Logins against bcrypt alone on as many threads as there are cores."""
    pairs, refused = [], 0
    for _ in range(rounds):
        raw = _raw_bcrypt_per_s(2 * seconds)
        login = closed_loop(service.port, logins, connections=CONNECTIONS, seconds=4 * seconds)
        _require(login, 200, 503)
        refused += login.statuses.get(503, 0)
        pairs.append((login.statuses[200] / login.took_s, raw))
    _say("logins / raw bcrypt, per s", pairs, "≥ 0.95")
    print(f"logins told to come back because hashing was busy: {refused}")


def _compare_storm(
    service: Service, checks: list[bytes], logins: list[bytes], rounds: int, seconds: float
) -> None:
    """p99 of 100 checks a second, while 16 connections log in without pause and while they do not."""
    pairs = []
    for _ in range(rounds):
        calm = _open(service, checks, seconds)
        flood = threading.Thread(target=_flood, args=(service, logins, seconds + 2))
        flood.start()
        time.sleep(1)
        loaded = _open(service, checks, seconds)
        flood.join()
        pairs.append((loaded.percentile_ms(99), calm.percentile_ms(99)))
    _say("check p99 in a login storm / calm, ms", pairs, "≤ 3")


def _open(service: Service, checks: list[bytes], seconds: float) -> Result:
    result = open_loop(service.port, checks, per_s=CHECKS_PER_S, seconds=seconds, connections=CONNECTIONS)
    _require(result, 200)
    return result


def _flood(service: Service, logins: list[bytes], seconds: float) -> None:
    """The storm comes from a process of its own: its work must not delay the generator of the checks."""
    code = (
        "import sys, json; from benchmarks.load import closed_loop;"
        "data = json.load(sys.stdin);"
        "requests = [text.encode() for text in data['requests']];"
        "closed_loop(data['port'], requests, connections=16, seconds=data['s'])"
    )
    payload = {"port": service.port, "requests": [login.decode() for login in logins], "s": seconds}
    subprocess.run([sys.executable, "-c", code], input=json.dumps(payload).encode(), cwd=ROOT, check=True)


def _raw_bcrypt_per_s(seconds: float) -> float:
    """Hashes a second that the library does on all cores."""
    cores = len(psutil.Process().cpu_affinity())
    salt = bcrypt.gensalt(COST_LOG2)
    ends = time.perf_counter() + seconds

    def work() -> int:
        done = 0
        while time.perf_counter() < ends:
            bcrypt.hashpw(b"x" * 64, salt)
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        done = sum(future.result() for future in [pool.submit(work) for _ in range(cores)])
    return done / (time.perf_counter() - began)


def _say(what: str, pairs: list[tuple[float, float]], goal: str) -> None:
    """One line: the median ratio over the rounds, its range, and the medians behind it."""
    ratios = sorted(a / b for a, b in pairs)
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    middle = statistics.median(ratios)
    print(
        f"{what}: {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; goal {goal}) = {ours:.1f} / {theirs:.1f}"
    )


def _require(result: Result, *allowed: int) -> None:
    if not set(result.statuses) <= set(allowed):
        raise SystemExit(f"expected {allowed} alone, got {result.statuses}")


def _login(email: str) -> bytes:
    return request("POST", "/v1/auth/login", body=json.dumps({"email": email, "password": PASSWORD}).encode())


def _processes(service: Service) -> list[psutil.Process]:
    master = psutil.Process(service.process.pid)
    return [master, *master.children()]


def _pss_mb(service: Service) -> float:
    return sum(process.memory_full_info().pss for process in _processes(service)) / 1e6


def _peak_mb(service: Service) -> float:
    """The highest resident size that any worker has had, shared pages included."""
    return max(_status_kb(pid, "VmHWM") for pid in service.workers()) / 1000


def _status_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _wait_for(port: int) -> None:
    ends = time.perf_counter() + 10
    while time.perf_counter() < ends:
        try:
            closed_loop(port, [request("GET", "/")], connections=1, seconds=0.01)
        except ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the bare application does not answer")


if __name__ == "__main__":
    main()
