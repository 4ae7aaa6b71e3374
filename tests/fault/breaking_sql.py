"""Ways to break PostgreSQL, each a block: broken inside, mended at its end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.processes import wait_until
from tests.servers.proxy import Mode, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.fault.world import World


@contextmanager
def killed(world: World) -> Iterator[None]:
    """SIGKILL, and later a recovery from its log."""
    world.postgres.kill()
    try:
        yield
    finally:
        world.postgres.start()


@contextmanager
def restarted(world: World) -> Iterator[None]:
    """Killed, and back at once."""
    world.postgres.kill()
    world.postgres.start()
    yield


@contextmanager
def hung(world: World) -> Iterator[None]:
    """Connections are accepted, nothing is answered."""
    world.postgres.pause()
    try:
        yield
    finally:
        world.postgres.resume()


@contextmanager
def locked(world: World) -> Iterator[None]:
    """Somebody holds every table, as a migration gone wrong does."""
    with world.sql_admin() as connection, connection.transaction():
        connection.execute("LOCK TABLE users, sessions, revocations IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """Every transaction is read-only, as on a standby."""
    with world.sql_admin() as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _is_read_only(world))
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")


def _is_read_only(world: World) -> bool:
    with psycopg.connect(world.postgres.url) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


@contextmanager
def no_connections(world: World) -> Iterator[None]:
    """All connections that the service may have are taken; its own have ended."""
    name = urlsplit(world.ahead.env["DATABASE_URL"]).path[1:]
    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    with world.sql_admin() as connection:
        connection.execute(limit.format(sql.Identifier(name), sql.Literal(0)))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")
        try:
            yield
        finally:
            connection.execute(limit.format(sql.Identifier(name), sql.Literal(-1)))


@contextmanager
def connections_ended(world: World) -> Iterator[None]:
    """The server ends every connection once, as at a failover."""
    with world.sql_admin() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")
    yield


@contextmanager
def both_killed(world: World) -> Iterator[None]:
    """Redis, too."""
    with killed(world):
        world.redis.kill()
        try:
            yield
        finally:
            world.redis.start()


def on_the_wire(rule: Rule) -> Callable[[World], AbstractContextManager[None]]:
    """The connections of one replica are disturbed; the other's are not."""

    @contextmanager
    def breaking(world: World) -> Iterator[None]:
        world.sql_proxy.switch(rule)
        try:
            yield
        finally:
            world.sql_proxy.switch(Mode.PASS)

    return breaking
