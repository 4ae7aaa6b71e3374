"""
What second factors cost token checks: without levels, with them, and asked for by ``acr`` and ``max_age``.

    python benchmarks/levels.py [--before DIR] [--rounds 3] [--seconds 4]

Brings its own PostgreSQL and Redis.  One service with two workers for each variant, all over the same
stores; the variants take turns, and the figures are medians over the rounds.  CPU is what the kernel
charged the workers for each answered check.  ``--before`` is another tree of the service, to compare with.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from benchmarks.load import closed_loop, request, rounds_and_seconds
from tests import ROOT
from tests.rig import PASSWORD, Service, environment, run_command
from tests.servers import PostgresServer, RedisServer

CONNECTIONS = 16
SESSIONS = 50
ON = {"SECOND_FACTORS": "on", "DATA_KEY": "benchmark-data-key-" + "89abcdef01234567" * 2}
ASKED = "?acr=aal1&max_age=86400"


@dataclass(frozen=True)
class Variant:
    """A service, and what is asked of it."""

    name: str
    query: str = ""
    settings: dict[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant("second factors off"),
    Variant("second factors on", settings=ON),
    Variant("on, with acr and max_age", query=ASKED, settings=ON),
    Variant("on, with a role", query="?role=user", settings=ON),
    Variant("lane off: on", settings=ON | {"CHECK_LANE": "off"}),
    Variant("lane off: on, with acr and max_age", query=ASKED, settings=ON | {"CHECK_LANE": "off"}),
)


def main() -> None:
    """Measure every variant in turn, and print its figure and its ratio to the first."""
    parser = rounds_and_seconds(__doc__, rounds=3, seconds=4)
    parser.add_argument("--before", type=Path, help="another tree of the service")
    options = parser.parse_args()
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis, PostgresServer() as postgres:

        def prepared(tree: Path) -> dict[str, str]:
            env = environment(
                postgres.create_database(), redis.url, Path(folder), LOG_LEVEL="error",
                SESSION_MAX_PER_USER="100000", PYTHONPATH=str(tree), CACHE_KEY_PREFIX=f"t{tree.name}",
            )  # fmt: skip
            run_command("db", "upgrade", env=env, folder=Path(folder)).check_returncode()
            return env

        here = prepared(ROOT)
        variants = [(variant, here) for variant in VARIANTS]
        if options.before is not None:
            variants.insert(0, (Variant("before"), prepared(options.before.resolve())))
        for turn in range(options.rounds):
            for variant, env in variants if turn % 2 == 0 else reversed(variants):
                found[variant.name].append(measure(env, Path(folder), variant, options.seconds))
    first = statistics.median(found[variants[0][0].name])
    for variant, _ in variants:
        cost_us = statistics.median(found[variant.name])
        print(f"{variant.name:<36} {cost_us:6.1f} µs of CPU for a check, ratio {cost_us / first:.2f}")


def measure(env: dict[str, str], folder: Path, variant: Variant, seconds: float) -> float:
    """Microseconds of CPU for each check of one round."""
    with ExitStack() as stack:
        service = stack.enter_context(Service(env | variant.settings, folder))
        email = "ada@example.com"
        service.register(email)
        tokens = [service.log_in(email, PASSWORD)["access_token"] for _ in range(SESSIONS)]
        checks = [request("GET", f"/v1/auth/verify{variant.query}", token=token) for token in tokens]
        closed_loop(service.port, checks, connections=CONNECTIONS, seconds=1)
        before = cpu_s(service)
        result = closed_loop(service.port, checks, connections=CONNECTIONS, seconds=seconds)
        if set(result.statuses) != {200}:
            raise AssertionError(result.statuses)
        return (cpu_s(service) - before) / len(result.latencies_s) * 1e6


def cpu_s(service: Service) -> float:
    """CPU seconds that the workers have used."""
    times = [psutil.Process(pid).cpu_times() for pid in service.workers()]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
