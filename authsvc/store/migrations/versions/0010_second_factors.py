"""Second factors, recovery codes, and what is used once and has no other row."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ID = sa.Uuid(as_uuid=False)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add three tables and three columns; a process of the version before goes on beside them."""
    op.add_column("users", sa.Column("has_factor", sa.Boolean, nullable=False, server_default=sa.false()))
    for name in ("factor_tries", "device_version"):
        op.add_column("users", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "factors",
        sa.Column("id", ID, primary_key=True),
        sa.Column("user_id", ID, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("confirmed_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.Column("locked_at", TIME),
        sa.Column("secret", sa.LargeBinary),
        sa.Column("key_id", sa.String(16)),
        sa.Column("last_step", sa.BigInteger),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("credential_id", sa.LargeBinary),
        sa.Column("public_key", sa.LargeBinary),
        sa.Column("sign_count", sa.BigInteger),
        sa.Column("is_backup_eligible", sa.Boolean),
        sa.Column("verified_user", sa.Boolean),
        sa.Column("transports", sa.JSON),
        sa.Column("rp_id", sa.String(253)),
        sa.UniqueConstraint("credential_id", name="uq_factors_credential_id"),
    )
    op.create_index("ix_factors_user_id", "factors", ["user_id"])
    op.create_index("ix_factors_key_id", "factors", ["key_id", "id"])
    in_force = sa.text("kind = 'totp' AND confirmed_at IS NOT NULL")
    op.create_index(
        "uq_factors_totp",
        "factors",
        ["user_id"],
        unique=True,
        postgresql_where=in_force,
        sqlite_where=in_force,
    )
    op.create_table(
        "recovery_codes",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("user_id", ID, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.create_index("ix_recovery_codes_user_id", "recovery_codes", ["user_id"])
    op.create_table(
        "spent",
        sa.Column("id", ID, primary_key=True),
        sa.Column("expires_at", TIME, nullable=False),
    )
    op.create_index("ix_spent_expires_at", "spent", ["expires_at"])
