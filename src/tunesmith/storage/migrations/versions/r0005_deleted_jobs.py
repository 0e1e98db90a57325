"""Model versions that outlive their job: whose they are, and what its events told of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("model_versions", recreate="always") as batch:
        batch.add_column(sa.Column("made_by", sa.Text(), nullable=True))
        batch.add_column(sa.Column("samples", sa.Text(), nullable=True))
        batch.add_column(sa.Column("is_job_deleted", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute(
        "UPDATE model_versions SET made_by = (SELECT submitted_by FROM jobs WHERE jobs.job_id = model_versions.job_id)"
    )
