"""Runs inside the connection, the transaction and the lock of ``authsvc.store.migrations.upgrade``."""

from alembic import context

from authsvc.store.migrations import VERSIONS
from authsvc.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSIONS.name,
    render_as_batch=True,
)
context.run_migrations()
