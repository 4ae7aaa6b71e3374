"""The audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.Uuid(as_uuid=False)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table; nothing of the others changes."""
    op.create_table(
        "audit_events",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("user_id", ID),
        sa.Column("actor_id", ID),
        sa.Column("session_id", ID),
        sa.Column("client_ip", sa.String(45)),
        sa.Column("user_agent", sa.String(512)),
        sa.Column("device_id", sa.String(200)),
        sa.Column("account", sa.String(64)),
        sa.Column("detail", sa.String(200)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("once", sa.String(64)),
        sa.UniqueConstraint("once", name="uq_audit_events_once"),
    )
    op.create_index("ix_audit_events_action", "audit_events", ["action", "id"])
    op.create_index("ix_audit_events_user_id", "audit_events", ["user_id", "id"])
    op.create_index("ix_audit_events_actor_id", "audit_events", ["actor_id", "id"])
    op.create_index("ix_audit_events_client_ip", "audit_events", ["client_ip", "id"])
