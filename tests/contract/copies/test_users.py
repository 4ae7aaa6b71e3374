"""Users read through Redis, as two processes of the service do it, over real PostgreSQL and Redis."""

from __future__ import annotations

import json
import random
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from redis import Redis

from authsvc.domain.errors import NotFound
from authsvc.domain.users import Profile, User, UserFilter
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.settings import Settings
from authsvc.wiring import build, now
from tests.contract.cache.clients import in_threads
from tests.processes import wait_until
from tests.rig import development
from tests.servers import RedisServer
from tests.servers.proxy import Mode, TcpProxy
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authsvc.services import Services

HASH = "pbkdf2-test$first"
CHANGES_EACH = 300
WRITERS = 2


class Processes:
    """Two processes' services over the same stores."""

    def __init__(self, one: Services, other: Services) -> None:
        self.one = one
        self.other = other

    def prove(self) -> None:
        """Let both compare Redis with SQL."""
        for services in (self.one, self.other):
            wait_until(services.compare, what="Redis proven")

    def add(self, name: str) -> User:
        """A new user."""
        at = now()
        fresh = User(id=UserId(new_id()), email=Email(f"{name}@example.com"), created_at=at, updated_at=at)
        return self.one.users.revocations.publish(self.one.users.store.add(fresh, HASH)).value

    def close(self) -> None:
        """Let all go."""
        self.one.close()
        self.other.close()


def open_processes(database_url: str, redis_url: str, folder: Any) -> Processes:
    """Two of them, which have compared Redis with SQL; their breakers try again soon."""
    env = development(database_url, redis_url, folder, CACHE_CB_RECOVERY_TIMEOUT="200")
    made = Processes(
        build(Settings.from_env(env), timings=UNHURRIED), build(Settings.from_env(env), timings=UNHURRIED)
    )
    made.prove()
    return made


@pytest.fixture
def processes(postgres_url, redis_url, tmp_path) -> Iterator[Processes]:
    """Two processes over an empty database and an empty Redis."""
    with closing(open_processes(postgres_url, redis_url, tmp_path)) as made:
        yield made


@pytest.fixture
def redis(redis_url) -> Iterator[Any]:
    """The server behind both."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def key(user_id: str) -> str:
    """Where a user is cached."""
    return f"authsvc:v1:user:{user_id}"


def lookups(services: Services) -> tuple[int, int]:
    """Hits and misses so far."""
    totals = services.metrics.cache_totals()
    return totals.hits, totals.misses


class Race:
    """Users under change: the floor of each is the version of their last published change."""

    def __init__(self, users: list[User]) -> None:
        self.users = users
        self.floors = {user.id: user.version for user in users}
        self._finished: list[Services] = []

    def write(self, services: Services, own: list[User]) -> int:
        """Change *own* in turn; how many changes were published."""
        try:
            return sum(self._change(services, own[turn % len(own)].id, turn) for turn in range(CHANGES_EACH))
        finally:
            self._finished.append(services)

    def read(self, services: Services, seed: int) -> tuple[int, int]:
        """Read until all is written; how many users were older than their floors, and how many were read."""
        chance = random.Random(seed)
        stale = reads = 0
        while len(self._finished) < WRITERS or reads <= CHANGES_EACH:
            floors = dict(self.floors)
            found = self._one_read(services, chance)
            stale += sum(user.version < floors[user.id] for user in found)
            reads += len(found)
        return stale, reads

    def _change(self, services: Services, user_id: UserId, turn: int) -> bool:
        profile = Profile(name=f"name {turn}", given=frozenset({"name"}))
        outcome = services.users.change_profile(user_id, profile)
        if outcome.is_complete:
            self.floors[user_id] = outcome.value.version
        return outcome.is_complete

    def _one_read(self, services: Services, chance: random.Random) -> list[User]:
        """By one of the three ways: together, as a page, one by one."""
        wanted = [user.id for user in chance.sample(self.users, 3)]
        ways: list[Callable[[], list[User]]] = [
            lambda: services.users.look_up(wanted)[0],
            lambda: services.users.page(UserFilter())[0],
            lambda: [services.users.get(user_id) for user_id in wanted],
        ]
        return chance.choice(ways)()


def test_no_reader_sees_a_user_older_than_their_last_published_change(processes):
    """
    Hundreds of changes by two processes, read all the while by both, one by one, together and in the list.

    Once a change is published, no read that begins later returns an earlier version: not one.
    """
    race = Race([processes.add(f"person{number}") for number in range(8)])

    *published, one, other = in_threads(
        partial(race.write, processes.one, race.users[::2]),
        partial(race.write, processes.other, race.users[1::2]),
        partial(race.read, processes.one, 1),
        partial(race.read, processes.other, 2),
    )

    assert published == [CHANGES_EACH, CHANGES_EACH]
    assert (one[0], other[0]) == (0, 0)
    assert lookups(processes.one)[0] > CHANGES_EACH / 10
    processes.prove()
    for services in (processes.one, processes.other):
        assert {user.id: user.version for user in services.users.page(UserFilter())[0]} == race.floors


def test_a_load_that_a_change_overtakes_is_not_stored(processes, redis):
    """A reader holds the old row in its hands while another process changes it: its copy goes nowhere."""
    user = processes.add("alice")
    redis.delete(key(user.id))
    store: Any = processes.one.users.store
    rename = Profile(name="New", given=frozenset({"name"}))

    def slow_get(user_id: UserId) -> User:
        old: User = store.behind.get(user_id)
        assert processes.other.users.change_profile(user_id, rename).is_complete
        return old

    class Slow:
        get = staticmethod(slow_get)

    overtaken = replace(store, behind=Slow())

    assert overtaken.get(user.id).version == 1
    assert redis.get(key(user.id)) is None
    assert processes.other.users.get(user.id).name == "New"
    assert processes.one.users.get(user.id).name == "New"


def test_a_page_that_a_change_overtakes_is_not_believed(processes):
    """The same for the list: it is read anew."""
    user = processes.add("alice")
    store: Any = processes.one.users.store
    rename = Profile(name="New", given=frozenset({"name"}))

    def slow_page(wanted: UserFilter) -> list[User]:
        old: list[User] = store.behind.page(wanted)
        assert processes.other.users.change_profile(user.id, rename).is_complete
        return old

    class Slow:
        page = staticmethod(slow_page)

    assert [one.name for one in replace(store, behind=Slow()).page(UserFilter())] == [None]

    assert [one.name for one in processes.other.users.page(UserFilter())[0]] == ["New"]
    assert [one.name for one in processes.one.users.page(UserFilter())[0]] == ["New"]


def with_fields(**changes: object) -> Callable[[str], str]:
    """A forgery: the record with *changes* in it."""
    return lambda text: json.dumps(json.loads(text) | changes)


FORGERIES: dict[str, Callable[[str], str]] = {
    "another id": with_fields(id=new_id()),
    "no id": lambda text: text.replace('"id"', '"di"'),
    "an id of another type": with_fields(id=7),
    "another schema": with_fields(_s=1),
    "no schema": lambda text: text.replace('"_s"', '"s"'),
    "no version": lambda text: text.replace('"_v"', '"v"'),
    "no JSON": lambda text: text[:-1],
    "nothing": lambda _: "",
    "a list": lambda text: f"[{text}]",
    "NaN": with_fields(epoch=float("nan")),
    "a role that is none": with_fields(roles=["user", "Root"]),
    "no role": with_fields(roles=[]),
    "a word for roles": with_fields(roles="admin"),
    "a status that is none": with_fields(status="asleep"),
    "no time": with_fields(created_at="yesterday"),
    "a number for a name": with_fields(name=7),
    "preferences that are no object": with_fields(preferences=[1]),
    "a field less": lambda text: text.replace('"phone"', '"enohp"'),
}


def test_a_record_that_is_not_theirs_is_never_shown(processes, redis):
    """Wrong id, wrong schema, damaged: a miss that is counted, and replaced by what SQL says (I13)."""
    user = processes.add("alice")
    processes.one.users.get(user.id)
    good = redis.get(key(user.id))
    seen = {}

    for name, forge in FORGERIES.items():
        redis.set(key(user.id), forge(good), ex=1000)
        hits, misses = lookups(processes.one)
        found = processes.one.users.get(user.id), processes.one.users.look_up([user.id])[0]
        now_hits, now_misses = lookups(processes.one)
        is_mended = json.loads(redis.get(key(user.id))) == json.loads(good)
        seen[name] = (found, now_hits - hits, now_misses - misses, is_mended)

    assert seen == dict.fromkeys(FORGERIES, ((user, [user]), 1, 1, True))


def test_somebody_elses_whole_record_is_never_shown(processes, redis):
    """Copied as it is from one user's key to another's, for each way to read."""
    alice, bob = processes.add("alice"), processes.add("bob")
    processes.one.users.look_up([alice.id, bob.id])
    stolen = redis.get(key(bob.id))

    redis.set(key(alice.id), stolen)
    one = processes.one.users.get(alice.id)
    redis.set(key(alice.id), stolen)
    many = processes.one.users.look_up([alice.id, bob.id])

    assert one == alice
    assert many == ([alice, bob], [])


def test_a_page_of_another_query_is_never_shown(processes, redis):
    """A page names its query, and is checked for it."""
    processes.add("alice")
    all_users, admins = UserFilter(), UserFilter(role="admin")
    processes.one.users.page(all_users)
    (page_key,) = redis.keys("authsvc:v1:users:list:*")
    page = redis.get(page_key)
    processes.one.users.page(admins)
    (other_key,) = set(redis.keys("authsvc:v1:users:list:*")) - {page_key}

    redis.set(other_key, page)

    assert processes.one.users.page(admins) == ([], None)


def test_a_deleted_user_is_gone_in_every_process(processes):
    """Also where they were cached a moment ago."""
    user = processes.add("alice")
    for services in (processes.one, processes.other):
        services.users.get(user.id)
        services.users.page(UserFilter())

    processes.one.users.remove(user.id, actor=None)

    for services in (processes.one, processes.other):
        with pytest.raises(NotFound):
            services.users.get(user.id)
        assert services.users.page(UserFilter()) == ([], None)
        assert services.users.look_up([user.id]) == ([], [user.id])


def test_a_change_that_redis_did_not_hear_of_is_not_hidden_by_it(postgres_url, redis_url, tmp_path):
    """Redis was away for the change and is back with the old copies: nobody who knows believes them."""
    with (
        TcpProxy(redis_url) as way,
        closing(open_processes(postgres_url, way.url_for(redis_url), tmp_path)) as processes,
    ):
        user = processes.add("alice")
        processes.one.users.get(user.id)
        way.switch(Mode.REFUSE)
        rename = Profile(name="New", given=frozenset({"name"}))
        outcome = processes.one.users.change_profile(user.id, rename)
        way.switch(Mode.PASS)

        assert not outcome.is_complete
        assert processes.one.users.get(user.id).name == "New"
        processes.prove()
        assert processes.other.users.get(user.id).name == "New"


def test_a_change_is_replayed_for_as_long_as_a_copy_may_live(postgres_url, tmp_path):
    """A Redis that was away for longer than a token lives still holds old copies when it comes back."""
    with RedisServer() as server, closing(open_processes(postgres_url, server.url, tmp_path)) as processes:
        user = processes.add("alice")
        rename = Profile(name="New", given=frozenset({"name"}))
        processes.one.users.change_profile(user.id, rename)

    with psycopg.connect(postgres_url) as connection:
        query = "SELECT min(expires_at - at) FROM revocations WHERE email IS NOT NULL"
        ((lives,),) = connection.execute(query).fetchall()

    longest_copy_s = 1.1 * 3600
    assert lives.total_seconds() > longest_copy_s


def test_without_redis_users_come_from_sql(postgres_url, tmp_path):
    """Each read is right and quick, the failures are counted, and Redis is used again when it is back."""
    with RedisServer() as server, closing(open_processes(postgres_url, server.url, tmp_path)) as processes:
        users = [processes.add(name) for name in ("alice", "bob")]
        read = processes.one.users
        server.kill()

        began_s = time.monotonic()
        for _ in range(10):
            assert read.get(users[0].id) == users[0]
            assert read.look_up([user.id for user in users]) == (users, [])
            assert {user.id for user in read.page(UserFilter())[0]} == {user.id for user in users}
        took_s = time.monotonic() - began_s
        hits, misses = lookups(processes.one)

        assert took_s < 30
        assert (hits, misses) == (0, 10 * 4)
        server.start()
        wait_until(processes.one.compare, what="Redis proven")

        def is_read_from_redis() -> bool:
            assert read.get(users[0].id) == users[0]
            return lookups(processes.one)[0] > 0

        wait_until(is_read_from_redis, what="a hit")
