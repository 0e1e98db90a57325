"""What Alembic runs around the steps: they use the caller's connection and its transaction."""

from alembic import context

from tunesmith.storage.tables import METADATA, REVISION

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=REVISION.name,
    render_as_batch=True,
)
context.run_migrations()
