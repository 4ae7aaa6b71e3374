"""The user cache for admins: /v1/cache/*."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from redis import Redis

from tests.api.driver import Api, MakeApi, Person, code_of, json_of, new_email
from tests.api.watching import Shelf, sql_statements
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

STATS, METRICS, WARM, CLEAR = (f"/v1/cache/{name}" for name in ("stats", "metrics", "warm", "clear"))
ROUTES = [("GET", STATS), ("GET", METRICS), ("POST", WARM), ("POST", CLEAR)]
STATS_SHAPE = {
    "hits", "misses", "hit_ratio", "operations", "average_latency_ms", "breaker", "active_locks",
}  # fmt: skip
#: As DEPENDENCIES of a deployment are written down: nothing dangerous, nothing administrative.
NARROW = ("on", ">narrow", "~authsvc:*", "&authsvc:*", "+@all", "-@dangerous", "-@admin")
#: Of the warmer of users.
LOCK = "lock:warm%3Ausers"
#: What a clear must leave alone, as patterns of names.
PROTECTED = ("auth:*", "lock:*")


@pytest.fixture
def admin(pg_api: Api) -> Person:
    """Log an admin in."""
    pg_api.prove_redis()
    return pg_api.an_admin()


@pytest.fixture
def shelf(pg_api: Api) -> Iterator[Shelf]:
    """Look at the keys of the application."""
    with closing(Shelf(pg_api)) as made:
        yield made


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """Share one server that these tests limit and stop."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def off(make_module_api: MakeApi) -> Api:
    """An application without the user cache."""
    return make_module_api(CACHE_ENABLED="false", RATE_LIMIT_LOGIN_ACCOUNT="3/hour")


def asked(admin: Person, method: str, path: str, **options: Any) -> dict[str, Any]:
    """The body of an answer that is 200."""
    answer = admin.call(method, path, **options)
    assert answer.status_code == 200, answer.text
    return json_of(answer)


def fill(admin: Person, *people: Person) -> None:
    """Have *people* and a page cached."""
    for person in people:
        asked(admin, "GET", f"/v1/users/{person.id}")
    asked(admin, "GET", "/v1/users")


class TestStats:
    """GET /v1/cache/stats."""

    def test_hits_and_misses_are_exact(self, pg_api, admin):
        """One for each user, and each page, that is asked for; nothing else counts, token checks least."""
        person, other = pg_api.someone(), pg_api.someone()
        asked(admin, "POST", CLEAR)  # who logged in was cached
        before = asked(admin, "GET", STATS)

        for _ in range(4):
            person.call("GET", "/v1/me")  # miss, then three hits
        asked(admin, "GET", f"/v1/batch/users/lookup?ids={person.id},{other.id},{uuid4()}")  # hit, two misses
        for _ in range(3):
            asked(admin, "GET", "/v1/users?role=admin&limit=7")  # miss, then two hits
        assert admin.call("GET", f"/v1/users/{uuid4()}").status_code == 404  # miss
        other.log_in()
        assert pg_api.verify(other.access) == 200
        after = asked(admin, "GET", STATS)

        assert set(after) == STATS_SHAPE
        assert after["hits"] - before["hits"] == 3 + 1 + 2
        assert after["misses"] - before["misses"] == 1 + 2 + 1 + 1
        assert after["hit_ratio"] == round(after["hits"] / (after["hits"] + after["misses"]), 4)
        assert 0 < after["hit_ratio"] < 1
        assert after["operations"] > before["operations"]
        assert 0 < after["average_latency_ms"] < 60_000
        assert (after["breaker"], after["active_locks"]) == ("closed", 0)
        assert {type(after[name]) for name in ("hits", "misses", "operations", "active_locks")} == {int}

    def test_nothing_asked_is_no_ratio_of_something(self, make_api):
        """0, and no division by it."""
        stats = asked(make_api(CACHE_ENABLED="false").an_admin(), "GET", STATS)

        assert (stats["hits"], stats["misses"], stats["hit_ratio"]) == (0, 0, 0)


class TestMetrics:
    """GET /v1/cache/metrics."""

    def test_it_shows_health_memory_and_key_space(self, admin):
        """Every member of the contract; sizes are those of the server."""
        shown = asked(admin, "GET", METRICS)

        assert set(shown) == {"health", "memory", "stats", "keyspace", "key_count", "cache"}
        assert set(shown["health"]) == {"status", "connected", "latency_ms"}
        assert (shown["health"]["status"], shown["health"]["connected"]) == ("up", True)
        assert 0 < shown["health"]["latency_ms"] < 60_000
        assert shown["memory"]["used_bytes"] > 100_000
        assert shown["memory"]["policy"] == "noeviction"
        assert shown["key_count"] == shown["keyspace"]["key_count"] > 0
        assert set(shown["cache"]) == STATS_SHAPE

    @pytest.mark.parametrize("extra", [(), ("+info",)], ids=["no INFO", "INFO"])
    def test_what_an_acl_denies_is_null(self, make_api, own_redis, extra):
        """The Redis user needs nothing dangerous: without INFO sizes are unknown, all else is as ever."""
        api = narrow_api(make_api, own_redis, *extra)
        admin = api.an_admin()
        fill(admin, admin)

        shown = asked(admin, "GET", METRICS)
        warmed = asked(admin, "POST", WARM)["warmed"]
        cleared = asked(admin, "POST", CLEAR)["cleared"]

        assert shown["health"]["connected"] is True
        assert (shown["memory"]["used_bytes"] is None) is (not extra)
        assert (shown["keyspace"]["expiring_count"] is None) is (not extra)
        assert shown["key_count"] > 0
        assert asked(admin, "GET", STATS)["breaker"] == "closed"
        assert warmed == {"users": 1, "user_lists": 1}
        assert cleared == 3


def narrow_api(make_api: MakeApi, server: RedisServer, *extra: str) -> Api:
    """An application whose Redis user may do what the documentation says it needs."""
    with Redis.from_url(server.url) as operator:
        operator.flushall()
        operator.execute_command("ACL", "SETUSER", "narrow", "reset", *NARROW, *extra)
    url = server.url.replace("redis://", "redis://narrow:narrow@")
    return make_api(REDIS_URL=url, CACHE_KEY_PREFIX="authsvc")


class TestWarm:
    """POST /v1/cache/warm."""

    def test_who_logged_in_is_cached_then(self, make_api):
        """With the first page of the list; who never logged in is not; a second time changes nothing."""
        api = make_api()
        admin = api.an_admin()
        people = [api.someone() for _ in range(3)]
        never = json_of(api.register(new_email()))
        with closing(Shelf(api)) as shelf:
            asked(admin, "POST", CLEAR)  # who registered or logged in was cached
            assert shelf.names("user:*") | shelf.names("users:list:*") == set()

            first, second = (asked(admin, "POST", WARM) for _ in range(2))

            assert first == second == {"warmed": {"users": 4, "user_lists": 1}}
            assert {f"user:{person.id}" for person in (admin, *people)} <= shelf.names("user:*")
            assert f"user:{never['id']}" not in shelf.names("user:*")
            assert shelf.names("lock:*") == set()
        with sql_statements() as statements:
            fill(admin, *people)
        assert statements == []

    def test_it_counts_what_is_cached_and_not_what_was_tried(self, pg_api, admin, shelf):
        """Without proof nothing is stored, and nothing is said to be."""
        asked(admin, "POST", CLEAR)
        shelf.drop("auth:revocations:seq")

        assert asked(admin, "POST", WARM) == {"warmed": {"users": 0, "user_lists": 0}}

        pg_api.prove_redis()
        assert asked(admin, "POST", WARM)["warmed"]["users"] > 0

    def test_a_redis_that_takes_nothing_is_an_outage(self, make_api, own_redis):
        """503 where it is full; dropping copies makes room, so that goes on."""
        api = make_api(REDIS_URL=own_redis.url)
        admin = api.an_admin()
        fill(admin, admin)
        with closing(Shelf(api)) as shelf:
            shelf.redis.config_set("maxmemory", "1")
            try:
                full, cleared = admin.call("POST", WARM), admin.call("POST", CLEAR)
            finally:
                shelf.redis.config_set("maxmemory", "0")

        assert (full.status_code, code_of(full)) == (503, "unavailable")
        assert full.headers["Retry-After"].isdigit()
        assert (cleared.status_code, cleared.json) == (200, {"cleared": 3})

    def test_two_at_once_do_the_work_once(self, pg_api, admin, shelf):
        """The warmer that another process runs is left to it."""
        shelf.redis.set(shelf.key(LOCK), "another", px=600_000)
        try:
            warmed = asked(admin, "POST", WARM)["warmed"]
        finally:
            shelf.drop(LOCK)

        assert (warmed["users"], warmed["user_lists"]) == (0, 1)


class TestClear:
    """POST /v1/cache/clear."""

    def test_one_user_is_dropped_and_every_page(self, pg_api, admin, shelf):
        """The user and their address; others stay; what there was is counted, the second time nothing."""
        person, other = pg_api.someone(), pg_api.someone()
        fill(admin, person, other)

        counts = [asked(admin, "POST", CLEAR, json={"user_id": person.id}) for _ in range(2)]

        assert counts == [{"cleared": 2}, {"cleared": 0}]
        assert shelf.names(f"user:{person.id}") | shelf.names(f"user:email:{person.email}") == set()
        assert shelf.get(f"user:email:{other.email}") == other.id
        assert f"user:{other.id}" in shelf.names("user:*")
        with sql_statements() as statements:
            asked(admin, "GET", "/v1/users")
        assert statements

    def test_nobody_there_is_nothing_to_clear(self, admin, shelf):
        """0, unless something was left of them."""
        gone = str(uuid4())
        shelf.redis.set(shelf.key(f"user:{gone}"), "left", ex=600)

        counts = [asked(admin, "POST", CLEAR, json={"user_id": gone})["cleared"] for _ in range(2)]

        assert counts == [1, 0]

    def test_all_is_dropped_without_a_name(self, pg_api, admin, shelf):
        """Users, addresses and pages, each counted; an empty object is as good as no body."""
        people = [pg_api.someone() for _ in range(3)]
        bodies: list[dict[str, object]] = [{}, {"json": {}}]
        for body in bodies:
            asked(admin, "POST", CLEAR)
            fill(admin, *people)

            assert asked(admin, "POST", CLEAR, **body) == {"cleared": 3 + 3 + 1}
            assert shelf.names("user:*") | shelf.names("users:list:*") == set()

    def test_thousands_are_dropped_in_steps(self, pg_api, admin, shelf):
        """SCAN and UNLINK; neither KEYS nor FLUSHDB, and other prefixes stay."""
        stranger = f"{shelf.key('user:1').replace(':v1:', ':v2:')}"
        shelf.redis.set(stranger, "x", ex=600)
        with shelf.redis.pipeline(transaction=False) as sending:
            for number in range(3000):
                sending.set(shelf.key(f"user:{number}"), "x", ex=600)
            sending.execute()

        with shelf.commands() as commands:
            cleared = asked(admin, "POST", CLEAR)["cleared"]

        assert cleared >= 3000
        assert {command.split()[0] for command in commands} <= {"SCAN", "UNLINK", "MGET"}
        assert shelf.redis.exists(stranger) == 1

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"json": {"user_id": "x"}}, 422),
            ({"json": {"user_id": None}}, 422),
            ({"json": {"user_id": 7}}, 422),
            ({"json": {"user_id": "*"}}, 422),
            ({"json": {"everything": True}}, 422),
            ({"json": []}, 422),
            ({"json": None}, 422),
            ({"data": b"{", "content_type": "application/json"}, 400),
            ({"data": b"user_id=x", "content_type": "application/x-www-form-urlencoded"}, 415),
            ({"data": b" " * 65_537, "content_type": "application/json"}, 413),
        ],
    )
    def test_what_is_not_understood_clears_nothing(self, admin, shelf, body, status):
        """A typing error does not mean everybody."""
        fill(admin, admin)

        assert admin.call("POST", CLEAR, **body).status_code == status
        assert shelf.get(f"user:email:{admin.email}") == admin.id

    @pytest.mark.parametrize("whose", ["one", "all"])
    def test_a_clear_logs_nobody_in_or_out(self, make_api, whose):
        """Revoked tokens stay refused, by Redis itself; sessions go on; counters and locks keep (I16)."""
        api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="3/hour", RATE_LIMIT_LOGIN_IP="50/hour")
        admin, gone, stays = api.an_admin(), api.someone(), api.someone()
        demoted = api.an_admin()
        fill(admin, gone, stays, demoted)
        assert api.log_out(access=gone.access).status_code == 204
        admin.call("PATCH", f"/v1/users/{demoted.id}", json={"roles": ["user"]})
        assert [api.log_in(stays.email, "wrong").status_code for _ in range(3)] == [401] * 3
        fill(admin, gone, stays, demoted)
        with closing(Shelf(api)) as shelf:
            shelf.redis.set(shelf.key("lock:somebody"), "owner", px=600_000)
            before = {name: text for pattern in PROTECTED for name, text in shelf.everything(pattern).items()}

            body = {"json": {"user_id": stays.id}} if whose == "one" else {}
            assert asked(admin, "POST", CLEAR, **body)["cleared"] > 0

            after = {name: text for pattern in PROTECTED for name, text in shelf.everything(pattern).items()}
            assert after == before
            assert {name.rpartition(":")[0] for pattern in PROTECTED for name in shelf.names(pattern)} >= {
                "auth:token", "auth:session", "auth:epoch", "auth:blacklist", "auth:revocations", "lock",
            }  # fmt: skip
            assert shelf.names("auth:rate-limit:*") != set()
        with sql_statements() as statements:
            assert [api.verify(person.access) for person in (gone, demoted)] == [401, 401]
            assert [api.verify(person.access) for person in (stays, admin)] == [200, 200]
        assert statements == []
        assert api.log_in(stays.email).status_code == 429
        assert stays.refresh().is_accepted()
        assert not gone.is_accepted()


class TestWithoutRedis:
    """Operations that need Redis answer 503."""

    def test_each_of_them_is_503(self, make_api, own_redis):
        """With ``Retry-After``, also while the breaker is open; users are read from SQL all the while."""
        api = make_api(REDIS_URL=own_redis.url)
        admin = api.an_admin()
        fill(admin, admin)
        own_redis.kill()
        try:
            # Twice: the first round opens the breaker.
            answers = [admin.call(method, path) for _ in range(2) for method, path in ROUTES]
            one = admin.call("POST", CLEAR, json={"user_id": admin.id})
            profile, page = admin.call("GET", "/v1/me"), admin.call("GET", "/v1/users")
        finally:
            own_redis.start()

        assert {(answer.status_code, code_of(answer)) for answer in (*answers, one)} == {(503, "unavailable")}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        assert (profile.status_code, page.status_code) == (200, 200)


class TestSwitchedOff:
    """CACHE_ENABLED=false turns the user cache off and nothing else."""

    def test_users_come_from_sql(self, off):
        """Each time; nothing of them is in Redis, and nothing is counted."""
        admin = off.an_admin()
        with closing(Shelf(off)) as shelf:
            for _ in range(2):
                with sql_statements() as statements:
                    fill(admin, admin)
                    asked(admin, "GET", f"/v1/batch/users/lookup?ids={admin.id}")
                assert len(statements) == 3
            assert shelf.names("user:*") | shelf.names("users:list:*") == set()
        stats = asked(admin, "GET", STATS)
        assert (stats["hits"], stats["misses"]) == (0, 0)
        assert json_of(off.call("GET", "/v1/health"))["cache"]["status"] == "disabled"

    def test_there_is_nothing_to_warm_or_to_clear(self, off):
        """Both are answered, with nothing done; what another process cached before can be cleared."""
        admin = off.an_admin()
        with closing(Shelf(off)) as shelf:
            assert asked(admin, "POST", WARM) == {"warmed": {}}
            assert asked(admin, "POST", CLEAR) == {"cleared": 0}
            shelf.redis.set(shelf.key(f"user:{admin.id}"), "old", ex=600)
            assert asked(admin, "POST", CLEAR) == {"cleared": 1}

    def test_checks_limits_and_revocations_are_as_ever(self, off):
        """From Redis, without a query."""
        off.prove_redis()
        person, gone = off.someone(), off.someone()
        with sql_statements() as statements:
            assert (off.verify(person.access), off.verify(gone.access)) == (200, 200)
        assert statements == []
        off.log_out(access=gone.access)
        with sql_statements() as statements:
            assert (off.verify(person.access), off.verify(gone.access)) == (200, 401)
        assert statements == []
        attempts = [off.log_in(person.email, "wrong").status_code for _ in range(4)]
        assert attempts == [401, 401, 401, 429]
