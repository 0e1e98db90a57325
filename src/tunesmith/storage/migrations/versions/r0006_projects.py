"""Projects and policies. One policy lets users do in the project `default` what their role let them do before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

FIRST_DAY = "2026-01-01T00:00:00.000Z"


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_projects")),
    )
    policies = op.create_table(
        "policies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("may", sa.Text(), nullable=False),
        sa.Column("projects", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_policies")),
    )
    # a released step keeps its own words: those of `storage/tables.py` may change
    description = "Where everything goes that names no project."
    op.bulk_insert(projects, [{"name": "default", "description": description, "created_at": FIRST_DAY}])
    everyday = {
        "name": "everyday",
        "description": "Tokens of the role user may do all that fine-tuning takes, in the project default.",
        "who": '["role:user"]',
        "may": '["use"]',
        "projects": '["default"]',
        "created_at": FIRST_DAY,
        "changed_at": FIRST_DAY,
    }
    op.bulk_insert(policies, [everyday])
    _key_by_project()


def _key_by_project() -> None:
    """An idempotency key counts in its project: the table gets a wider key, and is made anew for it."""
    op.execute("CREATE TABLE idempotency_before AS SELECT * FROM idempotency")
    op.drop_table("idempotency")
    op.create_table(
        "idempotency",
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), server_default="default", nullable=False),
        sa.PrimaryKeyConstraint("actor", "key", "project", name=op.f("pk_idempotency")),
    )
    op.execute(
        "INSERT INTO idempotency (actor, key, route, body_sha256, object_id, created_at) "
        "SELECT actor, key, route, body_sha256, object_id, created_at FROM idempotency_before"
    )
    op.drop_table("idempotency_before")
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"])
