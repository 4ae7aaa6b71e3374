"""What the code needs of a server it sets itself: on the server, behind PgBouncer, and with several hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import func, select, text

from authsvc.cache.breaker import State
from authsvc.domain.errors import LastAdmin, StoreUnavailable
from authsvc.domain.values.identifiers import new_id
from authsvc.settings.postgresql import SERVER_SETTINGS, SERVER_TIMEOUTS
from authsvc.store.migrations import upgrade
from authsvc.store.sql import Database, SqlTimings
from authsvc.store.tables import clients
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import Stores, open_database
from tests.processes import HOST, free_port
from tests.servers import PostgresServer
from tests.servers.binaries import is_here, pgbouncer_binary
from tests.servers.pgbouncer import PgBouncer

#: What an operator may have set for others, on the database or the role: none of it may reach the service.
FOREIGN = {
    "default_transaction_isolation": "repeatable read",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "America/Caracas",
    "standard_conforming_strings": "off",
    "synchronous_commit": "off",
    "client_encoding": "LATIN1",
    "statement_timeout": "0",
    "lock_timeout": "0",
}
ROUNDS = 8
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
#: The ways to a server: straight, and through a pooler that is configured in each of the usual ways.
WAYS = {
    "straight": None,
    "session pooling": partial(PgBouncer, mode="session"),
    "transaction pooling": partial(PgBouncer, mode="transaction"),
    "a pooler that drops options": partial(
        PgBouncer, mode="transaction", more="ignore_startup_parameters = options"
    ),
    "a pooler with one connection": partial(PgBouncer, mode="transaction", more="default_pool_size = 1"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Share one server among these tests, which set what they like."""
    with PostgresServer() as running:
        yield running


@pytest.fixture(scope="module", params=WAYS)
def way(request, server) -> Iterator[Callable[[str], str]]:
    """What makes of a database's URL the one that leads there in each way in turn."""
    make = WAYS[request.param]
    if make is None:
        yield str
        return
    if not is_here(pgbouncer_binary):
        pytest.skip("no pgbouncer here")
    with make(server) as pooler:
        yield pooler.url_for


def foreign_database(server: PostgresServer) -> str:
    """A new database whose owner has set everything in another way."""
    url = server.create_database()
    with psycopg.connect(server.url, autocommit=True) as admin:
        name = sql.Identifier(url.rpartition("/")[2])
        for setting, value in FOREIGN.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.Identifier(setting), value)
            if setting == "DateStyle":
                statement = sql.SQL("ALTER DATABASE {} SET datestyle = {}").format(name, sql.SQL(value))
            admin.execute(statement)
    return url


@pytest.fixture
def database(server, way) -> Iterator[Database]:
    """Open a migrated database with foreign settings."""
    with closing(open_database(way(foreign_database(server)))) as made:
        upgrade(made)
        yield made


def shown(made: Database, name: str, *, reading: bool = True) -> str:
    """The value of a setting in a unit of work of *made*."""
    with made.read() if reading else made.transaction() as connection:
        value: str = connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one()
    return value


@pytest.mark.parametrize("reading", [True, False], ids=["read", "transaction"])
def test_every_unit_of_work_has_the_settings_that_the_code_relies_on(database, reading):
    """Whatever the database's owner has set for others."""
    names = ("transaction_isolation", "client_encoding", *SERVER_SETTINGS, *SERVER_TIMEOUTS)
    for _ in range(2):
        found = {name: shown(database, name, reading=reading) for name in names}
        assert found["datestyle"].startswith("ISO")
        assert {name: found[name] for name in names if "timeout" not in name} | {
            "datestyle": "ISO",
            "default_transaction_isolation": "read committed",
        } == {
            "transaction_isolation": "read committed",
            "client_encoding": "UTF8",
            **SERVER_SETTINGS,
        }
        assert {found[name] for name in names if "timeout" in name} == {"1min"}


def test_nothing_that_is_stored_depends_on_the_databases_settings(database):
    """Names in any script and times come back as they were stored; the log's order holds."""
    stores = Stores.over(database)
    alice = stores.register(name="日本")
    sessions = [stores.log_in(alice) for _ in range(12)]

    found = stores.users.get(alice.id)

    assert found.name == "日本"
    assert found.created_at == alice.created_at
    assert len(stores.alive(alice)) == 10
    assert sessions[-1].id in stores.alive(alice)
    assert stores.log.head() == len(stores.entries())


def test_a_transaction_may_begin_with_many_rows(database):
    """Those are sent in a pipeline, where each message has one command."""
    rows = [{"id": new_id(), "name": "n", "secret_hash": "", "created_at": NOW} for _ in range(30)]
    for part in (rows[:20], rows[20:]):
        with database.transaction() as connection:
            connection.execute(clients.insert(), part)
            assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "1min"

    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(clients)).scalar_one() == 30


def test_of_two_admins_one_stays(database):
    """Two that each take away the other, at once: with repeatable reads both would count on the other one."""
    stores = Stores.over(database)
    kept = []
    for number in range(ROUNDS):
        pair = [stores.register(f"admin{number}{letter}", roles=("user", "admin")) for letter in "ab"]
        refusals: list[LastAdmin] = []

        def remove(user: Any, refusals: list[LastAdmin] = refusals) -> None:
            try:
                stores.users.remove(user.id)
            except LastAdmin as refusal:
                refusals.append(refusal)

        in_threads(*(partial(remove, user) for user in pair))
        kept.append(len(refusals))
        with database.transaction() as connection:
            connection.execute(text("DELETE FROM users"))

    assert kept == [1] * ROUNDS


def test_a_slow_statement_is_given_up_by_the_server(server, way):
    """Also where a pooler drops what a session begins with: else it would go on for nobody."""
    url = way(server.create_database())
    with closing(open_database(url, timings=SqlTimings())) as made:
        for unit in (made.read, made.transaction):
            with pytest.raises(StoreUnavailable, match="QueryCanceled"), unit() as connection:
                connection.execute(text("SELECT pg_sleep(60)"))


class TestGiven:
    """What an operator asks libpq for is joined with what the service sets."""

    @pytest.fixture
    def url(self, server, way) -> str:
        """Return the URL of a database with a schema of its own."""
        url: str = server.create_database()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA auth")
        return str(way(url))

    def test_a_search_path_leads_every_table_there(self, url, server):
        """From the URL; the tables are made and found in that schema alone."""
        with closing(open_database(f"{url}?options=-csearch_path%3Dauth")) as made:
            upgrade(made)
            Stores.over(made).register()
            assert shown(made, "search_path", reading=False) == "auth"
            assert shown(made, "timezone") == "UTC"
        with psycopg.connect(server.url.rpartition("/")[0] + "/" + url.rpartition("/")[2]) as connection:
            rows = connection.execute(
                "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
            )
            assert rows.fetchall() == [("auth",)]

    def test_options_of_libpqs_variable_hold_where_the_url_has_none(self, url, monkeypatch):
        """As libpq has it: the URL's come in their place."""
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
        with closing(open_database(url)) as made:
            assert shown(made, "work_mem") == "5MB"
        with closing(open_database(f"{url}?options=-csearch_path%3Dauth")) as made:
            assert shown(made, "work_mem") != "5MB"

    def test_the_name_of_the_application_is_the_operators(self, url):
        """Without one it is the service's own."""
        for query, name in (("", "authsvc"), ("?application_name=login", "login")):
            with closing(open_database(url + query)) as made:
                assert shown(made, "application_name") == name


class TestSeveralHosts:
    """The first that serves is taken, as libpq does."""

    def urls(self, *servers: str) -> str:
        """One URL for all of *servers*."""
        hosts = ",".join(url.partition("@")[2].partition("/")[0] for url in servers)
        return f"postgresql://postgres@{hosts}/postgres"

    def test_hosts_that_are_away_or_take_no_writes_are_passed_over(self, server):
        """After a failover the standby comes first, and is not asked to write."""
        away = f"postgresql://postgres@{HOST}:{free_port()}/postgres"
        with PostgresServer("-c", "default_transaction_read_only=on") as standby:
            with closing(open_database(self.urls(away, standby.url, server.url))) as made:
                assert shown(made, "port", reading=False) == str(server.port)
            some = f"{self.urls(away, standby.url, server.url)}?target_session_attrs=any"
            with closing(open_database(some)) as made:
                assert shown(made, "port") == str(standby.port)

    def test_a_silent_host_costs_one_answer_and_is_asked_last_from_then_on(self, server):
        """Two seconds of waiting leave no time for the next host; the next connection asks that one first."""
        with PostgresServer() as silent:
            silent.pause()
            urls = self.urls(silent.url, server.url)
            with closing(open_database(urls, timings=SqlTimings())) as made:
                with pytest.raises(StoreUnavailable, match="no answer in time"):
                    made.ping()
                assert shown(made, "port") == str(server.port)
            silent.resume()

    def test_where_none_serves_the_causes_are_told_together(self):
        """One line for the log, without an address."""
        away = f"postgresql://postgres@{HOST}:{free_port()}/postgres"
        with PostgresServer("-c", "default_transaction_read_only=on") as standby:
            made = open_database(self.urls(away, standby.url))
            with closing(made), pytest.raises(StoreUnavailable) as refusal:
                made.ping()

        assert refusal.value.store == "sql: connection refused, no primary"


class TestDamage:
    """A row that cannot be read is no answer, and no error of the caller."""

    @pytest.mark.parametrize(
        "damage",
        [
            "preferences = '[]'",
            'preferences = \'{"a": "\\ud800"}\'',
            "status = 'asleep'",
            "last_login = 'infinity'",
        ],
    )
    def test_a_damaged_user_is_unavailable_and_others_are_not(self, server, damage):
        """The breaker stays closed: the server did answer."""
        with closing(open_database(server.create_database())) as made:
            upgrade(made)
            stores = Stores.over(made)
            alice, bob = stores.register("alice"), stores.register("bob")
            with made.transaction() as connection:
                connection.exec_driver_sql(f"UPDATE users SET {damage} WHERE id = '{alice.id}'")

            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="unreadable row"):
                    stores.users.get(alice.id)

            assert stores.users.get(bob.id) == bob
            assert made.state is State.CLOSED

    def test_text_that_is_not_utf8_is_unavailable(self, server):
        """An SQL_ASCII database holds any bytes; the start refuses it, a name that moved may lead there."""
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        made = open_database(server.url.rpartition("/")[0] + "/bytes")
        with closing(made), pytest.raises(StoreUnavailable), made.read() as connection:
            connection.execute(text("SELECT convert_from('\\xff'::bytea, 'SQL_ASCII')")).scalar_one()


def test_a_snapshot_sees_one_moment_and_the_next_unit_of_work_does_not(server, database):
    """What others commit meanwhile is not there; nothing can be written; the connection is as before."""
    count = text("SELECT count(*) FROM clients")
    name = _name_of(database)

    with database.snapshot() as connection:
        before = connection.execute(count).scalar_one()
        with psycopg.connect(f"{server.url.rpartition('/')[0]}/{name}", autocommit=True) as other:
            other.execute(
                "INSERT INTO clients (id, name, secret_hash, created_at) VALUES (%s, 'x', 'x', now())",
                [new_id()],
            )
        within = connection.execute(count).scalar_one()

    assert (before, within) == (0, 0)
    assert shown(database, "transaction_isolation", reading=False) == "read committed"
    with database.read() as connection:
        assert connection.execute(count).scalar_one() == 1
    with pytest.raises(StoreUnavailable), database.snapshot() as connection:
        connection.execute(text("DELETE FROM clients"))


def _name_of(made: Database) -> str:
    with made.read() as connection:
        name: str = connection.execute(text("SELECT current_database()")).scalar_one()
    return name
