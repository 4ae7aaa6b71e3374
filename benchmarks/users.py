"""
What the user cache is worth to the service, as ratios within one run.

    python benchmarks/users.py [--rounds 5] [--seconds 2]

Brings its own PostgreSQL and Redis, and serves in production mode with two workers.  Only ratios between
figures of one run mean anything: the load generator shares the cores with the service.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psycopg
import requests

from authsvc.domain.authentication import Registration
from authsvc.domain.users import Profile
from authsvc.domain.values.emails import Email
from authsvc.settings import Settings
from authsvc.wiring import build
from benchmarks.load import Result, closed_loop, open_loop, request, rounds_and_seconds
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from authsvc.domain.values.identifiers import UserId
    from authsvc.services import Services

ADMIN = "admin@example.com"
BATCH = 100
COLD_KEYS, RATE_PER_S, CONNECTIONS = 10, 500, 16
STORMS = 5
HUNG_REQUESTS, HUNG_PER_S = 200, 20
#: More failures in the breaker's window than there will be.
NEVER = "1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The stores, the settings for them, and the users."""

    redis: RedisServer
    postgres: PostgresServer
    env: dict[str, str]
    folder: Path
    ids: list[UserId]


def main() -> None:
    """Measure everything and print one line for each figure."""
    options = rounds_and_seconds(__doc__, rounds=5, seconds=2).parse_args()
    logged = PostgresServer("-c", "log_statement=all", fsync=True)
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis, logged as postgres:
        env = environment(postgres.create_database(), redis.url, Path(folder), LOG_LEVEL="warning")
        migrate(env)
        quiet(postgres)
        world = World(redis=redis, postgres=postgres, env=env, folder=Path(folder), ids=populate(env))
        with closing(build(Settings.from_env(env))) as services:
            compare_reads(services, world.ids, options.rounds)
        with Service(env, world.folder) as service:
            token = service.log_in(ADMIN)["access_token"]
            compare_batch(service, world.ids, token, options.rounds, options.seconds)
            storm(service, world, token, options.seconds)
        compare_breaker(world)


def quiet(postgres: PostgresServer, *, log_statement: str = "none") -> None:
    """Set what PostgreSQL logs: only the storm is counted by its log, which costs time."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET log_statement = '{log_statement}'")
        connection.execute("SELECT pg_reload_conf()")
    time.sleep(0.5)


def populate(env: dict[str, str]) -> list[UserId]:
    """An admin and as many users as a batch holds; their ids."""
    with closing(build(Settings.from_env(env))) as services:
        services.compare()
        register(services, ADMIN)
        services.users.set_roles(Email(ADMIN), ("admin",))
        return [register(services, f"user{number}@example.com") for number in range(BATCH)]


def register(services: Services, email: str) -> UserId:
    """Sign somebody up."""
    form = Registration(email=email, password=PASSWORD, profile=Profile())
    return services.authentication.register(form).id


def compare_reads(services: Services, ids: list[UserId], rounds: int) -> None:
    """A user from Redis against the same one from PostgreSQL, without HTTP around either."""
    store: Any = services.users.store
    services.compare()
    many = ids[:BATCH]
    works: dict[str, Callable[[], object]] = {
        "one, cached": lambda: store.get(ids[0]),
        "one, SQL": lambda: store.behind.get(ids[0]),
        "hundred, cached": lambda: store.get_many(many),
        "hundred, SQL": lambda: store.behind.get_many(many),
    }
    took_s = measure(works, rounds=rounds * 10, repeats=20)
    if services.metrics.cache_totals().misses > 2 * BATCH:
        raise SystemExit("the cached reads were no hits")
    for count in ("one", "hundred"):
        cached_s, sql_s = took_s[f"{count}, cached"], took_s[f"{count}, SQL"]
        print(
            f"read of {count}: cached {cached_s * 1e6:.0f} us, SQL {sql_s * 1e6:.0f} us,"
            f" SQL / cached {sql_s / cached_s:.2f} (idle PostgreSQL on the same machine)"
        )


def measure(works: dict[str, Callable[[], object]], *, rounds: int, repeats: int) -> dict[str, float]:
    """The middle round of each work, in seconds for one; all take turns."""
    took_s: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            began_s = time.perf_counter()
            for _ in range(repeats):
                work()
            took_s[name].append((time.perf_counter() - began_s) / repeats)
    return {name: statistics.median(times) for name, times in took_s.items()}


def compare_batch(service: Service, ids: list[UserId], token: str, rounds: int, seconds: float) -> None:
    """A hundred cached users by one request, against a hundred requests on one connection."""
    single = [request("GET", f"/v1/users/{user_id}", token=token) for user_id in ids]
    batch = [request("GET", f"/v1/batch/users/lookup?ids={','.join(ids)}", token=token)]
    ratios = []
    for _ in range(rounds):
        one_s = per_request_s(closed_loop(service.port, single, connections=1, seconds=seconds))
        many_s = per_request_s(closed_loop(service.port, batch, connections=1, seconds=seconds))
        ratios.append(one_s * BATCH / many_s)
    print(
        f"look-up of {BATCH} cached users by HTTP: {statistics.median(ratios):.1f} x faster than one by one"
        f" ({min(ratios):.1f} to {max(ratios):.1f}; goal 20)"
    )


def per_request_s(result: Result) -> float:
    """Seconds for each answer, all of them 200."""
    if set(result.statuses) != {200}:
        raise SystemExit(f"unexpected answers: {result.statuses}")
    return result.took_s / len(result.latencies_s)


def storm(service: Service, world: World, token: str, seconds: float) -> None:
    """500 requests a second for ten users that nobody has cached: queries for each, over both workers."""
    cold = world.ids[:COLD_KEYS]
    requests_ = [request("GET", f"/v1/users/{user_id}", token=token) for user_id in cold]
    loads: list[int] = []
    for _ in range(STORMS):
        clear = f"{service.url}/v1/cache/clear"
        requests.post(clear, headers={"Authorization": f"Bearer {token}"}, timeout=5).raise_for_status()
        quiet(world.postgres, log_statement="all")
        before = len(world.postgres.log_path.read_text(errors="replace"))
        result = open_loop(
            service.port, requests_, per_s=RATE_PER_S, seconds=seconds, connections=CONNECTIONS
        )
        quiet(world.postgres)
        log = world.postgres.log_path.read_text(errors="replace")[before:]
        loads += [loads_of(log, user_id) for user_id in cold]
        if set(result.statuses) != {200}:
            raise SystemExit(f"unexpected answers: {result.statuses}")
    print(
        f"{RATE_PER_S} requests/s on {COLD_KEYS} cold users, {STORMS} times: {sum(loads)} SQL loads of"
        f" {len(loads)} cold keys, at most {max(loads)} for one (goal 1),"
        f" p99 {result.percentile_ms(99):.0f} ms"
    )


def loads_of(log: str, user_id: str) -> int:
    """How many queries named *user_id* among their parameters."""
    return sum(user_id in line for line in log.splitlines() if "arameters" in line)


def compare_breaker(world: World) -> None:
    """GET /v1/me while Redis hangs, with the breaker and with one that never opens."""
    p99: dict[str, float] = {}
    for name, threshold in (("with the breaker", "5"), ("without", NEVER)):
        env = world.env | {"CACHE_CB_FAILURE_THRESHOLD": threshold, "CACHE_WARMUP_ENABLED": "false"}
        with Service(env, world.folder) as service:
            token = service.log_in(ADMIN)["access_token"]
            me = [request("GET", "/v1/me", token=token)]
            closed_loop(service.port, me, connections=4, seconds=0.5)
            world.redis.pause()
            try:
                result = open_loop(
                    service.port,
                    me,
                    per_s=HUNG_PER_S,
                    seconds=HUNG_REQUESTS / HUNG_PER_S,
                    connections=CONNECTIONS,
                )
            finally:
                world.redis.resume()
        p99[name] = result.percentile_ms(99)
        print(
            f"Redis hangs, GET /v1/me {name}: middle {result.percentile_ms(50):.0f} ms,"
            f" p99 {p99[name]:.0f} ms, answers {result.statuses}"
        )
    print(f"what the breaker saves at p99: {p99['without'] / p99['with the breaker']:.1f} x")


if __name__ == "__main__":
    main()
