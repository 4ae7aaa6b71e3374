"""A whole service with stores of its own to break, the people in it, and what each of them asks for."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import psycopg
from redis import Redis

from tests.processes import wait_until
from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Counted, and never reached: an outage of the counters must show.
LIMITS = {
    "RATE_LIMIT_LOGIN_IP": "100000/hour",
    "RATE_LIMIT_LOGIN_ACCOUNT": "100000/hour",
    "RATE_LIMIT_REGISTER_IP": "100000/hour",
    "RATE_LIMIT_REFRESH": "100000/hour",
}
PEOPLE = ("stays", "gone", "leaves", "ends", "refreshes", "reads", "writes")
#: docs/failure-modes.md: full function again so long after a fault ended.
RECOVERY_S = 10.0

#: What 20 checks by each of the two workers come to.
ALL_REFUSED = Counter({401: 40})
ALL_ACCEPTED = Counter({200: 40})

#: The rows of the failure matrix.
WHOLE = {
    "verify": 200, "refresh": 200, "login": 200, "register": 201, "password": 403,
    "logout": 204, "end": 204, "read": 200, "write": 200,
}  # fmt: skip
WITHOUT_REDIS = WHOLE | {"login": 503, "register": 503, "password": 503, "logout": 202, "end": 202}
WITHOUT_SQL = dict.fromkeys(WHOLE, 503) | {"verify": 200, "read": 200}
WITHOUT_BOTH = dict.fromkeys(WHOLE, 503)


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


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; *body* is its JSON, or None."""

    status: int
    seconds: float
    retry_after: str | None
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The service with two workers, its Redis and its PostgreSQL."""

    redis: RedisServer
    postgres: PostgresServer
    service: Service

    def log_in(self, name: str) -> Member:
        """A new session of the person *name*."""
        email = f"{name}@example.com"
        return Member.of(email, self.service.log_in(email))

    def cast(self) -> Cast:
        """Everybody logged in anew, ``gone`` logged out again, before anything breaks."""
        with ThreadPoolExecutor(2) as pool:
            members = dict(zip(PEOPLE, pool.map(self.log_in, PEOPLE), strict=True))
        ended = self.log_in("ends")
        leaving = members["leaves"].access
        members["leaves"] = self.refreshed(members["leaves"])
        assert self.log_out(members["gone"]).status == 204
        self.wait_replayed()  # else the login of "reads" would drop his copy once more
        assert self.read(members["reads"]).status == 200
        return Cast(leaving=leaving, ended=ended, **members)

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        """One request, timed."""
        began = time.monotonic()
        response = self.service.call(method, path, **options)
        seconds = time.monotonic() - began
        body = response.json() if response.content else None
        return Answer(response.status_code, seconds, response.headers.get("Retry-After"), body)

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
        """*member* with his next pair."""
        answer = self.refresh(member)
        assert answer.status == 200, answer
        return Member.of(member.email, answer.body)

    def try_login(self, email: str, password: str = PASSWORD) -> Answer:
        """Log in, or not."""
        return self.ask("POST", "/v1/auth/login", json={"email": email, "password": password})

    def register(self, email: str) -> Answer:
        """Sign up."""
        return self.ask("POST", "/v1/auth/register", json={"email": email, "password": PASSWORD})

    def change_password(self, member: Member) -> Answer:
        """Ask for a password that is the one he has: right or wrong, it must be verified first."""
        passwords = {"current_password": "not the password he has", "new_password": PASSWORD}
        return self.ask("POST", "/v1/me/password", token=member.access, json=passwords)

    def log_out(self, member: Member) -> Answer:
        """End the session."""
        return self.ask("POST", "/v1/auth/logout", token=member.access)

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
        with Redis.from_url(self.redis.url, decode_responses=True) as client:
            value: str | None = client.get(f"authsvc:v1:{name}")
            return value

    def redis_session(self, member: Member) -> str | None:
        """What Redis holds of the session."""
        return self.in_redis(f"auth:session:{member.session_id}")

    def wait_replayed(self) -> None:
        """Wait until the marker stands at the end of the log."""
        with psycopg.connect(self.service.env["DATABASE_URL"]) as connection:
            (head,) = connection.execute("SELECT max(seq) FROM revocations").fetchone() or (0,)
        wait_until(lambda: int(self.in_redis("auth:revocations:seq") or 0) >= head, timeout_s=5)

    @contextmanager
    def replica(self, **overrides: str) -> Iterator[World]:
        """The same world seen through a second service, with other settings, on the same stores."""
        with Service(self.service.env | overrides, self.service.log.parent) as service:
            yield replace(self, service=service)

    def wait_whole(self, within_s: float = RECOVERY_S) -> None:
        """Wait until everything works again in each worker."""
        wait_until(lambda: all(self.service.from_each_worker(self.is_whole)), timeout_s=within_s)

    def is_whole(self) -> bool:
        """Both stores are up and proven, a person can come and go, whichever worker answers."""
        ready = self.ask("GET", "/v1/health/ready")
        health = self.ask("GET", "/v1/health")
        if ready.status != 200 or ready.body["impaired"] or health.body["status"] != "ok":
            return False
        login = self.try_login("visitor@example.com")
        if login.status != 200:
            return False
        member = Member.of("visitor@example.com", login.body)
        return [self.check(member).status, self.log_out(member).status, self.check(member).status] == [
            200,
            204,
            401,
        ]


@contextmanager
def open_world(folder: Path, **overrides: str) -> Iterator[World]:
    """A new world, with everybody registered."""
    with RedisServer() as redis, PostgresServer(fsync=True) as postgres:
        env = environment(postgres.create_database(), redis.url, folder, **(LIMITS | overrides))
        migrate(env)
        with Service(env, folder) as service:
            for name in (*PEOPLE, "visitor"):
                assert service.register(f"{name}@example.com").status_code == 201
            yield World(redis=redis, postgres=postgres, service=service)


def statuses(answers: dict[str, Answer]) -> dict[str, int]:
    """What was answered."""
    return {name: answer.status for name, answer in answers.items()}


def later_than(answers: dict[str, Answer], limit_s: float) -> dict[str, float]:
    """The answers that took longer."""
    return {name: answer.seconds for name, answer in answers.items() if answer.seconds > limit_s}


def without_retry_after(answers: dict[str, Answer]) -> list[str]:
    """The 503s that do not say when to come back."""
    return [n for n, answer in answers.items() if answer.status == 503 and not answer.retry_after]


def refused_within(service: Service, token: str, seconds: float) -> None:
    """Wait until each worker refuses *token*."""
    wait_until(lambda: set(service.verify_everywhere(token, times=1)) == {401}, timeout_s=seconds)


def everywhere(service: Service, *tokens: str) -> list[Counter[int]]:
    """The statuses of 20 checks of each token by each of the two workers."""
    return [service.verify_everywhere(token) for token in tokens]
