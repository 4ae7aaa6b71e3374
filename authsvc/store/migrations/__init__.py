"""
The schema's history, run by ``authsvc db upgrade``.

alembic is imported by the upgrade alone: a service that starts asks one table where it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from authsvc.store.sql import Database

#: The revision that this version of the service works with: the newest file in ``versions/``.
NEEDED_REVISION: Final = "0004"
#: One upgrade at a time, however many start together.
UPGRADE_LOCK: Final = 0x61757468_0003

FOLDER: Final = Path(__file__).parent


def upgrade(database: Database) -> str:
    """
    Bring the schema to the newest revision, which is returned; waits for an upgrade that is under way.

    Raises ValueError where a newer version of the service has been there: nothing goes back.
    """
    from alembic import command  # noqa: PLC0415 - 0.3 s of start-up that only this function needs
    from alembic.config import Config  # noqa: PLC0415 - the same
    from alembic.util import CommandError  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with database.engine.begin() as connection:
        if database.is_postgresql:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        else:
            connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            found = current_revision(connection)
            raise ValueError(
                f"the database is at revision {found}, this version knows {NEEDED_REVISION} and older ones: "
                "a newer version has upgraded it"
            ) from error
        return current_revision(connection) or ""


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
