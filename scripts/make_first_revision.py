"""Writes revision 0001 of the state database from today's tables, and a small database of it as SQL for the tests.

python scripts/make_first_revision.py

For use until the first release only: afterwards both files stay as they are, and a change of the tables is a new step.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext

from tunesmith.storage.database import Database, sqlite_url
from tunesmith.storage.migrations import VERSIONS, upgrade
from tunesmith.storage.tables import METADATA, REVISION

ROOT = Path(__file__).resolve().parents[1]
STEP = VERSIONS / "r0001_first.py"
DUMP = ROOT / "tests" / "storage" / "data" / "state-0001.sql"
HEAD = '''\
"""The tables of the first release. Made by scripts/make_first_revision.py until then; never edited after."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
'''
TRIGGERS = """
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
"""
# A row of each table, as plain as can be; what a column is not given here is its type's plainest value.
ROWS: dict[str, dict[str, object]] = {
    "jobs": {"job_id": "job-000000000001", "state": "SUCCEEDED", "model_version": "bot:1"},
    "events": {"job_id": "job-000000000001", "number": 1, "kind": "state"},
    "version_sets": {"set_id": 1, "project": "default", "name": "bot", "last_number": 1},
    "model_versions": {"set_id": 1, "number": 1, "project": "default", "model_version": "bot:1", "state": "ACTIVE"},
    "aliases": {"set_id": 1, "alias": "prod", "number": 1},
}


def step_source() -> str:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        options = {"target_metadata": METADATA, "version_table": REVISION.name}
        wanted = produce_migrations(MigrationContext.configure(connection, opts=options), METADATA)
        assert wanted.upgrade_ops is not None
        body = render_python_code(wanted.upgrade_ops)
    body = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("#"))
    return HEAD + body + TRIGGERS


def old_state() -> str:
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder))
        upgrade(url, to="0001")
        database = Database(url)
        with database.write() as connection:
            for table in METADATA.sorted_tables:
                if table.name != REVISION.name:
                    connection.execute(table.insert().values(_row(table)))
        database.close()
        with closing(sqlite3.connect(Path(folder) / "state.db")) as connection:
            return "\n".join(connection.iterdump()) + "\n"


def _row(table: sa.Table) -> dict[str, object]:
    plain = {
        column.name: 0 if isinstance(column.type, sa.Integer | sa.Float | sa.Boolean) else "{}"
        for column in table.c
        if not column.nullable and column.autoincrement is not True
    }
    return plain | ROWS.get(table.name, {})


def main() -> None:
    STEP.write_text(step_source(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(STEP)], check=True)
    DUMP.parent.mkdir(exist_ok=True)
    DUMP.write_text(old_state(), encoding="utf-8")


if __name__ == "__main__":
    main()
