"""The tables, and the conversion of rows to the domain's values; rows never leave this package."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    SmallInteger,
    String,
    Table,
    TypeDecorator,
    Uuid,
    false,
    text,
)

from authsvc.domain.audit import Entry
from authsvc.domain.clients import USUAL_RIGHTS
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Revocation
from authsvc.domain.sessions import Session
from authsvc.domain.users import BUILT_IN, Role, Status, User, with_roles
from authsvc.domain.values.jsontext import canonical
from authsvc.domain.values.levels import Acr, Level

log = logging.getLogger(__name__)


class UtcTime(TypeDecorator[datetime]):
    """A timezone-aware time in UTC; SQLite stores and returns naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive UTC for SQLite, aware for all others."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: What the statements need to know; the migrations make the tables. SQLite's own options are only there:
#: naming one would load SQLAlchemy's part for SQLite in every process.
metadata = MetaData(
    naming_convention={"ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)

#: Text that is looked up is compared by bytes, so that the result does not depend on a collation.
_ID = Uuid(as_uuid=False)
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

users = Table(
    "users",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("email", String(254), nullable=False, unique=True),
    Column("name", String(200)),
    Column("phone", String(64)),
    Column("device_id", String(200)),
    Column("is_admin", Boolean, nullable=False),
    #: Roles other than ``user`` and ``admin``, each name between commas; "" if there are none.
    Column("extra_roles", String(2048), nullable=False, server_default=text("''")),
    Column("status", String(16), nullable=False),
    Column("preferences", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("last_login", UtcTime),
    Column("email_verified", Boolean, nullable=False, server_default=false()),
    Column("epoch", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("password_version", BigInteger, nullable=False),
    #: True if there is a confirmed second factor.  It is in this table so that the lock of this row orders a
    #: login and the first factor.
    Column("has_factor", Boolean, nullable=False, server_default=false()),
    #: Failed tries of a second factor; see domain/accounts/second_factor.py.
    Column("factor_tries", BigInteger, nullable=False, server_default=text("0")),
    #: Raised to forget all known devices without a new password.
    Column("device_version", BigInteger, nullable=False, server_default=text("0")),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("device_id", String(200)),
    Column("ip", String(45), nullable=False),
    Column("user_agent", String(512)),
    Column("created_at", UtcTime, nullable=False),
    Column("last_used_at", UtcTime, nullable=False),
    Column("idle_expires_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("rotated_at", UtcTime, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    # All three or none: sessions of earlier versions have no level.
    Column("acr", String(8)),
    Column("amr", String(64)),
    Column("auth_time", UtcTime),
    Column("revoked_at", UtcTime),
    Column("reason", String(32)),
)

revocations = Table(
    "revocations",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("session_id", _ID),
    Column("token_id", _ID),
    Column("epoch", BigInteger),
    Column("email", String(254)),
    Column("row_version", BigInteger),
    Index("ix_revocations_expires_at", "expires_at"),
    #: Index of tokens that were revoked individually; a token revoked with its session is found by the
    #: session.
    Index(
        "ix_revocations_token_id",
        "token_id",
        postgresql_where=text("session_id IS NULL AND token_id IS NOT NULL"),
    ),
)

clients = Table(
    "clients",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", String(200), nullable=False),
    # For the previous version, which may still run and reads only this column: the digest of the oldest
    # secret, empty if there is none. A client that it adds has no row in ``client_secrets``.
    Column("secret_hash", String(64), nullable=False),
    # Version 0.1.0, which may still run, adds clients without rights.
    Column("may", String(200), nullable=False, server_default=" ".join(USUAL_RIGHTS)),
    Column("created_at", UtcTime, nullable=False),
    Column("scopes", String(2200), nullable=False, server_default=text("''")),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
)

client_secrets = Table(
    "client_secrets",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("client_id", _ID, ForeignKey("clients.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("last_used_on", Date),
)

installation = Table(
    "installation",
    metadata,
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("id", _ID, nullable=False),
    CheckConstraint("number = 1", name="ck_installation_one"),
)

#: No foreign keys: events are kept after their users are deleted.
audit_events = Table(
    "audit_events",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("action", String(64), nullable=False),
    Column("user_id", _ID),
    Column("actor_id", _ID),
    Column("session_id", _ID),
    Column("client_ip", String(45)),
    Column("user_agent", String(512)),
    Column("device_id", String(200)),
    Column("account", String(64)),
    Column("detail", String(200)),
    Column("request_id", String(64)),
    Column("count", BigInteger, nullable=False),
    Column("once", String(64), unique=True),
    Index("ix_audit_events_action", "action", "id"),
    Index("ix_audit_events_user_id", "user_id", "id"),
    Index("ix_audit_events_actor_id", "actor_id", "id"),
    Index("ix_audit_events_client_ip", "client_ip", "id"),
)

#: One row for each operation that is permitted once; contains no usable code.
tickets = Table(
    "tickets",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("purpose", String(16), nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("email", String(254)),
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), index=True),
    Column("password_version", BigInteger),
    Column("bound_email", String(254)),
    Column("password_hash", String(255)),
    Column("profile", JSON(none_as_null=True)),
    Column("needs_old_code", Boolean, nullable=False),
    Column("used_at", UtcTime),
    Column("failures", BigInteger, nullable=False),
    Index("ix_tickets_expires_at", "expires_at"),
)

#: The outbox.  A mail refers to the ticket from which its code and link are derived; it contains neither.
mails = Table(
    "mails",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("template", String(32), nullable=False),
    Column("recipient", String(254)),
    Column("ticket_id", _ID, ForeignKey("tickets.id", ondelete="CASCADE"), index=True),
    Column("client_ip", String(45)),
    Column("asked_at", UtcTime, nullable=False),
    Column("ends_at", UtcTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("is_urgent", Boolean, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("next_try_at", UtcTime, nullable=False),
    Column("waits_for_relay", Boolean, nullable=False),
    Column("lease_owner", String(64)),
    Column("lease_until", UtcTime),
    Column("sent_at", UtcTime),
    Index("ix_mails_state", "state", "next_try_at"),
    Index("ix_mails_recipient", "recipient"),
)

#: TOTP and passkeys.  The secret of TOTP is encrypted under the key that ``key_id`` names.
factors = Table(
    "factors",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(200)),
    Column("created_at", UtcTime, nullable=False),
    #: NULL: an enrolment that has not been confirmed.
    Column("confirmed_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("locked_at", UtcTime),
    Column("secret", LargeBinary),
    Column("key_id", String(16)),
    Column("last_step", BigInteger),
    Column("failures", BigInteger, nullable=False),
    Column("credential_id", LargeBinary, unique=True),
    Column("public_key", LargeBinary),
    Column("sign_count", BigInteger),
    Column("is_backup_eligible", Boolean),
    Column("verified_user", Boolean),
    Column("transports", JSON(none_as_null=True)),
    Column("rp_id", String(253)),
    Index("ix_factors_key_id", "key_id", "id"),
)
_TOTP_IN_FORCE = text("kind = 'totp' AND confirmed_at IS NOT NULL")
Index(
    "uq_factors_totp", factors.c.user_id, unique=True,
    postgresql_where=_TOTP_IN_FORCE,
)  # fmt: skip

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False),
)

#: Marks of one-time values that have no other row; an INSERT marks a value as used.
spent = Table(
    "spent",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("expires_at", UtcTime, nullable=False),
    Index("ix_spent_expires_at", "expires_at"),
)

_USER_FIELDS = (
    "id", "email", "name", "phone", "device_id", "status", "preferences",
    "created_at", "updated_at", "last_login", "email_verified", "epoch", "version",
)  # fmt: skip
_LEVEL_FIELDS = ("acr", "amr", "auth_time")
_SESSION_FIELDS = tuple(column.name for column in sessions.columns if column.name not in _LEVEL_FIELDS)
_REVOCATION_FIELDS = tuple(column.name for column in revocations.columns)
_ENTRY_FIELDS = tuple(column.name for column in audit_events.columns)

USER_COLUMNS = (*(users.c[name] for name in _USER_FIELDS), users.c.is_admin, users.c.extra_roles)

Index(
    "ix_users_extra_roles", users.c.id, users.c.extra_roles,
    postgresql_where=users.c.extra_roles != "",
)  # fmt: skip


def to_user(row: Mapping[Any, Any]) -> User:
    """The user in *row*, which has at least USER_COLUMNS; raises StoreUnavailable for a damaged one."""
    fields = {name: row[users.c[name]] for name in _USER_FIELDS}
    if fields["status"] not in get_args(Status) or not _is_storable(fields["preferences"]):
        log.error("sql.row_damaged", extra={"table": users.name, "id": fields["id"]})
        raise StoreUnavailable("sql: unreadable row")
    further = split_roles(row[users.c.extra_roles])
    return User(**fields, roles=with_roles(("admin", *further) if row[users.c.is_admin] else further))


def _is_storable(preferences: object) -> bool:
    """True for an object whose texts can all be encoded in an answer."""
    try:
        return isinstance(preferences, dict) and (not preferences or bool(canonical(preferences).encode()))
    except (UnicodeEncodeError, ValueError):
        return False


def from_user(user: User) -> dict[str, Any]:
    """The column values of *user*."""
    further = "".join(f",{role}" for role in user.roles if role not in BUILT_IN)
    return {
        **{name: getattr(user, name) for name in _USER_FIELDS},
        "is_admin": user.is_admin,
        "extra_roles": further and f"{further},",
    }


def split_roles(stored: str) -> tuple[Role, ...]:
    """The names in the column ``extra_roles``."""
    return tuple(stored[1:-1].split(",")) if stored else ()


def to_session(row: Mapping[Any, Any]) -> Session:
    """The session in *row*."""
    return Session(**{name: row[sessions.c[name]] for name in _SESSION_FIELDS}, level=to_level(row))


def from_session(session: Session) -> dict[str, Any]:
    """The columns of *session*."""
    level = from_level(session.level) if session.level else {}
    return {name: getattr(session, name) for name in _SESSION_FIELDS} | level


def to_level(row: Mapping[Any, Any]) -> Level | None:
    """The level of the session in *row*; None if there is none, or if only a later version knows it."""
    acr, amr, auth_time = (row[sessions.c[name]] for name in _LEVEL_FIELDS)
    if acr not in set(Acr) or not amr or auth_time is None:
        return None
    return Level(Acr(acr), tuple(amr.split()), int(auth_time.timestamp()))


def from_level(level: Level) -> dict[str, Any]:
    """The column values of *level*."""
    auth_time = datetime.fromtimestamp(level.auth_time, UTC)
    return {"acr": level.acr.value, "amr": " ".join(level.amr), "auth_time": auth_time}


def to_revocation(row: RowMapping) -> Revocation:
    """The log entry in *row*."""
    return Revocation(**{name: row[revocations.c[name]] for name in _REVOCATION_FIELDS})


def from_revocation(entry: Revocation) -> dict[str, Any]:
    """The column values of *entry*; the database assigns its number."""
    return {name: getattr(entry, name) for name in _REVOCATION_FIELDS if name != "seq"}


def to_entry(row: RowMapping) -> Entry:
    """The entry of the audit trail in *row*."""
    return Entry(**{name: row[audit_events.c[name]] for name in _ENTRY_FIELDS})


def from_entry(entry: Entry) -> dict[str, Any]:
    """The columns of *entry*."""
    return {name: getattr(entry, name) for name in _ENTRY_FIELDS}
