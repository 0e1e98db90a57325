"""Projects: what jobs, datasets and model versions belong to. Functions inside a caller's transaction.

Whose request may see a project is `server/policies.py`'s. The name of a deleted one is never given again: its ended
jobs, their logs and the numbers of its versions stay under it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.access import NewProject, ProjectChange, ProjectView
from tunesmith.spec.catalog import DEFAULT_PROJECT, VersionState
from tunesmith.spec.faults import shown
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.tables import DATASETS, JOBS, MODEL_VERSIONS, PROJECTS

COLUMNS = PROJECTS.c
IS_THERE = COLUMNS.deleted_at.is_(None)
COUNTS = {
    "jobs": sa.select(JOBS.c.project, sa.func.count()).where(JOBS.c.state.not_in(FINAL_STATES)),
    "datasets": sa.select(DATASETS.c.project, sa.func.count()),
    "versions": sa.select(MODEL_VERSIONS.c.project, sa.func.count()).where(
        MODEL_VERSIONS.c.state != VersionState.DELETED
    ),
}
HELD = {"jobs": "unfinished jobs", "datasets": "datasets", "versions": "model versions"}


def add_project(connection: sa.Connection, new: NewProject, *, actor: str) -> ProjectView:
    """Raises Conflict (PROJECT_TAKEN)."""
    row = connection.execute(sa.select(COLUMNS.deleted_at).where(COLUMNS.name == new.name)).one_or_none()
    if row is not None:
        told = "already" if row.deleted_at is None else f"that was deleted on {row.deleted_at[:10]}, and keeps its name"
        raise Conflict(
            "PROJECT_TAKEN", f"There is a project {new.name!r} {told}.", field="name", hint="Take another name."
        )
    connection.execute(PROJECTS.insert().values(new.model_dump() | {"created_at": now()}))
    audit.record(connection, actor, "project.create", new.name)
    return find_project(connection, new.name)


def list_projects(
    connection: sa.Connection,
    *,
    among: Collection[str] | None = None,
    search: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[ProjectView]:
    """By name. among: only these; None: all."""
    query = sa.select(PROJECTS).where(IS_THERE, matching(search, COLUMNS.name, COLUMNS.description))
    if among is not None:
        query = query.where(COLUMNS.name.in_(among))

    def make(rows: Sequence[sa.Row[Any]]) -> list[ProjectView]:
        return _views(connection, rows)

    return read_page(connection, query, key=COLUMNS.name, after=after, limit=limit, make=make)


def project_names(connection: sa.Connection) -> list[str]:
    """Those that there are, in order."""
    return list(connection.execute(sa.select(COLUMNS.name).where(IS_THERE).order_by(COLUMNS.name)).scalars())


def find_project(connection: sa.Connection, name: str) -> ProjectView:
    """Raises Unknown (UNKNOWN_PROJECT)."""
    row = connection.execute(sa.select(PROJECTS).where(COLUMNS.name == name, IS_THERE)).one_or_none()
    if row is None:
        raise unknown_project(name, project_names(connection))
    return _views(connection, [row])[0]


def unknown_project(name: str, known: Sequence[str], *, field: str = "project") -> Unknown:
    """The one refusal of a project that is not there, and of one that the caller does not see. known: those he sees."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    way_out = f"Did you mean {' or '.join(near)}?" if near else f"You may use {named(known)}." if known else None
    return Unknown(
        "UNKNOWN_PROJECT", f"There is no project {shown(name)} here for you.", field=field,
        hint=way_out or "Ask an administrator for a policy that names you.",
    )  # fmt: skip


def change_project(connection: sa.Connection, name: str, change: ProjectChange, *, actor: str) -> ProjectView:
    """Raises Unknown."""
    find_project(connection, name)
    if values := change.model_dump(exclude_none=True):
        connection.execute(PROJECTS.update().where(COLUMNS.name == name).values(values))
        audit.record(connection, actor, "project.change", name, values)
    return find_project(connection, name)


def delete_project(connection: sa.Connection, name: str, *, policies: Sequence[str], actor: str) -> None:
    """policies: names of those that name it. Raises Unknown, Conflict (PROJECT_DEFAULT, PROJECT_NOT_EMPTY)."""
    view = find_project(connection, name)
    if name == DEFAULT_PROJECT:
        raise Conflict(
            "PROJECT_DEFAULT", f"The project {name} is where everything goes that names none: it stays.", field="name"
        )
    held = [f"{count:,} {HELD[kind]}" for kind in HELD if (count := getattr(view, kind))]
    if held:
        raise Conflict(
            "PROJECT_NOT_EMPTY", f"The project {name} holds {', '.join(held)}.", field="name",
            hint="Delete them, and end those jobs, first.",
        )  # fmt: skip
    if policies:
        raise Conflict(
            "PROJECT_NOT_EMPTY", f"The project {name} is named by the policies {named(policies)}.", field="name",
            hint="Take it out of them first, or delete them.",
        )  # fmt: skip
    connection.execute(PROJECTS.update().where(COLUMNS.name == name).values(deleted_at=now()))
    audit.record(connection, actor, "project.delete", name)


def _views(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[ProjectView]:
    names = [row.name for row in rows]
    counts: dict[str, dict[str, int]] = {}
    for kind, query in COUNTS.items():
        project = query.selected_columns["project"]
        found = connection.execute(query.where(project.in_(names)).group_by(project))
        counts[kind] = {row[0]: row[1] for row in found}
    return [
        ProjectView(
            name=row.name, description=row.description, created_at=row.created_at,
            jobs=counts["jobs"].get(row.name, 0), datasets=counts["datasets"].get(row.name, 0),
            versions=counts["versions"].get(row.name, 0),
        )
        for row in rows
    ]  # fmt: skip
