"""The schema's history, run by ``authsvc db upgrade``."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from authsvc.store.sql import Database

#: One upgrade at a time, however many start together.
UPGRADE_LOCK = 0x61757468_0003


def upgrade(database: Database) -> str:
    """Bring the schema to the newest revision, which is returned; waits for an upgrade that is under way."""
    from alembic import command  # noqa: PLC0415 - half of alembic, needed by this command alone

    config = _config()
    with database.engine.begin() as connection:
        if database.is_postgresql:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return needed_revision()


def needed_revision() -> str:
    """The revision that this version of the service works with."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
