"""What each client may do."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give every client, and those that an older process still adds, what all clients could do so far."""
    rights = sa.Column("may", sa.String(200), nullable=False, server_default="introspect revoke feed")
    op.add_column("clients", rights)
