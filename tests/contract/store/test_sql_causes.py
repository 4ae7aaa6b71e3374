"""Each way in which a database is not there has a name of its own, and a line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.store.postgres.causes import Cause, cause_of
from authsvc.store.sql import SqlTimings
from tests.contract.store.stores import open_database
from tests.processes import HOST, free_port
from tests.servers import PostgresServer
from tests.servers.binaries import is_here, pgbouncer_binary
from tests.servers.certificates import self_signed
from tests.servers.pgbouncer import PgBouncer
from tests.timings import UNHURRIED

#: The first line of pg_hba.conf that fits decides.
HBA = """
host all postgres 127.0.0.1/32 trust
host secrets all 127.0.0.1/32 scram-sha-256
hostssl tls all 127.0.0.1/32 trust
host open all 127.0.0.1/32 trust
host closed all 127.0.0.1/32 trust
"""
SETUP = (
    "CREATE ROLE someone LOGIN PASSWORD 'hunter2'",
    "CREATE ROLE team NOLOGIN",
    "CREATE ROLE crowd LOGIN CONNECTION LIMIT 0",
    *(f"CREATE DATABASE {name}" for name in ("secrets", "tls", "open", "closed")),
    "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Share one server with roles and rights of several kinds."""
    running = PostgresServer()
    (running.data / "pg_hba.conf").write_text(HBA)
    with running:
        with psycopg.connect(running.url, autocommit=True) as admin:
            for statement in SETUP:
                admin.execute(statement)
        yield running


def cause_at(url: str, timings: SqlTimings = UNHURRIED.sql) -> Cause:
    """Why the database of *url* does not answer; nothing of the URL is in the refusal."""
    with closing(open_database(url, timings=timings)) as made, pytest.raises(StoreUnavailable) as refusal:
        made.ping()
    cause = cause_of(refusal.value)
    assert refusal.value.store == f"sql: {cause.name}"
    assert not [
        word for word in ("someone", "hunter2", HOST, "secrets") if word in f"{refusal.value} {cause}"
    ]
    return cause


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("someone:wrong@{at}/secrets", "password refused"),
        ("someone@{at}/secrets", "password refused"),
        ("nobody@{at}/open", "unknown user"),
        ("team@{at}/open", "unknown user"),
        ("someone@{at}/nowhere", "not admitted"),
        ("postgres@{at}/nowhere", "unknown database"),
        ("someone@{at}/closed", "database closed"),
        ("crowd@{at}/open", "no connection left"),
        ("someone@{at}/tls", "not admitted"),
        ("someone@{at}/open?sslmode=require", "no TLS"),
        ("someone@{at}/open?target_session_attrs=standby", "no primary"),
        ("someone@{at}/open?options=-cno_such_setting%3D1", "option refused"),
        ("someone@{away}/open", "connection refused"),
        ("someone@no-such-host.invalid/open", "unknown host name"),
        ("someone@{away},{at}/nowhere", "connection refused, not admitted"),
    ],
)
def test_each_refusal_has_a_name_of_its_own(server, place, name):
    """Told apart by an operator who has nothing but that line, which also says what to do."""
    at, away = f"{HOST}:{server.port}", f"{HOST}:{free_port()}"

    cause = cause_at("postgresql://" + place.format(at=at, away=away))

    assert cause.name == name
    assert len(cause.advice) > len("see the log")
    assert "see the log of the database" not in cause.advice


def test_a_server_that_is_silent_is_named(private_postgres):
    """A firewall that drops packets looks the same."""
    private_postgres.pause()
    assert cause_at(private_postgres.url, SqlTimings()).name == "no answer in time"
    private_postgres.resume()


@pytest.fixture
def pooler(server, request) -> Iterator[PgBouncer]:
    """PgBouncer before the server, with more lines of configuration."""
    if not is_here(pgbouncer_binary):
        pytest.skip("no pgbouncer here")
    options: dict[str, Any] = request.param
    with PgBouncer(server, users=("postgres", "someone"), **options) as running:
        yield running


@pytest.mark.parametrize(
    ("pooler", "place", "name"),
    [
        ({}, "nobody@{at}/open", "password refused"),
        ({}, "someone@{at}/nowhere", "not admitted"),
        ({}, "postgres@{at}/nowhere", "unknown database"),
        ({"mode": "statement"}, "postgres@{at}/open", "statement pooling"),
    ],
    indirect=["pooler"],
)
def test_a_pooler_s_refusal_is_named_too(pooler, place, name):
    """Its words are others than PostgreSQL's."""
    assert cause_at("postgresql://" + place.format(at=f"{HOST}:{pooler.port}")).name == name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("sslmode=verify-ca&sslrootcert=/nonexistent", "TLS certificate refused"),
        ("sslmode=verify-ca&sslrootcert={other}", "TLS certificate refused"),
        ("sslmode=verify-full&sslrootcert={own}", "TLS certificate refused"),
        ("sslmode=disable", "TLS failed"),
        ("sslmode=verify-ca&sslrootcert={own}", None),
    ],
)
def test_a_fault_of_tls_is_named(server, query, name):
    """No CA file, another CA, a certificate for another host, no TLS where it must be."""
    if not is_here(pgbouncer_binary):
        pytest.skip("no pgbouncer here")
    own, other = (self_signed(server.folder, host) for host in ("elsewhere.example", "other.example"))
    settings = {"sslmode": "require", "key_file": own.private, "cert_file": own.public}
    more = "\n".join(f"client_tls_{key} = {value}" for key, value in settings.items())
    with PgBouncer(server, users=("postgres", "someone"), more=more, files=own) as pooler:
        url = f"postgresql://postgres@{HOST}:{pooler.port}/open?" + query.format(
            own=own.public, other=other.public
        )
        if name is None:
            with closing(open_database(url)) as made:
                assert made.ping()
        else:
            assert cause_at(url).name == name
