"""Databases for the contract suites: migrated once, emptied or copied for each test."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from authsvc.store.migrations import upgrade
from authsvc.store.tables import metadata
from tests.contract.stores import Stores, open_database
from tests.servers import PostgresServer, Remote, drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
