"""The schema: what the migrations make is what the stores use, however many upgrades start together."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.clients import USUAL_RIGHTS
from authsvc.domain.values.identifiers import SessionId, UserId, timed_id
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.clients import SqlClientStore
from authsvc.store.migrations import FOLDER, NEEDED_REVISION, current_revision, upgrade
from authsvc.store.sql import Database
from authsvc.store.tables import metadata
from tests.contract.stores import Stores, open_database

ROOT = Path(__file__).parents[2]
PROCESSES = 3
UPGRADE = """
import sys
from authsvc.store.migrations import upgrade
from tests.contract.stores import open_database
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
        return current_revision(connection)


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
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

        with pytest.raises(ValueError, match=r"at revision 9999, .* newer version has upgraded it"):
            upgrade(database)

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
        assert [client.may for client in SqlClientStore(database).every()] == [USUAL_RIGHTS]
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
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_the_needed_revision_is_the_newest():
    """A migration that was added without raising the number would never be asked for."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))

    assert ScriptDirectory.from_config(config).get_heads() == [NEEDED_REVISION]


def test_the_migrations_make_the_tables_that_the_stores_use(stores):
    """No column, type, index or constraint of the one is missing in the other."""
    with stores.database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, metadata)
        tables = set(inspect(connection).get_table_names())

    assert differences == []
    assert tables == {*metadata.tables, "alembic_version"}


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
