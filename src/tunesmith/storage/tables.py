"""The tables of the state database. A change here needs a migration beside it (`migrations/versions`).

Times that people read are ISO 8601 in UTC, as text; times that are compared with a clock are seconds since the epoch.
Documents that a spec model defines are kept as its JSON, as text.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import event

# Constraint names by rule, so that a migration can name what it alters on every database.
METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Alembic's own table under a name that says what it is.
REVISION = sa.Table(
    "revision",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="revision_pkc"),  # as Alembic names it
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),  # order of submission
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("submitted_by", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("phase", sa.Text),
    sa.Column("waiting_reason", sa.Text),
    sa.Column("retry_at", sa.Float),  # when a waiting job goes on by itself; null: when somebody resumes it
    sa.Column("is_foreground", sa.Boolean, nullable=False),  # its own command looks after it, the queue does not
    sa.Column("is_paused", sa.Boolean, nullable=False),  # somebody asked; the queue leaves it until resumed
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),  # `set:number`
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("started_at", sa.Text),
    sa.Column("finished_at", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),  # grows with each taking of the lease; an old holder's writes fail
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.Float),
    sa.Column("worker_pid", sa.Integer),
    sa.Column("worker_started_at", sa.Float),
    sa.Column("run_limit_seconds", sa.Integer),
    sa.Column("run_seconds", sa.Float, nullable=False),  # of workers that ended; the limit counts the living one too
    sa.Column("log", sa.Text),
    sa.Column("results_uri", sa.Text, nullable=False),
    sa.Column("artifact_uri", sa.Text),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("failure_family", sa.Text),
    sa.Column("events_read_bytes", sa.Integer, nullable=False),  # of the worker's file, already in `events`
    sa.Column("num_events", sa.Integer, nullable=False),
    sa.Index(None, "state", "sequence"),
    sa.Index(None, "project", "sequence"),
)

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # from 1, without gaps
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "job_id", "kind", "number"),
    sqlite_with_rowid=False,
)

VERSION_SETS = sa.Table(
    "version_sets",
    METADATA,
    sa.Column("set_id", sa.Integer, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("last_number", sa.Integer, nullable=False),
    sa.Column("alias_changes", sa.Integer, nullable=False),  # the newest generation of its aliases
    sa.UniqueConstraint("project", "name"),
)

MODEL_VERSIONS = sa.Table(
    "model_versions",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("set_id", sa.Integer, sa.ForeignKey("version_sets.set_id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),  # `set:number`
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("base_name", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text),  # null: registered from elsewhere
    sa.Column("parent", sa.Text),  # the model version whose adapter training went on from
    sa.Column("lineage", sa.Text),  # what it was made from, once known
    sa.Column("results_uri", sa.Text, nullable=False),
    sa.Column("artifact_uri", sa.Text),
    sa.Column("manifest", sa.Text),
    sa.Column("metrics", sa.Text),
    sa.Column("verdict", sa.Text),
    sa.Column("best_epoch", sa.Integer),
    sa.Column("outcome", sa.Text),  # the verdict's
    sa.Column("is_losing_bytes", sa.Boolean, nullable=False),  # deleted, and its files are not all gone yet
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.Column("made_by", sa.Text),  # whose quota it counts for; null: registered from elsewhere
    sa.Column("samples", sa.Text),  # null: they stand in the job's events
    sa.Column("is_job_deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("set_id", "number"),
    sa.UniqueConstraint("project", "model_version"),
    sa.Index(None, "state", "sequence"),
    sa.Index(None, "project", "sequence"),
    sa.Index(None, "job_id"),
    sa.Index(None, "parent"),
)

ALIASES = sa.Table(
    "aliases",
    METADATA,
    sa.Column("set_id", sa.Integer, sa.ForeignKey("version_sets.set_id"), primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),  # of the set's `alias_changes`, at its last move
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["set_id", "number"], ["model_versions.set_id", "model_versions.number"]),
)

DATASETS = sa.Table(
    "datasets",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("dataset_id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("kind", sa.Text),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),  # of the file's bytes
    sa.Column("content_hash", sa.Text, nullable=False),  # of its rows
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("file_name", sa.Text, nullable=False),  # in the dataset's folder
    sa.Column("location", sa.Text),
    sa.Column("source_uri", sa.Text),  # null: uploaded
    sa.Column("source_version_id", sa.Text),
    sa.Column("num_warnings", sa.Integer, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("added_by", sa.Text, nullable=False, server_default="local"),  # whose quota it counts for
    sa.Index(None, "project", "sequence"),
    sa.Index(None, "sha256"),
)

BASE_MODELS = sa.Table(
    "base_models",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project", sa.Text, nullable=False),  # always the default one: all projects share them
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("hub_id", sa.Text),  # null: it came from no hub
    sa.Column("revision", sa.Text),  # the commit that was downloaded
    sa.Column("licence_note", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("project", "name"),
)

DOWNLOADS = sa.Table(
    "downloads",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("download_id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),  # always the default one, as of the models that they become
    sa.Column("submitted_by", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("waiting_reason", sa.Text),
    sa.Column("retry_at", sa.Float),  # when it goes on by itself
    sa.Column("attempts", sa.Integer, nullable=False),  # since somebody asked for it
    sa.Column("is_cancel_wanted", sa.Boolean, nullable=False),
    sa.Column("name", sa.Text, nullable=False),  # of the base model that it becomes
    sa.Column("hub_id", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),  # the commit
    sa.Column("location", sa.Text),  # declared; null: the state folder
    sa.Column("target_uri", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),  # files with sizes and hashes, and what was left out
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("bytes_total", sa.BigInteger, nullable=False),
    sa.Column("bytes_done", sa.BigInteger, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Text),
    sa.Index(None, "state", "sequence"),
    sa.Index(None, "project", "sequence"),
)

LOCATIONS = sa.Table(
    "locations",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("endpoint_url", sa.Text),
    sa.Column("region", sa.Text),
    sa.Column("credentials", sa.Text),  # a reference (`env:PREFIX`, `profile:NAME`, `file:PATH`), never a secret
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)

LOGS = sa.Table(
    "logs",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("retention_days", sa.Integer, nullable=False),
    sa.Column("maximum_bytes", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)

NETWORKS = sa.Table(
    "networks",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("cidr", sa.Text, nullable=False),
    sa.Column("interface", sa.Text),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)

TOKENS = sa.Table(
    "tokens",
    METADATA,
    sa.Column("token_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Text),
    sa.Column("revoked_at", sa.Text),
)

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("sha256", sa.Text, primary_key=True),  # of the cookie's secret
    sa.Column("token_id", sa.Text, sa.ForeignKey("tokens.token_id", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Text, nullable=False),
    sa.Index(None, "token_id"),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object", sa.Text, nullable=False),
    sa.Column("detail", sa.Text),
)

# What was written stays as it was: also against a fault of ours.
for _verb in ("UPDATE", "DELETE"):
    event.listen(
        AUDIT,
        "after_create",
        sa.DDL(
            f"CREATE TRIGGER audit_no_{_verb.lower()} BEFORE {_verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )

QUOTAS = sa.Table(
    "quotas",
    METADATA,
    sa.Column("actor", sa.Text, primary_key=True),  # `*`: who has none of his own
    sa.Column("quota", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

USAGE = sa.Table(
    "usage",  # kept up with what it counts, in the same transactions: counting anew costs with every job ever made
    METADATA,
    sa.Column("actor", sa.Text, primary_key=True),
    sa.Column("queued_jobs", sa.BigInteger, nullable=False),
    sa.Column("versions", sa.BigInteger, nullable=False),
    sa.Column("datasets", sa.BigInteger, nullable=False),
    sa.Column("uploaded_bytes", sa.BigInteger, nullable=False),
)

IDEMPOTENCY = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("actor", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("object_id", sa.Text, nullable=False),  # what the first request made
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("project", sa.Text, primary_key=True, server_default="default"),
    sa.Index(None, "created_at"),
)

PROJECTS = sa.Table(
    "projects",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("deleted_at", sa.Text),  # its jobs and lines of the audit bear its name on: no other gets that name
)

POLICIES = sa.Table(
    "policies",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # JSON lists, as in `spec/access.py`
    sa.Column("may", sa.Text, nullable=False),
    sa.Column("projects", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
)

# What every state begins with: the project of all that names none, and the one policy by which users work in it.
FIRST_DAY = "2026-01-01T00:00:00.000Z"  # of what came with Tunesmith, not of somebody's act
FIRST_PROJECT = {
    "name": "default",
    "description": "Where everything goes that names no project.",
    "created_at": FIRST_DAY,
}
FIRST_POLICY = {
    "name": "everyday",
    "description": "Tokens of the role user may do all that fine-tuning takes, in the project default.",
    "who": '["role:user"]',
    "may": '["use"]',
    "projects": '["default"]',
    "created_at": FIRST_DAY,
    "changed_at": FIRST_DAY,
}


@event.listens_for(PROJECTS, "after_create")
def _first_project(_table: sa.Table, connection: sa.Connection, **_options: object) -> None:
    connection.execute(PROJECTS.insert().values(FIRST_PROJECT))


@event.listens_for(POLICIES, "after_create")
def _first_policy(_table: sa.Table, connection: sa.Connection, **_options: object) -> None:
    connection.execute(POLICIES.insert().values(FIRST_POLICY))
