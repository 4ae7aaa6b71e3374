"""
The schema's history, run by ``authsvc db upgrade``.

Only the upgrade imports alembic; a starting service reads its revision from one table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    String,
    Table,
    inspect,
    null,
    select,
    text,
)

from authsvc import __version__
from authsvc.domain.errors import StoreUnavailable
from authsvc.settings import Problem
from authsvc.store.postgres.causes import cause_of
from authsvc.store.sql import Database, milliseconds
from authsvc.store.tables import metadata

#: The revision that this version of the service works with: the newest file in ``versions/``.
NEEDED_REVISION: Final = "0010"
#: The lock that lets only one upgrade run at a time.
UPGRADE_LOCK: Final = 0x61757468_0003

FOLDER: Final = Path(__file__).parent

#: The table with the revision of the schema and the release that made it.  Another service may use
#: `alembic_version`.
VERSIONS: Final = Table(
    "authsvc_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    Column("release", String(64)),
    PrimaryKeyConstraint("version_num", name="authsvc_version_pkc"),
)
#: The table in which the first releases stored the revision.
_SHARED: Final = Table("alembic_version", MetaData(), Column("version_num", String(32)))
#: The tables of the first revision: whoever has them made the shared table's entry.
_FIRST_TABLES: Final = frozenset({"users", "sessions", "revocations", "clients"})
#: The rights that serving needs, by table; `db prune` and the commands of clients need more.
_RIGHTS: Final = {
    "users": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "sessions": ("SELECT", "INSERT", "UPDATE"),
    "revocations": ("SELECT", "INSERT"),
    "clients": ("SELECT",),
    "audit_events": ("SELECT", "INSERT", "UPDATE"),
    "installation": ("SELECT", "INSERT"),
    "tickets": ("SELECT", "INSERT", "UPDATE"),
    "mails": ("SELECT", "INSERT", "UPDATE"),
    "factors": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "recovery_codes": ("SELECT", "INSERT", "DELETE"),
    "spent": ("SELECT", "INSERT"),
}

#: The first of some rights in tables that our user lacks.
_LACKING: Final = text(
    "SELECT name, privilege"
    " FROM unnest(CAST(:names AS text[]), CAST(:privileges AS text[])) WITH ORDINALITY"
    " AS wanted(name, privilege, place)"
    " WHERE has_table_privilege(name, privilege) IS NOT TRUE ORDER BY place LIMIT 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The state of a database: its *revision*, the *release* that made it, missing tables."""

    revision: str | None = None
    release: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why the service cannot use it; None if it can."""
        if self.is_newer:
            return self.newer
        if self.missing:
            return (
                f"notes revision {self.revision}, and has no table {', '.join(self.missing)}: "
                "was it restored in full, and does the search_path lead to them?"
            )
        if self.revision != NEEDED_REVISION:
            have = f"revision {self.revision}" if self.revision else "no schema"
            return f"has {have}, revision {NEEDED_REVISION} is needed: run `authsvc db upgrade`"
        return None

    @property
    def is_newer(self) -> bool:
        """True if a newer release has upgraded it."""
        return self.revision is not None and self.revision not in known_revisions()

    @property
    def newer(self) -> str:
        """The line for a release that is too old."""
        by = f"authsvc {self.release}" if self.release else "a newer authsvc"
        return (
            f"is at revision {self.revision}, which {by} made; this is authsvc {__version__}, which knows "
            f"{NEEDED_REVISION} and older ones: install {by if self.release else 'the newer one'} or later"
        )


def upgrade(database: Database) -> str:
    """
    Upgrade the schema to the newest revision, which is returned; waits for a running upgrade.

    All of it is one transaction.

    Raises:
        ValueError: a newer release has been there, or tables are missing that should be there.
        StoreUnavailable: the database refused: rights, locks, disk; nothing is changed.
    """
    from alembic import command  # noqa: PLC0415 - 0.3 s of start-up that only this function needs
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    with _alone(database) as connection:
        _adopt(connection)
        before = schema_of(connection)
        if problem := _encoding_problem(connection):
            raise ValueError(f"the database {problem}")
        if before.is_newer or before.missing:
            raise ValueError(f"the database {before.problem}")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if before.revision != NEEDED_REVISION:
            connection.execute(VERSIONS.update().values(release=__version__))
        return schema_of(connection).revision or ""


def why_unfit(database: Database) -> str | None:
    """Why the service cannot use *database*, or None.  Raises StoreUnavailable."""
    with database.read() as connection:
        return _encoding_problem(connection) or schema_of(connection).problem or _rights_problem(connection)


def schema_problems(database: Database) -> Iterator[Problem]:
    """The same, and why the database does not answer, for an operator."""
    try:
        message = why_unfit(database)
    except StoreUnavailable as error:
        cause = cause_of(error)
        message = f"cannot be {'used' if cause.code else 'reached'} ({error.store}): {cause.advice}"
    if message:
        yield Problem(name="DATABASE_URL", message=message)


def schema_of(connection: Connection) -> Schema:
    """What the database holds."""
    inspector = inspect(connection)
    found = {name for name in (*metadata.tables, VERSIONS.name, _SHARED.name) if inspector.has_table(name)}
    row: Row[Any] | None = None
    if VERSIONS.name in found:
        row = connection.execute(select(VERSIONS)).first()
    elif _is_ours(found):
        row = connection.execute(select(_SHARED, null().label("release"))).first()
    if row is None:
        return Schema()
    # Which tables an older revision has is not known here: the upgrade brings the rest.
    wanted = metadata.tables.keys() if row.version_num == NEEDED_REVISION else _FIRST_TABLES
    return Schema(revision=row.version_num, release=row.release, missing=tuple(sorted(wanted - found)))


def _is_ours(found: Collection[str]) -> bool:
    """True if the shared table has the entry of this service, not of another."""
    return {_SHARED.name, *_FIRST_TABLES} <= set(found)


def _encoding_problem(connection: Connection) -> str | None:
    if connection.dialect.name != "postgresql":
        return None
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding == "UTF8":
        return None
    return f"has the encoding {encoding}; expected UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"


def _rights_problem(connection: Connection) -> str | None:
    if connection.dialect.name != "postgresql":
        return None
    wanted = [(name, right) for name, rights in _RIGHTS.items() for right in rights]
    names, privileges = map(list, zip(*wanted, strict=True))
    lacking = connection.execute(_LACKING, {"names": names, "privileges": privileges}).first()
    if lacking is not None:
        return f"does not let its user {lacking.privilege} in table {lacking.name}: GRANT it"
    # UPDATE: after a restore the sequence is set behind the numbers that were given before.
    for right in ("USAGE", "UPDATE"):
        statement = text(
            "SELECT has_sequence_privilege(pg_get_serial_sequence('revocations', 'seq'), :right) IS FALSE"
        )
        if connection.execute(statement, {"right": right}).scalar_one():
            return f"does not let its user {right} the sequence revocations_seq_seq: GRANT it"
    return None


def known_revisions() -> frozenset[str]:
    """The revisions that this version has files for."""
    return frozenset(file.name.partition("_")[0] for file in FOLDER.glob("versions/[0-9]*.py"))


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """A transaction that excludes other upgrades."""
    with database.unhurried() as connection:
        if database.is_postgresql:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
            wait = {"wait": milliseconds(database.timings.upgrade_lock_s)}
            connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), wait)
        else:
            connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def _adopt(connection: Connection) -> None:
    """Store the revision in our own table; drop the shared one if it is ours."""
    inspector = inspect(connection)
    if inspector.has_table(VERSIONS.name):
        return
    found = {name for name in (_SHARED.name, *_FIRST_TABLES) if inspector.has_table(name)}
    VERSIONS.create(connection)
    if _is_ours(found):
        connection.execute(VERSIONS.insert().from_select(["version_num"], select(_SHARED)))
        _SHARED.drop(connection)
