"""The schema: what the migrations make is what the stores use, however many upgrades start together."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.clients import USUAL_RIGHTS
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import SessionId, UserId, timed_id
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.clients import SqlClientStore
from authsvc.store.migrations import FOLDER, NEEDED_REVISION, VERSIONS, schema_of, upgrade, why_unfit
from authsvc.store.sql import Database
from authsvc.store.tables import metadata
from tests import ROOT
from tests.contract.store.stores import Stores, open_database
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESSES = 3
NEWER = r"revision 9999, which authsvc 9\.8\.7 made; this is .*: install authsvc 9\.8\.7 or later"
UPGRADE = """
import sys
from authsvc.store.migrations import upgrade
from tests.contract.store.stores import open_database
databases = [open_database(url) for url in sys.argv[1:]]
print("ready", flush=True)
for database in databases:
    sys.stdin.readline()
    print(upgrade(database), flush=True)
"""


ADA_ID = UserId("00000000-0000-4000-8000-0000000000ad")
SESSION_ID = SessionId("00000000-0000-4000-8000-0000000000ae")
WRITTEN = {
    # As SQLite keeps an id; PostgreSQL reads it so, too.
    "user": ADA_ID.replace("-", ""),
    "session": SESSION_ID.replace("-", ""),
    "email": "ada@example.com",
    "yes": True,
    "salt": b"salt",
    "then": "2026-01-02 03:04:05.000000",
    "later": "2099-01-02 03:04:05.000000",
}
FIRST_RELEASE = (
    """INSERT INTO users (id, email, is_admin, status, preferences, created_at, updated_at, epoch, version,
    password_hash, password_version)
    VALUES (:user, :email, :yes, 'active', '{}', :then, :then, 0, 1, 'x', 1)""",
    """INSERT INTO sessions (id, user_id, ip, created_at, last_used_at, idle_expires_at, expires_at, counter,
    rotated_at, salt) VALUES (:session, :user, '127.0.0.1', :then, :then, :later, :later, 0, :then, :salt)""",
    """INSERT INTO revocations (at, reason, expires_at, user_id, email)
    VALUES (:then, 'registered', :later, :user, :email)""",
    "INSERT INTO clients (id, name, secret_hash, created_at) VALUES (:user, 'gateway', 'x', :then)",
)


@pytest.fixture(params=["postgresql", "sqlite"])
def empty_url(request, tmp_path) -> str:
    """Return the URL of a database without a table, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("database_url")
    return url


def revision_of(url: str) -> str | None:
    """Where the database stands."""
    with closing(open_database(url)) as database, database.read() as connection:
        return schema_of(connection).revision


def test_an_empty_database_stands_nowhere(empty_url):
    """A service that starts on it refuses, and names the command."""
    assert revision_of(empty_url) is None


def test_an_upgrade_brings_the_revision_that_the_service_needs(empty_url):
    """And running it again changes nothing, not even the rows."""
    with closing(open_database(empty_url)) as database:
        assert upgrade(database) == NEEDED_REVISION
        alice = Stores.over(database).register()

        assert upgrade(database) == NEEDED_REVISION
        assert Stores.over(database).users.get(alice.id) == alice

    assert revision_of(empty_url) == NEEDED_REVISION


def test_a_database_of_a_newer_version_is_left_alone(empty_url):
    """Whoever rolls back over a change of the schema is told so; nothing is touched."""
    with closing(open_database(empty_url)) as database:
        upgrade(database)
        with database.transaction() as connection:
            connection.exec_driver_sql("UPDATE authsvc_version SET version_num = '9999', release = '9.8.7'")

        with pytest.raises(ValueError, match=NEWER) as refusal:
            upgrade(database)

        assert f"the database {why_unfit(database)}" == str(refusal.value)
    assert revision_of(empty_url) == "9999"


def test_an_upgrade_from_the_first_revision_keeps_every_row(empty_url):
    """A user with a session finds both, and what came since works beside them."""
    with closing(open_database(empty_url)) as database:
        _upgrade_to(database, "0001")
        _as_the_first_release(database)

        assert upgrade(database) == NEEDED_REVISION

        stores = Stores.over(database)
        ada = stores.users.get(ADA_ID)
        assert (ada.email, ada.roles) == ("ada@example.com", ("user", "admin"))
        assert (stores.alive(ada), len(stores.entries())) == ({SESSION_ID}, 1)
        assert [client.may for client in SqlClientStore(database, stores.log).every()] == [USUAL_RIGHTS]
        now = stores.clock()
        SqlAuditTrail(database).write([Entry(id=timed_id(now), at=now, action="login.succeeded")])
        assert len(SqlAuditTrail(database).page(AuditFilter())) == 1


def test_the_first_release_goes_on_over_the_schema_of_this_one(empty_url):
    """Its writes name the columns that it knows: nobody gets a role, and nobody loses one."""
    with closing(open_database(empty_url)) as database:
        upgrade(database)
        _as_the_first_release(database)
        stores = Stores.over(database)
        stores.users.change(ADA_ID, lambda user: replace(user, roles=("user", "admin", "editor")))

        with database.transaction() as connection:
            connection.execute(
                text("UPDATE users SET is_admin = :no, epoch = epoch + 1 WHERE email = :email"),
                {"no": False, "email": "ada@example.com"},
            )

        assert stores.users.get(ADA_ID).roles == ("user", "editor")


def _as_the_first_release(database: Database) -> None:
    """Write a user, a session, an entry of the log and a client as revision 0001 knows them."""
    with database.transaction() as connection:
        for statement in FIRST_RELEASE:
            connection.execute(text(statement), WRITTEN)


def _upgrade_to(database: Database, revision: str) -> None:
    """Bring an empty database to an old revision."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with database.engine.begin() as connection:
        VERSIONS.create(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _note_in_the_shared_table(database: Database, revision: str) -> None:
    """Leave the database as the first releases did: the revision in alembic's own table."""
    with database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS authsvc_version")
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{revision}')")


def test_a_revision_in_the_shared_table_moves_into_our_own(empty_url):
    """The first releases noted it there: no row is lost, and the shared table is free for others."""
    with closing(open_database(empty_url)) as database:
        upgrade(database)
        alice = Stores.over(database).register()
        _note_in_the_shared_table(database, NEEDED_REVISION)
        assert why_unfit(database) is None

        assert upgrade(database) == NEEDED_REVISION

        assert Stores.over(database).users.get(alice.id) == alice
        with database.read() as connection:
            assert not inspect(connection).has_table("alembic_version")


def test_the_version_table_of_another_service_is_left_alone(empty_url):
    """It shares the database, and happens to count as we do."""
    with closing(open_database(empty_url)) as database:
        _note_in_the_shared_table(database, NEEDED_REVISION)
        assert "has no schema" in str(why_unfit(database))

        assert upgrade(database) == NEEDED_REVISION

        assert why_unfit(database) is None
        with database.read() as connection:
            noted = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        assert noted == [NEEDED_REVISION]


def test_a_revision_without_its_tables_is_refused_by_their_names(empty_url):
    """A restore that was cut short, or another schema: neither serving nor upgrading goes on."""
    with closing(open_database(empty_url)) as database:
        upgrade(database)
        with database.transaction() as connection:
            connection.exec_driver_sql("DROP TABLE sessions")

        assert "has no table sessions" in str(why_unfit(database))
        with pytest.raises(ValueError, match="has no table sessions"):
            upgrade(database)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_by_its_encoding(postgres_server, encoding):
    """Names in other scripts could not be stored, or not be read again."""
    name = f"encoded_{encoding.lower()}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    with closing(open_database(postgres_server.url.rpartition("/")[0] + f"/{name}")) as database:
        with pytest.raises(ValueError, match=f"has the encoding {encoding}; expected UTF8"):
            upgrade(database)
        assert f"has the encoding {encoding}" in str(why_unfit(database))


class TestTrouble:
    """An upgrade that cannot be done says why, and has changed nothing."""

    @pytest.fixture
    def modest(self, database_url, postgres_server) -> Iterator[str]:
        """Return the URL for a role that owns nothing."""
        with psycopg.connect(postgres_server.url, autocommit=True) as admin:
            admin.execute("DROP ROLE IF EXISTS modest")
            admin.execute("CREATE ROLE modest LOGIN")
        yield database_url.replace("postgres@", "modest@")
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute("DROP OWNED BY modest")
            admin.execute("DROP ROLE modest")

    def test_missing_rights_are_named(self, modest, database_url):
        """To make tables at the upgrade, to use them at the start."""
        with closing(open_database(modest)) as database, closing(open_database(database_url)) as owners:
            with pytest.raises(StoreUnavailable, match="InsufficientPrivilege"):
                upgrade(database)
            assert revision_of(database_url) is None
            upgrade(owners)

            with pytest.raises(StoreUnavailable, match="InsufficientPrivilege"):
                why_unfit(database)
            with owners.transaction() as connection:
                connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO modest")
            assert "INSERT in table users" in str(why_unfit(database))
            with owners.transaction() as connection:
                connection.exec_driver_sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO modest")
            assert "USAGE the sequence revocations_seq_seq: GRANT it" in str(why_unfit(database))
            with owners.transaction() as connection:
                connection.exec_driver_sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO modest")
            assert why_unfit(database) is None

    def test_tables_of_somebody_else_are_not_touched(self, database_url):
        """Another service has a table `users`: the refusal is one cause, not a traceback."""
        with closing(open_database(database_url)) as database:
            with database.transaction() as connection:
                connection.exec_driver_sql("CREATE TABLE users (id integer)")

            with pytest.raises(StoreUnavailable, match="DuplicateTable"):
                upgrade(database)
        assert revision_of(database_url) is None

    def test_a_held_lock_ends_the_upgrade_in_time(self, database_url):
        """Behind a change that waits for ever, everybody else would wait, too."""
        brief = replace(UNHURRIED.sql, upgrade_lock_s=0.1)
        with closing(open_database(database_url, timings=brief)) as database:
            upgrade(database)
            _note_in_the_shared_table(database, "0001")
            with database.transaction() as connection:
                connection.exec_driver_sql("LOCK TABLE alembic_version IN ACCESS SHARE MODE")
                with pytest.raises(StoreUnavailable, match="LockNotAvailable"):
                    upgrade(database)


def test_the_needed_revision_is_the_newest():
    """A migration that was added without raising the number would never be asked for."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))

    assert ScriptDirectory.from_config(config).get_heads() == [NEEDED_REVISION]


def test_the_migrations_make_the_tables_that_the_stores_use(stores):
    """No column, type, index or constraint of the one is missing in the other."""
    with stores.database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "version_table": VERSIONS.name},
        )
        differences = compare_metadata(context, metadata)
        tables = set(inspect(connection).get_table_names())

    assert differences == []
    assert tables == {*metadata.tables, VERSIONS.name}


def test_upgrades_that_start_together_all_succeed(database_url, tmp_path):
    """Several replicas start at once: one does it, the others wait and find it done; on either database."""
    urls = [f"sqlite:///{tmp_path / 'empty.db'}", database_url]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, *urls],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    revisions = []
    for _ in urls:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            revisions.append(process.stdout.readline().strip())
    ends = [(process.communicate(timeout=180)[1], process.returncode) for process in processes]

    assert ends == [("", 0)] * PROCESSES
    assert revisions == [NEEDED_REVISION] * PROCESSES * len(urls)
    assert [revision_of(url) for url in urls] == [NEEDED_REVISION] * len(urls)
