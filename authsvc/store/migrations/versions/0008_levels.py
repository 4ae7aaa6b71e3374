"""How surely the owner of a session has shown who they are."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add three empty columns; the version before goes on beside them, and its sessions have no level."""
    op.add_column("sessions", sa.Column("acr", sa.String(8)))
    op.add_column("sessions", sa.Column("amr", sa.String(64)))
    op.add_column("sessions", sa.Column("auth_time", sa.DateTime(timezone=True)))
