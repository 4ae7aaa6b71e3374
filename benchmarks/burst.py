"""
What 300 clients that log in at once do to token checks, and how long they wait themselves.

    python benchmarks/burst.py [--rounds 3] [--seconds 8]

Brings its own PostgreSQL and Redis, and two replicas of two workers each, with bcrypt cost 12.  Each replica
gets 100 checks a second and half of the logins.  The generators share the cores with the service.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.load import Result, open_loop, request, rounds_and_seconds
from tests import ROOT
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

USERS = 20
LOGINS = 300
CHECKS_PER_S = 100
CONNECTIONS = 16
BUSY = {200, 503}
#: Logins come from a process of their own: its work must not delay the generator of the checks.
ALL_AT_ONCE = """
import json, sys
from benchmarks.load import all_at_once
data = json.load(sys.stdin)
result = all_at_once(data["port"], [text.encode() for text in data["requests"]], within_s=30)
json.dump([result.statuses, max(result.latencies_s)], sys.stdout)
"""


def main() -> None:
    """Measure, and print a line for each round."""
    options = rounds_and_seconds(__doc__, rounds=3, seconds=8).parse_args()
    settings = {"BCRYPT_COST": "12", "LOG_LEVEL": "warning", "SESSION_MAX_PER_USER": "1000"}
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        PostgresServer(fsync=True) as postgres,
    ):
        env = environment(postgres.create_database(), redis.url, Path(folder), **settings)
        migrate(env)
        with Service(env, Path(folder)) as one, Service(env, Path(folder)) as other:
            measure((one, other), options.rounds, options.seconds)


def measure(replicas: Sequence[Service], rounds: int, seconds: float) -> None:
    """Calm checks, then checks beside the logins, in each round."""
    emails = [f"user{number}@example.com" for number in range(USERS)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(replicas[0].register, emails))
        tokens = [pair["access_token"] for pair in pool.map(replicas[0].log_in, emails)]
    checks = [request("GET", "/v1/auth/verify", token=token) for token in tokens]
    for _ in range(rounds):
        calm = _check(replicas, checks, seconds)
        with ThreadPoolExecutor(1) as pool:
            checking = pool.submit(_check, replicas, checks, seconds)
            time.sleep(1)
            statuses, longest_s = _log_in(replicas, emails)
            loaded = checking.result()
        calm_ms, loaded_ms = _p99_ms(calm), _p99_ms(loaded)
        print(
            f"check p99 {loaded_ms:.1f} ms, calm {calm_ms:.1f} ms ({loaded_ms / calm_ms:.1f}, goal: 10); "
            f"longest login {longest_s:.1f} s; logins by status {dict(statuses)}",
            flush=True,
        )


def _check(replicas: Sequence[Service], checks: Sequence[bytes], seconds: float) -> list[Result]:
    def check(replica: Service) -> Result:
        return open_loop(replica.port, checks, per_s=CHECKS_PER_S, seconds=seconds, connections=CONNECTIONS)

    with ThreadPoolExecutor(len(replicas)) as pool:
        results = list(pool.map(check, replicas))
    assert all(result.statuses.keys() == {200} for result in results)
    return results


def _log_in(replicas: Sequence[Service], emails: Sequence[str]) -> tuple[Counter[str], float]:
    """All logins at once: how many got which status, and the longest wait in seconds."""
    bodies = [json.dumps({"email": email, "password": PASSWORD}).encode() for email in emails]
    logins = [request("POST", "/v1/auth/login", body=body).decode() for body in bodies]
    share = [logins[number % len(logins)] for number in range(LOGINS // len(replicas))]
    generators = [
        subprocess.Popen(
            [sys.executable, "-c", ALL_AT_ONCE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in replicas
    ]
    with ThreadPoolExecutor(len(replicas)) as pool:
        asked = [json.dumps({"port": replica.port, "requests": share}) for replica in replicas]
        told = pool.map(lambda pair: pair[0].communicate(pair[1])[0], zip(generators, asked, strict=True))
        answers = [json.loads(text) for text in told]
    statuses: Counter[str] = Counter()
    for counts, _ in answers:
        statuses.update(counts)
    assert {int(status) for status in statuses} <= BUSY
    assert statuses.total() == len(share) * len(replicas)
    return statuses, max(longest_s for _, longest_s in answers)


def _p99_ms(results: Sequence[Result]) -> float:
    latencies = [latency for result in results for latency in result.latencies_s]
    return Result(latencies_s=latencies).percentile_ms(99)


if __name__ == "__main__":
    main()
