"""Users who register or log in are cached; a log entry drops copies older than its row version."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from sqlalchemy import select, update

from authsvc.domain.authentication import LoginAttempt, Registration
from authsvc.domain.credentials import Credentials
from authsvc.domain.errors import InvalidCredentials, NotFound
from authsvc.domain.users import Profile, User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.store.accounts.transfers import SqlUserTransfers
from authsvc.store.copies.users import UserCaches
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.tables import revocations, users
from authsvc.wiring import now
from tests.contract.cache.clients import in_threads
from tests.contract.copies.test_users import Processes, key, lookups, open_processes
from tests.contract.store.stores import COPIES_LIVE, HASH, Stores, open_database
from tests.processes import wait_until
from tests.rig import PASSWORD
from tests.servers import RedisServer
from tests.servers.proxy import Mode, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authsvc.services import Services

EMAIL = Email("alice@example.com")
ROUNDS = 40


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


def register(services: Services) -> User:
    """As the service does it."""
    return services.authentication.register(Registration(email=EMAIL, password=PASSWORD, profile=Profile()))


def log_in(services: Services) -> None:
    """As the service does it."""
    attempt = LoginAttempt(email=EMAIL, password=PASSWORD, device_id=None, ip="192.0.2.1", user_agent=None)
    services.authentication.log_in(attempt)


def cached_version(redis: Any, user_id: str) -> int | None:
    """The row version of the copy; None where there is none."""
    raw = redis.get(key(user_id))
    return json.loads(raw)["_v"] if raw is not None else None


def log_in_often(services: Services) -> None:
    """ROUNDS times."""
    for _ in range(ROUNDS):
        log_in(services)


def misses_of(services: Services, read: Callable[[], object]) -> int:
    """How many look-ups of *read* missed."""
    _, before = lookups(services)
    read()
    return lookups(services)[1] - before


def test_the_first_read_is_a_hit_in_every_process(processes, redis):
    """After a registration and after a login, at once and when every process has replayed the log."""
    user = register(processes.one)
    for version in (1, 2):
        for _ in range(2):
            for services in (processes.one, processes.other):
                assert misses_of(services, lambda: services.users.get(user.id)) == 0  # noqa: B023 called at once
            assert cached_version(redis, user.id) == version
            assert redis.get(f"authsvc:v1:user:email:{EMAIL}") == user.id
            processes.prove()
        log_in(processes.one)

    assert processes.other.users.called(EMAIL).last_login is not None


def test_an_entry_without_a_version_drops_whatever_is_there(processes, redis, postgres_url):
    """Those that an earlier release wrote, among others: the copy and the note of the address."""
    user = register(processes.one)
    with closing(open_database(postgres_url)) as database, database.transaction() as connection:
        connection.execute(update(revocations).values(row_version=None))

    processes.prove()

    assert cached_version(redis, user.id) is None
    assert redis.get(f"authsvc:v1:user:email:{EMAIL}") is None
    assert misses_of(processes.one, lambda: processes.one.users.get(user.id)) == 1


def test_a_replay_spares_what_was_written_after_its_entry(processes, redis):
    """A change, then a login: the change's entry is replayed, and the login's copy holds the change."""
    user = register(processes.one)
    processes.one.users.change_profile(user.id, Profile(name="New", given=frozenset({"name"})))
    assert cached_version(redis, user.id) is None
    log_in(processes.other)

    processes.prove()

    assert cached_version(redis, user.id) == 3
    assert processes.one.users.get(user.id).name == "New"


def test_nothing_is_left_of_who_is_disabled_or_deleted(processes, redis):
    """The copy that a login left is older than the one change, and of no use after the other."""
    user = register(processes.one)
    log_in(processes.one)
    processes.one.users.change_roles_or_status(user.id, roles=None, status="disabled", actor=None)
    assert cached_version(redis, user.id) is None
    assert processes.other.users.get(user.id).status == "disabled"
    processes.one.users.remove(user.id, actor=None)

    for services in (processes.one, processes.other):
        with pytest.raises(NotFound):
            services.users.get(user.id)
    assert redis.get(f"authsvc:v1:user:email:{EMAIL}") is None
    assert cached_version(redis, user.id) is None


def in_the_middle(act: Callable[[], object], *, after_commit: bool) -> Callable[..., Any]:
    """Stands for :meth:`UserCaches.keep`: *act* happens before its commit, or between commit and fill."""
    keep: Any = UserCaches.keep

    def acting(caches: UserCaches, user_id: UserId, commit: Callable[[], Any]) -> Any:
        def acted() -> Any:
            if not after_commit:
                act()
            made = commit()
            if after_commit:
                act()
            return made

        return keep(caches, user_id, acted)

    return acting


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_role_change_in_the_middle_of_a_login_leaves_no_copy(processes, redis, monkeypatch, after_commit):
    """Its invalidation takes the login's lease: what the login would have stored goes nowhere."""
    user = register(processes.one)
    set_roles = partial(processes.other.users.set_roles, EMAIL, ("admin",))

    with monkeypatch.context() as patched:
        patched.setattr(UserCaches, "keep", in_the_middle(set_roles, after_commit=after_commit))
        log_in(processes.one)

    assert cached_version(redis, user.id) is None
    processes.prove()
    for services in (processes.one, processes.other):
        assert services.users.get(user.id).roles == ("user", "admin")
    assert cached_version(redis, user.id) == 3


def test_who_is_disabled_in_the_middle_of_a_login_is_not_cached(processes, redis, monkeypatch):
    """The login is refused under the row lock, and leaves neither a copy nor its lease."""
    user = register(processes.one)
    disable = partial(
        processes.other.users.change_roles_or_status, user.id, roles=None, status="disabled", actor=None
    )

    with monkeypatch.context() as patched:
        patched.setattr(UserCaches, "keep", in_the_middle(disable, after_commit=False))
        with pytest.raises(InvalidCredentials):
            log_in(processes.one)

    assert cached_version(redis, user.id) is None
    assert redis.keys("authsvc:v1:lease:*") == []
    assert processes.one.users.get(user.id).status == "disabled"


def test_a_role_change_that_redis_hears_of_late_drops_every_copy(processes, redis):
    """Committed first, published last: what carries an epoch trusts no version, at the price of one miss."""
    user = register(processes.one)
    store = processes.other.users.store
    committed = store.change(user.id, lambda found: replace(found, roles=("user", "admin"), epoch=1))
    log_in(processes.one)

    processes.other.users.revocations.publish(committed)

    assert cached_version(redis, user.id) is None
    assert processes.other.users.get(user.id).roles == ("user", "admin")


def test_logins_racing_role_changes_never_leave_an_old_role(processes, postgres_url):
    """Many of both, in two processes: when a change is published, no read shows the roles from before."""
    user = register(processes.one)
    root = processes.add("root")
    processes.one.users.change_roles_or_status(root.id, roles=("admin",), status=None, actor=None)
    stale: list[int] = []

    def change(turn: int) -> None:
        roles = ("admin",) if turn % 2 else ("user",)
        outcome = processes.other.users.change_roles_or_status(user.id, roles=roles, status=None, actor=None)
        for services in (processes.one, processes.other):
            found = services.users.get(user.id)
            if found.version < outcome.value.version or found.is_admin != bool(turn % 2):
                stale.append(turn)

    def change_often() -> None:
        for turn in range(ROUNDS):
            change(turn)

    change(1)
    failures = in_threads(
        change_often, partial(log_in_often, processes.one), partial(log_in_often, processes.other)
    )

    assert failures == [None, None, None]
    assert stale == []
    processes.prove()
    with closing(open_database(postgres_url)) as database, database.read() as connection:
        version = connection.execute(select(users.c.version).where(users.c.id == user.id)).scalar_one()
    assert version == 1 + 1 + ROUNDS + 2 * ROUNDS
    for services in (processes.one, processes.other):
        assert services.users.get(user.id).version == version


def test_a_restored_database_is_not_outranked_by_copies_from_before(processes, redis, postgres_url):
    """Versions begin anew below those of the copies: the entries of the restore drop whatever there is."""
    user = register(processes.one)
    for _ in range(3):
        log_in(processes.one)
    with closing(open_database(postgres_url)) as database:
        with database.transaction() as connection:
            connection.execute(update(users).values(version=1))
        SqlRevocationLog(database, copies_live=COPIES_LIVE, clock=now).cut_everybody_off(by=1)

    processes.prove()

    assert cached_version(redis, user.id) is None
    assert processes.one.users.get(user.id).version == 2


def versions_told(stores: Stores, *, after: int) -> list[tuple[str, int | None]]:
    """Reason and row version of every entry behind *after* that is about copies."""
    pages = stores.log.pages([(after + 1, stores.log.head())])
    return [(entry.reason, entry.row_version) for page in pages for entry in page if entry.email]


def test_every_entry_tells_the_version_that_sql_has(stores):
    """Whatever changed the row; where a user is gone or versions begin anew it tells none, and drops all."""
    user = stores.register()
    changes: dict[str, Callable[[], object]] = {
        "logged_in": lambda: stores.log_in(user),
        "login_noted": lambda: stores.credentials.note_logins([user.id], stores.clock()),
        "user_changed": lambda: stores.users.change(user.id, lambda found: replace(found, name="New")),
        "ended": lambda: stores.sessions.end_all(user.id, reason="ended", keep=None),
        "password_changed": lambda: stores.credentials.set_password(user.id, HASH),
    }
    told = [("registered", 1)]
    for change in changes.values():
        change()
        told.append((list(changes)[len(told) - 1], stores.users.get(user.id).version))

    assert versions_told(stores, after=0) == told
    assert [version for _, version in told] == [1, 2, 3, 4, 5, 6]
    head = stores.log.head()
    stores.users.change(user.id, lambda found: replace(found, email=Email("new@example.com")))
    stores.log.cut_everybody_off(by=1)
    stores.users.remove(user.id)
    brought = Credentials(user=replace(user, id=UserId(new_id())), password_hash=HASH, password_version=1)
    transfers = SqlUserTransfers(stores.database, stores.log, stores.clock, pause=lambda _: None)
    transfers.add([brought], brought_ids=[brought.user.id])
    assert versions_told(stores, after=head) == [
        ("user_changed", 7),
        ("email_changed", None),
        ("restored", None),
        ("user_deleted", None),
        ("imported", None),
    ]


def errors(services: Services) -> float:
    """Failures of Redis so far, refusals by the breaker included."""
    text, _ = services.metrics.exposition()
    lines = [line for line in text.decode().splitlines() if line.startswith("cache_errors_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_nobody_waits_for_a_failing_redis_to_be_cached(postgres_url, tmp_path):
    """While Redis fails, a login asks it for what it asked before users were cached, and no more."""
    with (
        RedisServer() as server,
        TcpProxy(server.url) as way,
        closing(open_processes(postgres_url, way.url_for(server.url), tmp_path)) as processes,
    ):
        user = register(processes.one)
        way.switch(Mode.REFUSE)
        processes.one.users.get(user.id)  # the first to notice
        before = errors(processes.one)
        log_in(processes.one)
        took = errors(processes.one) - before
        way.switch(Mode.PASS)

        # The entry of the login, and the record of its token.
        assert took == 2
        processes.prove()
        wait_until(lambda: processes.one.users.get(user.id).version == 2, what="the login is seen")


def test_nothing_is_cached_while_redis_is_unproven(processes, redis):
    """Earlier copies are dropped, too: they would be trusted when Redis is proven again."""
    user = register(processes.one)
    redis.delete("authsvc:v1:auth:revocations:seq")

    log_in(processes.one)

    assert cached_version(redis, user.id) is None
    processes.prove()
    assert processes.one.users.get(user.id).version == 2
