"""Databases for the contract suites: migrated once, emptied or copied for each test."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import fakeredis
import psycopg
import pytest
from psycopg import sql

from authsvc.domain.revocations import Proof
from authsvc.store.migrations import upgrade
from authsvc.store.sql import SqlTimings
from authsvc.store.tables import metadata
from tests.contract.copies.index_side import Side
from tests.contract.copies.reconciling import World, open_world
from tests.contract.copies.redis_side import (
    MAX_STALENESS_S,
    Hooks,
    client_over,
    embedded_pool,
    index_over,
    real_pool,
)
from tests.contract.store.stores import Stores, WallClock, open_database
from tests.servers import PostgresServer, RedisServer, Remote, drop_database
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: As many threads as a test lets loose on one index.
CALLERS = 16


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer | Remote) -> Iterator[str]:
    """Return the URL of a migrated database that the contract tests share."""
    url = postgres_server.create_database()
    with closing(open_database(url)) as database:
        upgrade(database)
    yield url
    drop_database(postgres_server.url, url)


@pytest.fixture
def postgres_url(migrated_postgres: str) -> str:
    """Return the URL of a migrated PostgreSQL database without a row, whose numbers begin anew."""
    tables = sql.SQL(", ").join(map(sql.Identifier, metadata.tables))
    with psycopg.connect(migrated_postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
    return migrated_postgres


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    """Return a migrated SQLite file; closing it has brought everything into the one file."""
    file: Path = tmp_path_factory.mktemp("template") / "authsvc.db"
    with closing(open_database(f"sqlite:///{file}")) as database:
        upgrade(database)
    return file


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path) -> str:
    """Return the URL of a migrated SQLite database."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'authsvc.db')}"


@pytest.fixture(params=["postgresql", "sqlite"])
def sql_url(request) -> str:
    """Return the URL of a migrated database, of each kind in turn."""
    name = "postgres_url" if request.param == "postgresql" else "sqlite_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def stores(sql_url: str) -> Iterator[Stores]:
    """Open every store over each kind of database."""
    with closing(open_database(sql_url)) as database:
        yield Stores.over(database)


@pytest.fixture
def postgres_stores(postgres_url: str) -> Iterator[Stores]:
    """Open every store over PostgreSQL, for what SQLite has no counterpart of."""
    with closing(open_database(postgres_url)) as database:
        yield Stores.over(database)


@pytest.fixture
def brief_locks(postgres_stores: Stores) -> None:
    """Let a reader of the log's head wait for writers as shortly as in the service."""
    usual = SqlTimings()
    postgres_stores.database.timings = replace(
        UNHURRIED.sql, log_lock_s=usual.log_lock_s, log_idle_s=usual.log_idle_s
    )


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """Share one server among these tests, which configure and empty it as they like."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def world(stores, own_redis) -> Iterator[World]:
    """Make a world over each kind of database."""
    yield from open_world(stores, own_redis)


@pytest.fixture
def postgres_world(postgres_stores, own_redis) -> Iterator[World]:
    """Make a world over PostgreSQL, for what SQLite has no counterpart of."""
    yield from open_world(postgres_stores, own_redis)


@pytest.fixture
def quick_world(sqlite_url, own_redis) -> Iterator[World]:
    """Make a world over SQLite, for what happens between a process and Redis alone."""
    with closing(open_database(sqlite_url)) as database:
        yield from open_world(Stores.over(database), own_redis)


@pytest.fixture(params=["embedded", "real"])
def side(request) -> Iterator[Side]:
    """Make an empty index over the in-memory server, then over a real one."""
    is_real = request.param == "real"
    pool = (
        real_pool(request.getfixturevalue("redis_url"), size=CALLERS)
        if is_real
        else embedded_pool(fakeredis.FakeServer(), size=CALLERS)
    )
    operations: list[str] = []
    with closing(client_over(pool, on_operation=lambda name, _s, _o: operations.append(name))) as client:
        proof, hooks, clock = Proof(MAX_STALENESS_S), Hooks(), WallClock()
        index = index_over(client, clock, proof=proof, hooks=hooks)
        client.ping()
        operations.clear()
        yield Side(index, client, proof, hooks, clock, operations)
