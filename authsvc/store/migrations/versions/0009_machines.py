"""What clients need to get tokens: scopes, a cut-off counter, and more than one secret."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.Uuid(as_uuid=False)
TIME = sa.DateTime(timezone=True)
ALONE = sa.text("session_id IS NULL AND token_id IS NOT NULL")


def upgrade() -> None:
    """
    Add a table and two columns; a process of the version before goes on beside them.

    The secret that each client has so far gets the id of its client.
    """
    op.add_column(
        "clients", sa.Column("scopes", sa.String(2200), nullable=False, server_default=sa.text("''"))
    )
    op.add_column("clients", sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "client_secrets",
        sa.Column("id", ID, primary_key=True),
        sa.Column("client_id", ID, sa.ForeignKey("clients.id", ondelete="CASCADE"), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_used_on", sa.Date),
    )
    op.create_index("ix_client_secrets_client_id", "client_secrets", ["client_id"])
    op.execute(
        "INSERT INTO client_secrets (id, client_id, secret_hash, created_at)"
        " SELECT id, id, secret_hash, created_at FROM clients"
    )
    op.create_index(
        "ix_revocations_token_id", "revocations", ["token_id"], postgresql_where=ALONE, sqlite_where=ALONE
    )
