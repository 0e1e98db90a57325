"""Named logs: where the workers' logs of several jobs belong together, with one retention and one limit of size.

The lines lie in the jobs' folders; `jobs.retention` removes what a log no longer keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import LogChange, LogView, NewLog
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import JOBS, LOGS


def add_log(connection: sa.Connection, new: NewLog, *, actor: str) -> LogView:
    """Raises Conflict (LOG_TAKEN)."""
    if connection.execute(sa.select(LOGS.c.name).where(LOGS.c.name == new.name)).first() is not None:
        raise Conflict(
            "LOG_TAKEN", f"There is a log {new.name!r} already.", field="name",
            hint="Take another name, or delete that one first.",
        )  # fmt: skip
    connection.execute(LOGS.insert().values(new.model_dump() | {"created_at": now()}))
    audit.record(connection, actor, "log.add", new.name)
    return find_log(connection, new.name)


def list_logs(
    connection: sa.Connection, *, search: str | None = None, after: str | None = None, limit: int | None = None
) -> Page[LogView]:
    """By name."""
    query = sa.select(LOGS).where(matching(search, LOGS.c.name, LOGS.c.description))
    return read_page(connection, query, key=LOGS.c.name, after=after, limit=limit, make=_views)


def find_log(connection: sa.Connection, name: str) -> LogView:
    """Raises Unknown (UNKNOWN_LOG)."""
    row = connection.execute(sa.select(LOGS).where(LOGS.c.name == name)).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_LOG", f"There is no log {name[:80]!r} here.", field="log",
            hint="Create it first, or leave the log out: each job keeps a file of its own.",
        )  # fmt: skip
    return _views([row])[0]


def maximum_bytes_of(connection: sa.Connection, name: str | None) -> int | None:
    """None where there is no such log (any more)."""
    return connection.execute(sa.select(LOGS.c.maximum_bytes).where(LOGS.c.name == name)).scalar()


def change_log(connection: sa.Connection, name: str, change: LogChange, *, actor: str) -> LogView:
    """Raises Unknown."""
    find_log(connection, name)
    if values := change.model_dump(exclude_none=True):
        connection.execute(LOGS.update().where(LOGS.c.name == name).values(values))
        audit.record(connection, actor, "log.change", name, values)
    return find_log(connection, name)


def jobs_of_log(connection: sa.Connection, name: str) -> list[str]:
    """Unfinished ones, the newest first. Raises Unknown."""
    find_log(connection, name)
    query = sa.select(JOBS.c.job_id).where(JOBS.c.log == name, JOBS.c.state.not_in(FINAL_STATES))
    return list(connection.execute(query.order_by(JOBS.c.created_at.desc())).scalars())


def all_jobs_of_log(connection: sa.Connection, name: str, *, project: str) -> list[str]:
    """Finished ones too, in the order of their submission. Raises Unknown."""
    find_log(connection, name)
    query = sa.select(JOBS.c.job_id).where(JOBS.c.log == name, JOBS.c.project == project)
    return list(connection.execute(query.order_by(JOBS.c.sequence)).scalars())


def remove_log(connection: sa.Connection, name: str, *, actor: str) -> None:
    """Finished jobs keep their files. Raises Unknown, Conflict (LOG_IN_USE) while an unfinished job writes to it."""
    if users := jobs_of_log(connection, name):
        raise Conflict(
            "LOG_IN_USE", f"The log {name} is used by {named(users)}.", field="log", hint="Wait for those jobs."
        )
    connection.execute(LOGS.delete().where(LOGS.c.name == name))
    audit.record(connection, actor, "log.remove", name)


def _views(rows: Sequence[sa.Row[Any]]) -> list[LogView]:
    return [LogView.model_validate(fields_of(row)) for row in rows]
