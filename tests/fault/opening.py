"""Starts a world: its stores, two replicas of the service, and everybody registered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg

from tests.fault.asking import ask
from tests.fault.verdicts import answered
from tests.fault.world import ADMIN, PEOPLE, START_S, World
from tests.rig import PASSWORD, Service, development, migrate
from tests.servers import PostgresServer, RedisServer
from tests.servers.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
