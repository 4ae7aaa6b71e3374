"""Mails, the tickets that they carry, and whether an address is proven."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.Uuid(as_uuid=False)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add two tables and a column; a process of the version before goes on beside them."""
    op.add_column("users", sa.Column("email_verified", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "tickets",
        sa.Column("id", ID, primary_key=True),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("user_id", ID, sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("password_version", sa.BigInteger),
        sa.Column("bound_email", sa.String(254)),
        sa.Column("password_hash", sa.String(255)),
        sa.Column("profile", sa.JSON),
        sa.Column("needs_old_code", sa.Boolean, nullable=False),
        sa.Column("used_at", TIME),
        sa.Column("failures", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_tickets_user_id", "tickets", ["user_id"])
    op.create_index("ix_tickets_expires_at", "tickets", ["expires_at"])
    op.create_table(
        "mails",
        sa.Column("id", ID, primary_key=True),
        sa.Column("template", sa.String(32), nullable=False),
        sa.Column("recipient", sa.String(254)),
        sa.Column("ticket_id", ID, sa.ForeignKey("tickets.id", ondelete="CASCADE")),
        sa.Column("client_ip", sa.String(45)),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_urgent", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("next_try_at", TIME, nullable=False),
        sa.Column("waits_for_relay", sa.Boolean, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", TIME),
        sa.Column("sent_at", TIME),
    )
    op.create_index("ix_mails_ticket_id", "mails", ["ticket_id"])
    op.create_index("ix_mails_state", "mails", ["state", "next_try_at"])
    op.create_index("ix_mails_recipient", "mails", ["recipient"])
