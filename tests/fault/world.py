"""A whole service with stores of its own to break, the people in it, and what each of them asks for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from redis import Redis

from tests.fault.asking import PATIENCE_S, REST_S, Answer, answered, ask
from tests.processes import wait_until
from tests.rig import PASSWORD, Service, development, migrate
from tests.servers import PostgresServer, RedisServer
from tests.servers.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The Redis user of the tests; the service is the default user.
ADMIN = "admin"
PEOPLE = ("stays", "gone", "leaves", "ends", "refreshes", "reads", "writes")
#: What a start may take on a busy machine.
START_S = 60.0
#: docs/failure-modes.md: full function again within 10 s after a fault ended; the rest is for a machine that
#: does other things, too.  The table shows what it did take.
WHOLE_WITHIN_S = 40.0


@dataclass(slots=True)
class Member:
    """Somebody who is logged in."""

    email: str
    access: str
    refresh: str
    session_id: str

    @classmethod
    def of(cls, email: str, pair: dict[str, Any]) -> Self:
        """Whoever got the token *pair*."""
        return cls(email, pair["access_token"], pair["refresh_token"], pair["session_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """
    One person for each thing that is asked during a fault.

    ``gone`` has logged out, ``leaves`` holds two access tokens of one session (``leaving`` is the older),
    ``ends`` has a second session to end, ``reads`` is in the cache.
    """

    stays: Member
    gone: Member
    leaves: Member
    leaving: str
    ends: Member
    ended: Member
    refreshes: Member
    reads: Member
    writes: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """
    Two replicas of the service with two workers each, their Redis and their PostgreSQL.

    ``service`` is the one that is asked; ``beside`` reaches both stores through proxies, ``ahead`` does not.
    """

    redis: RedisServer
    postgres: PostgresServer
    redis_proxy: TcpProxy
    sql_proxy: TcpProxy
    ahead: Service
    beside: Service
    service: Service
    #: Access tokens of sessions that ended just before Redis forgot it.
    forgotten: list[str]

    @property
    def replicas(self) -> tuple[Service, Service]:
        """Both."""
        return self.ahead, self.beside

    def at(self, service: Service) -> World:
        """The same world, asked through *service*."""
        return replace(self, service=service)

    def log_in(self, name: str) -> Member:
        """A new session of the person *name*."""
        return self.let_in(f"{name}@example.com")

    def let_in(self, email: str) -> Member:
        """A new session of whoever has *email*."""
        answer = answered(partial(self.try_login, email))
        assert answer.status == 200, answer
        return Member.of(email, answer.body)

    def cast(self) -> Cast:
        """Everybody logged in anew, ``gone`` logged out again, before anything breaks."""
        with ThreadPoolExecutor(2) as pool:
            members = dict(zip(PEOPLE, pool.map(self.log_in, PEOPLE), strict=True))
        ended = self.log_in("ends")
        leaving = members["leaves"].access
        members["leaves"] = self.refreshed(members["leaves"])
        self.leave(members["gone"])
        self.wait_replayed()  # else the login of "reads" would drop their copy once more
        wait_until(lambda: self.has_copy(members["reads"]), timeout_s=PATIENCE_S, what="copy of a user")
        return Cast(leaving=leaving, ended=ended, **members)

    def has_copy(self, member: Member) -> bool:
        """True if the member was read, and Redis holds a copy of them since."""
        answer = self.read(member)
        return answer.status == 200 and self.in_redis(f"user:{answer.body['id']}") is not None

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        """One request, timed."""
        return ask(self.service, method, path, **options)

    def ask_everything(self, cast: Cast) -> dict[str, Answer]:
        """One request of each kind, all at once: whatever the fault is, each meets it first."""
        requests_of = {
            "verify": partial(self.check, cast.stays),
            "refresh": partial(self.refresh, cast.refreshes),
            "login": partial(self.try_login, cast.stays.email),
            "register": partial(self.register, f"{uuid4().hex}@example.com"),
            "password": partial(self.change_password, cast.stays),
            "logout": partial(self.log_out, cast.leaves),
            "end": partial(self.end_session, cast.ends, cast.ended),
            "read": partial(self.read, cast.reads),
            "write": partial(self.write, cast.writes),
        }
        with ThreadPoolExecutor(len(requests_of)) as pool:
            pending = {name: pool.submit(request) for name, request in requests_of.items()}
        return {name: answer.result() for name, answer in pending.items()}

    def check(self, member: Member) -> Answer:
        """What a gateway asks."""
        return self.ask("GET", "/v1/auth/verify", token=member.access)

    def refresh(self, member: Member) -> Answer:
        """Trade the refresh token."""
        return self.ask("POST", "/v1/auth/refresh", json={"refresh_token": member.refresh})

    def refreshed(self, member: Member) -> Member:
        """*member* with their next pair."""
        answer = answered(partial(self.refresh, member))
        assert answer.status == 200, answer
        return Member.of(member.email, answer.body)

    def try_login(self, email: str, password: str = PASSWORD) -> Answer:
        """Log in, or not."""
        return self.ask("POST", "/v1/auth/login", json={"email": email, "password": password})

    def register(self, email: str) -> Answer:
        """Sign up."""
        return self.ask("POST", "/v1/auth/register", json={"email": email, "password": PASSWORD})

    def change_password(self, member: Member) -> Answer:
        """Ask for a password that is the one they have: right or wrong, it must be verified first."""
        passwords = {"current_password": "not the password he has", "new_password": PASSWORD}
        return self.ask("POST", "/v1/me/password", token=member.access, json=passwords)

    def log_out(self, member: Member) -> Answer:
        """End the session."""
        return self.ask("POST", "/v1/auth/logout", token=member.access)

    def leave(self, member: Member) -> None:
        """End the session, and see that Redis has that, too."""
        assert answered(partial(self.log_out, member)).status in {202, 204}
        wait_until(lambda: self.redis_session(member) == "ended", timeout_s=PATIENCE_S, what="tombstone")

    def end_session(self, member: Member, other: Member) -> Answer:
        """End the *other* session of the same person."""
        return self.ask("DELETE", f"/v1/me/sessions/{other.session_id}", token=member.access)

    def read(self, member: Member) -> Answer:
        """The profile."""
        return self.ask("GET", "/v1/me", token=member.access)

    def write(self, member: Member) -> Answer:
        """Set the preferences to what they never were."""
        return self.ask("PUT", "/v1/me/preferences", token=member.access, json={"theme": uuid4().hex})

    def preferences(self, member: Member) -> object:
        """The preferences."""
        return self.ask("GET", "/v1/me/preferences", token=member.access).body

    def in_redis(self, name: str) -> str | None:
        """What Redis holds under the key *name*, which is given without prefix and version."""
        with self.redis_admin() as client:
            value: str | None = client.get(f"authsvc:v1:{name}")
            return value

    def redis_admin(self, *, timeout_s: float | None = 10) -> Redis:
        """Redis for somebody who is not subject to what the service's user may."""
        url = self.redis.url.replace("//", f"//{ADMIN}:any@")
        return Redis.from_url(url, decode_responses=True, socket_timeout=timeout_s)

    def sql_admin(self) -> psycopg.Connection[Any]:
        """The service's database for the administrator, each statement a transaction of its own."""
        name = urlsplit(self.ahead.env["DATABASE_URL"]).path
        url = urlsplit(self.postgres.url)._replace(path=name).geturl()
        connection = psycopg.connect(url, autocommit=True)
        connection.execute("SET default_transaction_read_only = off")
        return connection

    def redis_session(self, member: Member) -> str | None:
        """What Redis holds of the session."""
        return self.in_redis(f"auth:session:{member.session_id}")

    def wait_replayed(self) -> None:
        """Wait until the marker stands at the end of the log."""
        with self.sql_admin() as connection:
            (head,) = connection.execute("SELECT max(seq) FROM revocations").fetchone() or (0,)
        wait_until(lambda: self._replayed() >= head, timeout_s=PATIENCE_S, what="marker")

    def _replayed(self) -> int:
        """The number that the marker shows; 0 without one, and for a claim."""
        marker = self.in_redis("auth:revocations:seq") or ""
        return int(marker) if marker.isdigit() else 0

    @contextmanager
    def replica(self, **overrides: str) -> Iterator[World]:
        """The same world seen through a second service, with other settings, on the same stores."""
        other = Service(self.service.env | overrides, self.service.log.parent)
        with other.start(ready_within_s=START_S) as service:
            yield replace(self, service=service)

    def log_out_in_vain(self, member: Member) -> None:
        """End a session; Redis is about to forget that, and to remember the session."""
        assert answered(partial(self.log_out, member)).status in {202, 204}
        self.forgotten.append(member.access)

    def wait_whole(self, within_s: float = WHOLE_WITHIN_S) -> float:
        """Wait until everything works again in each worker of each replica; the seconds that took."""
        began = time.monotonic()
        for service in {self.ahead, self.beside, self.service}:
            seen = self.at(service)
            for position in range(len(service.workers())):
                while lacking := service.from_worker(position, seen.lacks):
                    took_s = time.monotonic() - began
                    assert took_s < within_s, f"not whole after {took_s:.1f} s: {lacking}"
                    time.sleep(REST_S)
        return time.monotonic() - began

    def lacks(self) -> str:
        """What does not work yet in the worker that answers; nothing if it is whole."""
        ready, health = self.ask("GET", "/v1/health/ready"), self.ask("GET", "/v1/health")
        if ready.status != 200 or ready.body["impaired"]:
            return f"ready: {ready.body}"
        if health.status != 200 or health.body["status"] != "ok":
            return f"health: {health.body}"
        login = self.try_login("visitor@example.com")
        if login.status != 200:
            return f"login: {login.body}"
        member = Member.of("visitor@example.com", login.body)
        steps = [self.check(member).status, self.log_out(member).status, self.check(member).status]
        return "" if steps == [200, 204, 401] else f"coming and going: {steps}"


#: Counted, and never reached: an outage of the counters must show.  Nobody's session gives way to another,
#: and whoever was not answered can ask again much later.  Log and workers as in production, cheap hashes.
SETTINGS = {
    "LOG_FORMAT": "json",
    "WEB_CONCURRENCY": "2",
    "REFRESH_GRACE_SECONDS": "60",
    "SESSION_MAX_PER_USER": "1000",
    "RATE_LIMIT_LOGIN_IP": "100000/hour",
    "RATE_LIMIT_LOGIN_ACCOUNT": "100000/hour",
    "RATE_LIMIT_REGISTER_IP": "100000/hour",
    "RATE_LIMIT_REFRESH": "100000/hour",
    "RATE_LIMIT_TOKEN_CLIENT": "100000/hour",
    "MACHINES": "on",
}


@contextmanager
def open_world(folder: Path, **overrides: str) -> Iterator[World]:
    """A new world, with everybody registered."""
    admin = ("--user", ADMIN, "on", "nopass", "~*", "&*", "+@all")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(*admin))
        postgres = stack.enter_context(PostgresServer(fsync=True))
        env = development(_own_database(postgres), redis.url, folder, **(SETTINGS | overrides))
        migrate(env)
        redis_proxy = stack.enter_context(TcpProxy(redis.url))
        sql_proxy = stack.enter_context(TcpProxy(postgres.url))
        through = {
            "REDIS_URL": redis_proxy.url_for(redis.url),
            "DATABASE_URL": sql_proxy.url_for(env["DATABASE_URL"]),
        }
        ahead, beside = start_both(stack, Service(env, folder), Service(env | through, folder))
        for name in (*PEOPLE, "visitor", "forgotten"):
            sign_up(ahead, f"{name}@example.com")
        yield World(
            redis=redis,
            postgres=postgres,
            redis_proxy=redis_proxy,
            sql_proxy=sql_proxy,
            ahead=ahead,
            beside=beside,
            service=ahead,
            forgotten=[],
        )


def start_both(stack: ExitStack, *services: Service) -> list[Service]:
    """Start them at the same time; *stack* stops them, also where only one of them came up."""
    with ThreadPoolExecutor(len(services)) as pool:
        starting = [pool.submit(service.start, ready_within_s=START_S) for service in services]
    for service in services:
        stack.callback(service.__exit__)
    return [started.result() for started in starting]


def sign_up(service: Service, email: str) -> None:
    """Register *email*; that it is known already may be said after a try that was not answered."""
    words = {"email": email, "password": PASSWORD}
    answer = answered(partial(ask, service, "POST", "/v1/auth/register", json=words))
    assert answer.status in {201, 409}, answer


def _own_database(postgres: PostgresServer) -> str:
    """A database of a role that is no superuser, so that its limits hold for the service."""
    url = urlsplit(postgres.create_database())
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE service LOGIN")
        connection.execute(f'ALTER DATABASE "{url.path[1:]}" OWNER TO service')
    return url._replace(netloc=f"service@{postgres.host}:{postgres.port}").geturl()
