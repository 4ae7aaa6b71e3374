"""Two replicas of two workers over one Redis and one PostgreSQL, and what may go wrong with these."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import note
from redis import Redis

from tests.e2e.lines import NO_BODY, Line, Reply, open_lines
from tests.processes import wait_until
from tests.rig import PASSWORD, Service, development, migrate, run_command
from tests.servers import PostgresServer, RedisServer
from tests.servers.clusters import Cluster, cluster
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Thrice what docs/failure-modes.md promises and tests/fault measures: here other tests run beside it, and
#: what counts is what each token is worth.
RECOVERY_S = 30.0
#: So old may be what health says.
HEALTH_AGE_S = 0.6
#: What a start may take beside other tests on the same cores.
START_S = 180.0
ROOT = "root@example.com"


@dataclass(slots=True, kw_only=True)
class Stores:
    """Redis and PostgreSQL, and what is wrong with them: ``*_settling`` while a fault is over but felt."""

    redis: RedisServer | Cluster
    postgres: PostgresServer
    has_redis: bool = True
    has_sql: bool = True
    redis_settling: bool = False
    sql_settling: bool = False
    disturbed_at_s: float = 0.0
    #: Of one server a file, of a cluster one for each.
    dumps: list[Any] = field(default_factory=list)

    @property
    def is_settling(self) -> bool:
        """Up, but perhaps not everywhere whole again."""
        return self.has_redis and self.has_sql and (self.redis_settling or self.sql_settling)

    def flush(self) -> None:
        """Everything in Redis is lost; its connections stay."""
        for server in self._servers():
            with Redis.from_url(server.url) as client:
                client.flushall()

    def break_connections(self) -> None:
        """Redis closes every connection."""
        for server in self._servers():
            with Redis.from_url(server.url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self._disturb(redis=True)

    def _servers(self) -> Sequence[RedisServer]:
        return self.redis.all if isinstance(self.redis, Cluster) else (self.redis,)

    def kill_redis(self) -> None:
        """Redis and its data are gone."""
        self.redis.kill()
        self.has_redis = False
        self._disturb(redis=True)

    def start_redis(self) -> None:
        """Redis is there again, empty."""
        self.redis.start()
        self.has_redis = True
        self._disturb(redis=True)

    def restore_redis(self) -> None:
        """Redis comes back with what it held earlier."""
        self.redis.restore(self.dumps[0])
        self.has_redis = True
        self._disturb(redis=True)

    def stop_sql(self) -> None:
        """PostgreSQL ends all connections and stops."""
        self.postgres.stop()
        self.has_sql = False
        self._disturb(sql=True)

    def start_sql(self) -> None:
        """PostgreSQL is there again, with all that it acknowledged."""
        self.postgres.start()
        self.has_sql = True
        self._disturb(sql=True)

    def heal(self) -> None:
        """Start what is down."""
        if not self.has_redis:
            self.start_redis()
        if not self.has_sql:
            self.start_sql()

    def settled(self) -> None:
        """Whole again."""
        self.redis_settling = self.sql_settling = False

    def _disturb(self, *, redis: bool = False, sql: bool = False) -> None:
        self.redis_settling = self.redis_settling or redis
        self.sql_settling = self.sql_settling or sql
        self.disturbed_at_s = time.monotonic()


@dataclass(slots=True, kw_only=True)
class Estate:
    """The service as its callers see it: *lines* lead to each worker of each replica."""

    stores: Stores
    #: Lines to the replica that bears a repeated refresh token, and to the one that does not.
    patient: list[Line]
    strict: list[Line]
    turn: int = 0
    checks: int = 0

    @property
    def lines(self) -> list[Line]:
        """One to each worker."""
        return [*self.patient, *self.strict]

    def ask(self, method: str, path: str, *, token: str | None = None, body: object = NO_BODY) -> Reply:
        """One request to the worker whose turn it is."""
        self.turn += 1
        reply = self.lines[self.turn % len(self.lines)].ask(method, path, token=token, body=body)
        note(f"{method} {path}: {reply}")
        return reply

    def everywhere(self, question: Callable[[Line], Reply]) -> list[Reply]:
        """What each worker answers to *question*."""
        self.checks += len(self.lines)
        return [question(line) for line in self.lines]

    def allows(self, good: int, *, revokes: bool = False) -> set[int]:
        """The statuses that a change may be answered with that succeeds while all is well."""
        if not self.stores.has_sql:
            return {503}
        allowed = {good}
        if revokes and self.stores.redis_settling:
            allowed = {good, 202} if self.stores.has_redis else {202}
        return allowed | {503} if self.stores.sql_settling else allowed

    def allows_check(self, good: int) -> set[int]:
        """The statuses that a check, or a read, may be answered with."""
        is_sure = self.stores.has_sql and not self.stores.sql_settling
        return {good} if is_sure else {good, 503}

    def settle(self) -> None:
        """Note that all is well again, once every worker says so."""
        if self.stores.is_settling and self.is_whole():
            self.stores.settled()

    def is_whole(self) -> bool:
        """Every worker has looked at both stores since the last fault, and found nothing wrong."""
        if time.monotonic() - self.stores.disturbed_at_s < HEALTH_AGE_S:
            return False
        return all(_is_whole(line) for line in self.lines)

    def recover(self) -> None:
        """End all faults; everything works again within RECOVERY_S."""
        self.stores.heal()
        if self.stores.is_settling:
            wait_until(self.is_whole, timeout_s=RECOVERY_S, what="whole again")
        self.stores.settled()
        self.stores.dumps = []


def _is_whole(line: Line) -> bool:
    ready, health = line.ask("GET", "/v1/health/ready"), line.ask("GET", "/v1/health")
    return ready.status == 200 and not ready.json["impaired"] and health.json["status"] == "ok"


@contextmanager
def open_estate(folder: Path, **overrides: str) -> Iterator[Estate]:
    """Two replicas, one without grace for refresh tokens and without the lane; ROOT is their admin."""
    is_cluster = "TEST_REDIS_CLUSTER" in os.environ
    with cluster() if is_cluster else RedisServer() as redis, PostgresServer(fsync=True) as postgres:
        # Development alone may hash cheaply: the more can happen in a second.
        common = {"WEB_CONCURRENCY": "2", "LOG_LEVEL": "warning", **overrides}
        env = development(postgres.create_database(), redis.url, folder, **common)
        migrate(env)
        create_root(env, folder)
        with (
            running(env | {"REFRESH_GRACE_SECONDS": "3600"}, folder) as patient,
            running(env | {"REFRESH_GRACE_SECONDS": "0", "CHECK_LANE": "off"}, folder) as strict,
            open_lines(patient) as to_patient,
            open_lines(strict) as to_strict,
        ):
            stores = Stores(redis=redis, postgres=postgres)
            yield Estate(stores=stores, patient=to_patient, strict=to_strict)


@contextmanager
def running(env: dict[str, str], folder: Path) -> Iterator[Service]:
    """A service that has been started, however busy the machine is with others."""
    with ExitStack() as stack:
        service = Service(env, folder, entry=PATIENT)
        stack.push(service)
        yield service.start(ready_within_s=START_S)


def create_root(env: dict[str, str], folder: Path) -> None:
    """The first admin, by the command line."""
    arguments = ("users", "create", ROOT, "--role", "admin", "--password-stdin")
    done = run_command(*arguments, env=env, folder=folder, stdin=PASSWORD, entry=PATIENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["roles"] == ["user", "admin"]
