"""Roles of the operator's own."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add an empty column, which no row is rewritten for, and an index of the users who have such roles."""
    op.add_column(
        "users", sa.Column("extra_roles", sa.String(2048), nullable=False, server_default=sa.text("''"))
    )
    extra_roles: sa.ColumnClause[str] = sa.column("extra_roles")
    op.create_index(
        "ix_users_extra_roles",
        "users",
        ["id", "extra_roles"],
        postgresql_where=extra_roles != "",
        sqlite_where=extra_roles != "",
    )
