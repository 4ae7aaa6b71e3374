"""Which copies of a user an entry of the log is about: those from before a version of the row."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the version; entries without one are about all copies, as before."""
    op.add_column("revocations", sa.Column("row_version", sa.BigInteger, nullable=True))
