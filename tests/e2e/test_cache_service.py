"""The user cache of two workers: one set of figures, one warm-up, one truth; and its commands."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import requests
from redis import Redis

from authsvc.domain.authentication import Registration
from authsvc.domain.users import Profile
from authsvc.domain.values.emails import Email
from authsvc.settings import Settings
from authsvc.wiring import build
from tests.processes import free_port, wait_until
from tests.rig import HOPELESS_S, PASSWORD, Service, environment, migrate, run_command
from tests.servers import RedisServer, drop_database
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ADMIN = "admin@example.com"
PEOPLE = 5
#: Everything of the table in docs/observability.md that is about cache, batches, breaker and locks.
PROMISED = {
    "user_cache_hits_total",
    "user_cache_misses_total",
    "user_cache_operation_duration_seconds_count",
    "user_batch_operations_total",
    "user_batch_operation_duration_seconds_count",
    "user_cache_hit_ratio",
    "cache_operation_latency_seconds_count",
    "cache_hit_rate",
    "cache_errors_total",
    "cache_circuit_breaker_state",
    "cache_active_locks",
}
#: Those that are one number for the whole service.
SINGLE = PROMISED - {
    "user_cache_operation_duration_seconds_count",
    "user_batch_operations_total",
    "user_batch_operation_duration_seconds_count",
    "cache_errors_total",
}
SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")


class Cast:
    """A service of two workers on a Redis of its own, and the users that were there before it started."""

    def __init__(self, service: Service, redis: RedisServer, ids: list[str]) -> None:
        self.service = service
        self.ids = ids
        self._redis = redis
        self._tokens: list[str] = []

    def admin(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request of the admin."""
        if not self._tokens:
            self._tokens.append(str(self.service.log_in(ADMIN)["access_token"]))
        return self.service.call(method, path, token=self._tokens[0], **options)

    def read_into_cache(self, user_id: str) -> None:
        """Have the user read until they are cached: not at once where Redis was out of order just before."""

        def is_cached() -> bool:
            assert self.admin("GET", f"/v1/users/{user_id}").status_code == 200
            return f"user:{user_id}" in self.names("user:*")

        wait_until(is_cached, what=f"user {user_id} in the cache")

    def names(self, pattern: str) -> set[str]:
        """The keys in Redis like *pattern*, without prefix and version."""
        with Redis.from_url(self._redis.url, decode_responses=True) as client:
            return {key.removeprefix("authsvc:v1:") for key in client.scan_iter(f"authsvc:v1:{pattern}")}

    def command(self, *arguments: str, **overrides: str) -> Any:
        """Run ``authsvc cache`` with the service's settings."""
        env = self.service.env | overrides
        return run_command("cache", *arguments, env=env, folder=self.service.log.parent, entry=PATIENT)


@pytest.fixture(scope="module")
def cast(postgres_server, tmp_path_factory) -> Iterator[Cast]:
    """One service for all tests here."""
    folder = tmp_path_factory.mktemp("cache")
    with RedisServer() as redis:
        env = environment(postgres_server.create_database(), redis.url, folder)
        migrate(env)
        ids = populate(env)
        with Redis.from_url(redis.url) as client:
            client.flushall()
        with Service(env, folder, entry=PATIENT) as service:
            yield Cast(service, redis, ids)
    drop_database(postgres_server.url, env["DATABASE_URL"])


def populate(env: dict[str, str]) -> list[str]:
    """Users who have logged in, the first of them an admin; their ids."""
    emails = [ADMIN, *(f"person{number}@example.com" for number in range(1, PEOPLE))]
    with closing(build(Settings.from_env(env))) as services:
        forms = [Registration(email=email, password=PASSWORD, profile=Profile()) for email in emails]
        users = [services.authentication.register(form) for form in forms]
        services.users.set_roles(Email(ADMIN), ("admin",))
        services.batches.note_logins([user.id for user in users])
    return [user.id for user in users]


def samples(service: Service) -> dict[str, dict[str, float]]:
    """The figures by name, then by labels."""
    found: dict[str, dict[str, float]] = {}
    for line in requests.get(service.metrics_url, timeout=HOPELESS_S).text.splitlines():
        sample = SAMPLE.fullmatch(line)
        if sample is not None:
            found.setdefault(sample["name"], {})[sample["labels"] or ""] = float(sample["value"])
    return found


def total(figures: dict[str, dict[str, float]], name: str, label: str = "") -> float:
    """The sum of a figure over the labels that contain *label*."""
    return sum(value for labels, value in figures.get(name, {}).items() if label in labels)


def test_the_cache_is_warmed_at_the_start_by_one_worker(cast):
    """Within seconds; each user and the first page are loaded once, though both workers begin."""
    wanted = {f"user:{user_id}" for user_id in cast.ids}
    wait_until(lambda: wanted <= cast.names("user:*"))
    wait_until(lambda: len(warmings(cast.service)) == 4)

    figures = samples(cast.service)

    assert total(figures, "user_cache_misses_total") == PEOPLE + 1
    assert len(cast.names("users:list:*")) == 1
    assert cast.names("lock:*") == set()
    runs = [run for run in warmings(cast.service) if run["warmer"] == "users"]
    assert {(run["count"], run["end"]) for run in runs} <= {(PEOPLE, "done"), (0, "busy")}
    assert (PEOPLE, "done") in {(run["count"], run["end"]) for run in runs}


def warmings(service: Service) -> list[dict[str, Any]]:
    """What the log says of warm-ups that ended."""
    lines = service.log.read_text().splitlines()
    return [json.loads(line) for line in lines if '"cache.warmed"' in line]


def test_a_service_that_must_not_warm_does_not(cast):
    """CACHE_WARMUP_ENABLED=false: nothing is read that nobody asked for."""
    folder = cast.service.log.parent
    env = cast.service.env | {
        "CACHE_WARMUP_ENABLED": "false",
        "CACHE_KEY_PREFIX": "cold",
        "WEB_CONCURRENCY": "1",
    }
    with Service(env, folder, entry=PATIENT) as service:
        figures = samples(service)

    assert total(figures, "user_cache_misses_total") == total(figures, "user_cache_hits_total") == 0
    assert warmings(service) == []


def test_figures_are_exact_over_both_workers(cast):
    """Counts are sums, ratios are computed from them, and either worker tells the same."""
    one, *others = cast.ids
    assert cast.admin("GET", f"/v1/users/{one}").status_code == 200
    assert cast.admin("POST", "/v1/cache/clear").status_code == 200
    before = samples(cast.service)

    def ask() -> None:
        for _ in range(3):
            assert cast.admin("GET", f"/v1/users/{one}").status_code == 200
        ids = ",".join([*others, str(uuid4())])
        for _ in range(2):
            assert cast.admin("GET", f"/v1/batch/users/lookup?ids={ids}").status_code == 200
        body = {"users": [{"email": f"{uuid4().hex}@example.com", "password": PASSWORD}]}
        assert cast.admin("POST", "/v1/batch/users/create", json=body).json()["created"] == 1
        body = {"ids": [one]}
        assert cast.admin("PATCH", "/v1/batch/users/last-login", json=body).status_code == 200

    cast.service.from_each_worker(ask)
    scrapes = cast.service.from_each_worker(lambda: samples(cast.service))

    # The last login drops the one user; who nobody is, is a miss each time.  A comparison that comes along
    # drops them again, and a call to Redis that is late is a miss, too: never more hits, never fewer lookups.
    lookups = 2 * (3 + 2 * (len(others) + 1))
    fewest_misses = 2 * 1 + (len(others) + 1) + 3
    for after in scrapes:
        grown = {name: total(after, name) - total(before, name) for name in PROMISED}
        assert grown["user_cache_hits_total"] + grown["user_cache_misses_total"] == lookups
        assert fewest_misses <= grown["user_cache_misses_total"] < lookups
        for operation, times in (("lookup", 4), ("create", 2), ("last_login", 2)):
            label = f'operation="{operation}"'
            for name in ("user_batch_operations_total", "user_batch_operation_duration_seconds_count"):
                assert total(after, name, label) - total(before, name, label) == times
        get, many = (f'operation="{name}"' for name in ("get", "get_many"))
        name = "user_cache_operation_duration_seconds_count"
        assert total(after, name, get) - total(before, name, get) == 2 * 3
        assert total(after, name, many) - total(before, name, many) == 2 * 2
        all_hits, all_misses = total(after, "user_cache_hits_total"), total(after, "user_cache_misses_total")
        ratio = pytest.approx(all_hits / (all_hits + all_misses), abs=1e-9)
        assert after["user_cache_hit_ratio"] == {"": ratio}
        assert after["cache_hit_rate"] == {"": ratio}
        stats = cast.admin("GET", "/v1/cache/stats").json()
        assert (stats["hits"], stats["misses"]) == (all_hits, all_misses)
        assert stats["hit_ratio"] == pytest.approx(all_hits / (all_hits + all_misses), abs=1e-4)


def test_every_promised_figure_is_there_without_a_word_on_processes(cast):
    """One series, and no label of a worker; a failed call to Redis is counted by its reason."""
    assert cast.admin("GET", f"/v1/batch/users/lookup?ids={cast.ids[0]}").status_code == 200
    with Redis.from_url(cast.service.env["REDIS_URL"]) as client:

        def is_counted() -> bool:
            client.delete(f"authsvc:v1:user:{cast.ids[1]}")
            assert cast.admin("GET", f"/v1/users/{cast.ids[1]}").status_code == 200
            return 'reason="oom"' in samples(cast.service).get("cache_errors_total", {})

        client.config_set("maxmemory", "1")
        try:
            wait_until(is_counted, what="a call that was refused for want of memory")
        finally:
            client.config_set("maxmemory", "0")

    def is_closed() -> bool:
        assert cast.admin("GET", f"/v1/users/{cast.ids[1]}").status_code == 200
        return samples(cast.service)["cache_circuit_breaker_state"] == {"": 0}

    # A full Redis that was asked often enough has opened a breaker, which a good answer closes again.
    wait_until(is_closed, what="closed breakers")
    figures = samples(cast.service)

    assert set(figures) >= PROMISED
    assert {name for name in SINGLE if set(figures[name]) != {""}} == set()
    assert 'reason="oom"' in figures["cache_errors_total"]
    assert figures["cache_circuit_breaker_state"] == {"": 0}
    assert figures["cache_active_locks"] == {"": 0}
    assert not [labels for by_labels in figures.values() for labels in by_labels if "pid=" in labels]
    assert cast.ids[0] not in str(figures)


def test_a_change_in_one_worker_is_seen_in_the_other_at_once(cast):
    """Also what the other has just read: name, role, list; the role on the very next request."""
    service = cast.service
    email = f"{uuid4().hex}@example.com"
    user_id = service.register(email).json()["id"]
    pair = service.log_in(email)

    def profile() -> requests.Response:
        answer: requests.Response = service.call("GET", "/v1/me", token=pair["access_token"])
        return answer

    def listed() -> dict[str, Any]:
        page = cast.admin("GET", "/v1/users?limit=200").json()["items"]
        (found,) = (user for user in page if user["id"] == user_id)
        return dict(found)

    def rename(name: str) -> None:
        answer = service.call("PATCH", "/v1/me", token=pair["access_token"], json={"name": name})
        assert answer.status_code == 200

    for turn in range(3):
        for here, there in ((0, 1), (1, 0)):
            name = f"name {turn} {here}"
            service.from_worker(there, lambda: (profile(), listed()))
            service.from_worker(here, lambda: rename(name))  # noqa: B023 - called at once
            shown = service.from_worker(there, lambda: (profile().json()["name"], listed()["name"]))
            assert shown == (name, name)

    service.from_worker(1, lambda: (profile(), listed()))
    promoted = service.from_worker(
        0, lambda: cast.admin("PATCH", f"/v1/users/{user_id}", json={"roles": ["admin"]}).status_code
    )
    refused, page = service.from_worker(1, lambda: (profile().status_code, listed()))
    body = {"refresh_token": pair["refresh_token"]}
    pair = service.call("POST", "/v1/auth/refresh", json=body).json()

    assert (promoted, refused, page["roles"]) == (200, 401, ["user", "admin"])
    assert service.from_worker(1, profile).json()["roles"] == ["user", "admin"]


def clears_all_that_is_there(cast: Cast) -> bool:
    """Clear everything by the command: as many as there were, unless somebody else was faster with one."""
    for user_id in cast.ids[:2]:
        cast.read_into_cache(user_id)
    there = cast.names("user:*")
    cleared = printed(cast.command("clear"))["cleared"]
    assert cast.names("user:*") | cast.names("users:list:*") == set()
    return bool(cleared >= len(there) > 0)


def warms_all(cast: Cast) -> bool:
    """Warm by the command: each user is there and found there, unless somebody dropped one meanwhile."""
    warmed = printed(cast.command("warm"))["warmed"]
    assert warmed["users"] >= PEOPLE
    assert warmed["user_lists"] == 1
    are_there = {f"user:{user_id}" for user_id in cast.ids} <= cast.names("user:*")
    before = total(samples(cast.service), "user_cache_misses_total")
    assert cast.admin("GET", f"/v1/users/{cast.ids[2]}").status_code == 200
    return are_there and total(samples(cast.service), "user_cache_misses_total") == before


def clears_one_of_two(cast: Cast) -> bool:
    """Clear the first user by the command: two records, or one where their address was not noted in time."""
    for user_id in cast.ids[:2]:
        cast.read_into_cache(user_id)
    cleared = printed(cast.command("clear", "--user", cast.ids[0]))["cleared"]
    left = cast.names("user:*")
    return cleared in {1, 2} and f"user:{cast.ids[0]}" not in left and f"user:{cast.ids[1]}" in left


class TestCommands:
    """``authsvc cache warm | clear | stats``."""

    def test_stats_clear_and_warm(self, cast):
        """Each prints one object with its counts; they are about the cache that the service reads."""
        cast.read_into_cache(cast.ids[0])

        stats = printed(cast.command("stats"))
        # Again, if somebody else dropped one of them meanwhile, as anybody may at any time.
        wait_until(lambda: clears_one_of_two(cast), timeout_s=60, what="one user cleared, the other kept")
        wait_until(lambda: clears_all_that_is_there(cast), what="everything cleared")
        wait_until(lambda: warms_all(cast), what="everybody warmed")

        assert stats["health"]["connected"] is True
        assert stats["memory"]["policy"] == "noeviction"
        assert stats["keyspace"]["key_count"] > 0

    def test_what_cannot_be_done_is_an_error(self, cast):
        """A malformed id, and a Redis that is away: one line on stderr, nothing on stdout."""
        away = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}

        with ThreadPoolExecutor(3) as pool:
            malformed = pool.submit(cast.command, "clear", "--user", "*")
            failed = list(pool.map(lambda name: cast.command(name, **away), ("warm", "clear")))
        refused = malformed.result()

        for done in (refused, *failed):
            assert (done.returncode, done.stdout) == (1, "")
            assert "Traceback" not in done.stderr
        assert all("unavailable" in done.stderr for done in failed)


def printed(done: Any) -> dict[str, Any]:
    """The one object that a command printed."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found
