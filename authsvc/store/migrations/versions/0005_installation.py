"""The name of this installation, which Redis has to show before it is believed."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table with its one row."""
    table = op.create_table(
        "installation",
        sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.CheckConstraint("number = 1", name="ck_installation_one"),
    )
    op.bulk_insert(table, [{"number": 1, "id": str(uuid4())}])
