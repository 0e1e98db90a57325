"""Quotas of principals, what each uses, and who added a dataset."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("quota", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("actor", "quota", name=op.f("pk_quotas")),
    )
    op.create_table(
        "usage",
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("queued_jobs", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.BigInteger(), nullable=False),
        sa.Column("datasets", sa.BigInteger(), nullable=False),
        sa.Column("uploaded_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("actor", name=op.f("pk_usage")),
    )
    with op.batch_alter_table("datasets", recreate="always") as batch:
        batch.add_column(sa.Column("added_by", sa.Text(), server_default="local", nullable=False))
    op.execute(
        "UPDATE datasets SET added_by = coalesce((SELECT actor FROM audit WHERE action = 'dataset.add' "
        "AND object = datasets.dataset_id ORDER BY sequence LIMIT 1), 'local')"
    )
