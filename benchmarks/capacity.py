"""
What users, sessions and requests cost: bytes in PostgreSQL and Redis, CPU per operation.

    python benchmarks/capacity.py [--rows 20000]

Brings its own PostgreSQL and Redis.  Rows and keys are written by the service's own stores; sizes are those
that the servers report, before and after.  CPU is what the kernel charged the processes, less what they use
when nobody asks: it counts what was done, however busy the machine was.  docs/scaling.md is made from this.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import bcrypt
import psutil
import psycopg
import requests
from redis import Redis

from authsvc.domain.audit import Entry
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Revocation
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id, timed_id
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.migrations import upgrade
from tests.contract.copies.redis_side import access_token, client_over, index_over, real_pool
from tests.contract.store.stores import Stores, WallClock, open_database
from tests.rig import PASSWORD, Service, environment, migrate, run_command
from tests.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from authsvc.domain.sessions import Session
    from authsvc.domain.tokens.access import AccessToken

AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"
#: As long as the hashes that the service makes.
HASH = "bcrypt-hmac-sha384$2b$12$" + "x" * 53
REFRESHES = 3
TABLES = ("users", "sessions", "revocations", "audit_events")
#: Seconds that the processes are watched while nobody asks.
IDLE_S = 8.0


def main() -> None:
    """Measure everything and print one line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    with PostgresServer() as postgres:
        measure_rows(postgres, options.rows)
    with RedisServer() as redis:
        measure_keys(redis, options.rows)
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis, PostgresServer() as postgres:
        measure_requests(Path(folder), redis, postgres)


def address(number: int) -> str:
    """The part before the ``@`` of an address of ordinary length."""
    return f"firstname.lastname{number:08d}"


def measure_rows(postgres: PostgresServer, rows: int) -> None:
    """Bytes on disk for each row, indexes included, after VACUUM."""
    url = postgres.create_database()
    with closing(open_database(url)) as database, ThreadPoolExecutor(4) as pool:
        upgrade(database)
        stores = Stores.over(database, WallClock())
        trail = SqlAuditTrail(database)
        users = list(pool.map(lambda n: register(stores, n), range(rows)))
        say_rows(url, "registered")
        sessions = list(pool.map(lambda user: _log_in(stores, user), users))
        say_rows(url, "each logged in once")
        list(pool.map(lambda session: _refresh(stores, session), sessions))
        say_rows(url, f"each session refreshed {REFRESHES} times")
        for start in range(0, rows, 10):
            trail.write(
                [_event(stores, start + n, users[start + n].id) for n in range(min(10, rows - start))]
            )
        say_rows(url, "an event for each user")


def say_rows(url: str, when: str) -> None:
    """One line: what the rows of each table take now."""
    figures = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        for table in TABLES:
            size, count = connection.execute(
                f"SELECT pg_total_relation_size('{table}'), (SELECT count(*) FROM {table})"
            ).fetchone() or (0, 0)
            if count:
                figures.append(f"{table} {size / count:.0f}")
    print(f"PostgreSQL, {when}: bytes for a row: {', '.join(figures)}")


def measure_keys(redis: RedisServer, count: int) -> None:
    """Bytes of memory for each login, refresh and logout."""
    with (
        closing(client_over(real_pool(redis.url))) as client,
        closing(Redis.from_url(redis.url)) as admin,
    ):
        index = index_over(client, lambda: datetime.now(UTC))
        first = access_token(index.clock)
        tokens = [
            replace(
                first, token_id=TokenId(new_id()), session_id=SessionId(new_id()), user_id=UserId(new_id())
            )
            for _ in range(count)
        ]
        memory = _used(admin)
        for what, act in (
            (
                "a login: token, session, epoch",
                lambda token: index.remember(token, f"{address(1)}@example.com"),
            ),
            (
                "a refresh: one token more",
                lambda token: index.remember(
                    replace(token, token_id=TokenId(new_id())), f"{address(1)}@example.com"
                ),
            ),
            (
                "a logout: less for the token, more for the blacklist",
                lambda token: index.write([_end(token)]),
            ),
        ):
            for token in tokens:
                _insist(act, token)
            memory, before = _used(admin), memory
            print(f"Redis, {what}: {(memory - before) / count:.0f} bytes")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds that the service, PostgreSQL and Redis have used so far."""

    service: psutil.Process
    postgres: psutil.Process
    redis: psutil.Process

    def used(self) -> list[float]:
        """Of each of them with its children, and the time of the reading."""
        return [*map(_cpu_s, (self.service, self.postgres, self.redis)), time.monotonic()]

    def of(self, work: Callable[[], object], idle: list[float]) -> list[float]:
        """CPU seconds that each used for *work*, less what it uses *idle* (per second)."""
        before = self.used()
        work()
        spent = [b - a for a, b in zip(before, self.used(), strict=True)]
        return [cpu_s - idle_s * spent[3] for cpu_s, idle_s in zip(spent[:3], idle, strict=True)]

    def idle(self) -> list[float]:
        """CPU seconds that each uses in a second in which nobody asks."""
        return [cpu_s / IDLE_S for cpu_s in self.of(lambda: time.sleep(IDLE_S), [0.0, 0.0, 0.0])]


def measure_requests(folder: Path, redis: RedisServer, postgres: PostgresServer) -> None:
    """CPU for each request, over one kept connection; what a cached user and a counter take in Redis."""
    env = environment(
        postgres.create_database(), redis.url, folder, BCRYPT_COST="12", SESSION_MAX_PER_USER="1000",
        RATE_LIMIT_LOGIN_IP="100000/15minutes", RATE_LIMIT_LOGIN_ACCOUNT="10/15minutes",
        RATE_LIMIT_REGISTER_IP="100000/hour", RATE_LIMIT_REFRESH="100000/minute",
    )  # fmt: skip
    migrate(env)
    with Service(env, folder).start(ready_within_s=60) as service, requests.Session() as http:
        assert service.process is not None
        cpu = Cpu(*map(psutil.Process, (service.process.pid, _pid(postgres), _pid(redis))))
        time.sleep(2)
        idle = cpu.idle()
        print(f"idle: {_ms(idle)} ms of CPU a second (service, PostgreSQL, Redis)")
        caller = Caller(service, http)
        for what, times, act in caller.kinds():
            spent = cpu.of(lambda act=act, times=times: [act(turn) for turn in range(times)], idle)
            print(f"{what}: {_ms([cpu_s / times for cpu_s in spent])} ms of CPU")
        measure_copies(service, redis)


class Caller:
    """Sends requests one after the other over one connection, and keeps the tokens."""

    def __init__(self, service: Service, http: requests.Session) -> None:
        self._service = service
        self._http = http
        self._pairs: list[dict[str, Any]] = []

    def kinds(self) -> list[tuple[str, int, Callable[[int], object]]]:
        """What is measured, how often, and what to call."""
        form = {"password": PASSWORD}
        return [
            ("register", 20, lambda n: self._send("POST", "/v1/auth/register", {**form, "email": _mail(n)})),
            ("login", 40, self._log_in),
            ("check", 3000, lambda n: self._send("GET", "/v1/auth/verify", token=self._access(n))),
            ("refresh", 600, self._refresh),
            ("own profile", 600, lambda n: self._send("GET", "/v1/me", token=self._access(n))),
            ("logout", 40, lambda n: self._send("POST", "/v1/auth/logout", token=self._access(n))),
        ]

    def _access(self, turn: int) -> str:
        token: str = self._pairs[turn % len(self._pairs)]["access_token"]
        return token

    def _log_in(self, turn: int) -> None:
        form = {"email": _mail(turn % 20), "password": PASSWORD}
        self._pairs.append(self._send("POST", "/v1/auth/login", form).json())

    def _refresh(self, turn: int) -> None:
        place = turn % len(self._pairs)
        form = {"refresh_token": self._pairs[place]["refresh_token"]}
        self._pairs[place] = self._send("POST", "/v1/auth/refresh", form).json()

    def _send(
        self, method: str, path: str, form: dict[str, str] | None = None, *, token: str | None = None
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = self._service.url + path
        answer = self._http.request(method, url, json=form, headers=headers, timeout=20)
        answer.raise_for_status()
        return answer


def measure_copies(service: Service, redis: RedisServer, *, users: int = 1000) -> None:
    """Bytes for a cached user with the note of their address, and for the counter of one account."""
    folder = service.log.parent
    foreign = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    # Whoever has logged in is warmed.
    common = {"password_hash": foreign, "name": "Firstname Lastname", "last_login": "2026-01-02T03:04:05Z"}
    people = [{**common, "email": f"{address(n)}@example.com"} for n in range(users)]
    (folder / "users.jsonl").write_text("".join(json.dumps(person) + "\n" for person in people))
    run_command(
        "users", "import", "users.jsonl", env=service.env, folder=folder, within_s=60
    ).check_returncode()
    with closing(Redis.from_url(redis.url)) as admin:
        before = _used(admin)
        warmed = run_command("cache", "warm", env=service.env, folder=folder, within_s=60)
        count = json.loads(warmed.stdout)["warmed"]["users"]
        print(f"Redis, a cached user: {(_used(admin) - before) / count:.0f} bytes ({count} users)")
        keys = list(admin.scan_iter("*:auth:rate-limit:*", count=1000))
        sizes = sorted(admin.memory_usage(key) for key in keys)
        print(f"Redis, counters of limits: {sizes[0]} to {sizes[-1]} bytes ({len(keys)} keys)")


def _mail(number: int) -> str:
    return f"caller{number}@example.com"


def register(stores: Stores, number: int) -> User:
    """A user with a name, an address and a hash of ordinary length."""
    now = stores.clock()
    email = Email(f"{address(number)}@example.com")
    user = User(
        id=UserId(new_id()), email=email, name="Firstname Lastname", created_at=now, updated_at=now
    )  # fmt: skip
    return stores.users.add(user, HASH).value


def _log_in(stores: Stores, user: User) -> Session:
    return stores.log_in(user, user_agent=AGENT, ip="203.0.113.25")


def _refresh(stores: Stores, session: Session) -> None:
    now = stores.clock()
    for counter in range(REFRESHES):
        stores.sessions.rotate(
            replace(session, counter=counter), now=now, idle_expires_at=now + timedelta(days=7)
        )


def _event(stores: Stores, number: int, user_id: UserId) -> Entry:
    at = stores.clock() + timedelta(milliseconds=number)
    return Entry(
        id=timed_id(at), at=at, action="login.succeeded", user_id=user_id, actor_id=user_id,
        session_id=new_id(), client_ip="203.0.113.25", user_agent=AGENT, request_id=new_id(),
    )  # fmt: skip


def _end(token: AccessToken) -> Revocation:
    now = datetime.now(UTC)
    return Revocation(
        seq=1, at=now, reason="logout", expires_at=now + timedelta(seconds=3665), user_id=token.user_id,
        session_id=token.session_id, token_id=token.token_id,
    )  # fmt: skip


def _insist(act: Callable[[AccessToken], object], token: AccessToken) -> None:
    """Again, where a busy machine made Redis late."""
    while True:
        try:
            act(token)
        except StoreUnavailable:
            continue
        return


def _used(admin: Redis) -> int:
    used: int = admin.info("memory")["used_memory"]
    return used


def _pid(server: PostgresServer | RedisServer) -> int:
    """The process that listens on the server's port."""
    for process in psutil.process_iter():
        try:
            found = any(
                c.laddr.port == server.port for c in process.net_connections() if c.status == "LISTEN"
            )
        except psutil.Error:
            continue
        if found:
            return process.pid
    raise LookupError(server.port)


def _cpu_s(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _ms(seconds: list[float]) -> str:
    return " / ".join(f"{max(0.0, value) * 1000:.2f}" for value in seconds)


if __name__ == "__main__":
    main()
