"""
What a cluster costs: token checks against one Redis in the same run, and the comparisons in the background.

    python benchmarks/cluster.py [--seconds 5]

Brings its own PostgreSQL, one Redis, and a cluster of three primaries; a service in production mode with two
workers on each.  Rates are measured in turn, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from benchmarks.load import closed_loop, request
from benchmarks.main_job import patiently
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer
from tests.servers.clusters import Cluster, cluster

USERS = 100
CONNECTIONS = (1, 16, 64)
ROUNDS = 3


@dataclass
class Bench:
    """A service with sessions of many users."""

    name: str
    service: Service
    checks: list[bytes]

    @classmethod
    def of(cls, name: str, service: Service) -> Bench:
        """Register users and log in."""
        checks = []
        for number in range(USERS):
            email = f"user{number}@example.com"
            patiently(partial(service.register, email))
            body = {"email": email, "password": PASSWORD}
            answer = patiently(partial(service.call, "POST", "/v1/auth/login", json=body))
            checks.append(request("GET", "/v1/auth/verify", token=answer.json()["access_token"]))
        closed_loop(service.port, checks, connections=8, seconds=1)
        return cls(name, service, checks)

    def cpu_us(self, connections: int, seconds: float) -> float:
        """The CPU of the service for one check."""
        before = self.cpu_s()
        result = closed_loop(self.service.port, self.checks, connections=connections, seconds=seconds)
        assert set(result.statuses) == {200}, result.statuses
        return (self.cpu_s() - before) / len(result.latencies_s) * 1e6

    def cpu_s(self) -> float:
        """What the workers have used."""
        times = [psutil.Process(pid).cpu_times() for pid in self.service.workers()]
        return sum(one.user + one.system for one in times)

    def idle_ms_per_s(self, seconds: float) -> float:
        """The CPU of one worker in a second without requests."""
        before = self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - before) / seconds / len(self.service.workers()) * 1000


def compare(one: Bench, three: Bench, seconds: float) -> None:
    """Rates in turn."""
    for connections in CONNECTIONS:
        figures: dict[str, list[float]] = {one.name: [], three.name: []}
        for _ in range(ROUNDS):
            for bench in (one, three):
                figures[bench.name].append(bench.cpu_us(connections, seconds))
        single, clustered = median(figures[one.name]), median(figures[three.name])
        print(
            f"  {connections:>3} connections: {single:6.1f} µs of CPU for a check on one Redis, "
            f"{clustered:6.1f} µs on the cluster, {clustered / single:.2f} times as much"
        )


def commands(nodes: Cluster) -> list[int]:
    """How many commands each server has carried out."""
    stats: list[dict[str, Any]] = [nodes.ask(index, "INFO", "stats") for index in range(3)]
    return [int(one["total_commands_processed"]) for one in stats]


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer())
        redis = stack.enter_context(RedisServer())
        nodes = stack.enter_context(cluster())
        for lane in ("on", "off"):
            print(f"CHECK_LANE={lane}")
            with ExitStack() as both:
                benches = []
                for name, url in (("one", redis.url), ("cluster", nodes.url)):
                    env = environment(
                        postgres.create_database(), url, folder,
                        CHECK_LANE=lane, CACHE_KEY_PREFIX=f"{name}-{lane}",
                    )  # fmt: skip
                    migrate(env)
                    benches.append(Bench.of(name, both.enter_context(Service(env, folder).start())))
                one, three = benches
                before = commands(nodes)
                compare(one, three, seconds)
                counted = [after - earlier for earlier, after in zip(before, commands(nodes), strict=True)]
                shares = ", ".join(f"{count * 3 / sum(counted):.2f}" for count in counted)
                print(f"  commands of each server, as a part of the mean: {shares}")
                idle = [bench.idle_ms_per_s(10) for bench in benches]
                print(
                    f"  a worker without requests: {idle[0]:.1f} ms of CPU a second with one Redis,"
                    f" {idle[1]:.1f} ms with the cluster"
                )


if __name__ == "__main__":
    main()
