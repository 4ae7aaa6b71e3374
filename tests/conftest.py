"""Fixtures for every room of the tests."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.forking import warm_interpreter
from tests.servers import PostgresServer, RedisServer, Remote, drop_database
from tests.servers.clusters import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure() -> None:
    """Let a terminated run end as an interrupted one does: with its servers stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _warm() -> Iterator[None]:
    """Fork processes of the service from one that has loaded its modules."""
    with warm_interpreter():
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer | Remote]:
    """
    Share one server of Redis' protocol; a test that stops or fills it takes ``private_redis``.

    ``TEST_REDIS_URL`` names no database: ``redis://host:port``.
    """
    if url := os.environ.get("TEST_REDIS_URL"):
        yield Remote(f"{url.rstrip('/')}/{_worker_number()}")
        return
    with RedisServer() as server:
        yield server


def _worker_number() -> int:
    """Which process of a parallel run this is, else 0; each empties a database of its own."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def served_redis(redis_server: RedisServer | Remote) -> Iterator[str]:
    """Return what services are told of Redis; with ``TEST_REDIS_CLUSTER`` set it is a cluster."""
    if "TEST_REDIS_CLUSTER" not in os.environ:
        yield redis_server.url
        return
    with cluster() as three:
        yield three.url


@pytest.fixture
def redis_url(redis_server: RedisServer | Remote) -> str:
    """Return the URL of an empty Redis database."""
    with Redis.from_url(redis_server.url) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """Give the test a Redis of its own to break; with options: ``with RedisServer(...) as server``."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer | Remote]:
    """Share one PostgreSQL; a test that stops it takes ``private_postgres``."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield Remote(url)
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer | Remote) -> Iterator[str]:
    """Return the URL of an empty PostgreSQL database, dropped after the test."""
    url = postgres_server.create_database()
    yield url
    drop_database(postgres_server.url, url)


@pytest.fixture
def private_postgres() -> Iterator[PostgresServer]:
    """Give the test a PostgreSQL of its own to break, one that keeps what it acknowledged."""
    with PostgresServer(fsync=True) as server:
        yield server
