"""Version sets and their aliases: names like `support-bot@prod` that point at one ACTIVE version.

Every move of an alias takes the set's next generation: who serves an alias can tell that it moved, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown, UsageFault
from tunesmith.spec.catalog import AliasView, NewVersionSet, VersionSetView, VersionState
from tunesmith.spec.names import ALIAS
from tunesmith.storage.tables import ALIASES, MODEL_VERSIONS, VERSION_SETS


def add_set(connection: sa.Connection, new: NewVersionSet, *, project: str, actor: str) -> VersionSetView:
    """An empty set, before its first version. Raises Conflict (VERSION_SET_TAKEN)."""
    if connection.execute(sa.select(VERSION_SETS.c.set_id).where(_is(project, new.name))).first() is not None:
        raise Conflict(
            "VERSION_SET_TAKEN",
            f"There is a version set {new.name!r} already.",
            field="name",
            hint="Take another name.",
        )
    connection.execute(
        VERSION_SETS.insert().values(
            project=project, name=new.name, description=new.description, created_at=now(), last_number=0,
            alias_changes=0,
        )
    )  # fmt: skip
    audit.record(connection, actor, "set.add", new.name, project=project)
    return find_set(connection, new.name, project=project)


def list_sets(
    connection: sa.Connection,
    *,
    project: str,
    search: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[VersionSetView]:
    """By name."""
    query = sa.select(VERSION_SETS).where(
        VERSION_SETS.c.project == project, matching(search, VERSION_SETS.c.name, VERSION_SETS.c.description)
    )
    return read_page(
        connection, query, key=VERSION_SETS.c.name, after=after, limit=limit,
        make=lambda rows: _views(connection, rows),
    )  # fmt: skip


def find_set(connection: sa.Connection, name: str, *, project: str) -> VersionSetView:
    """Raises Unknown (UNKNOWN_VERSION_SET)."""
    return _views(connection, [_row(connection, name, project=project)])[0]


def describe_set(connection: sa.Connection, name: str, description: str, *, project: str, actor: str) -> VersionSetView:
    """Raises Unknown."""
    row = _row(connection, name, project=project)
    connection.execute(VERSION_SETS.update().where(VERSION_SETS.c.set_id == row.set_id).values(description=description))
    audit.record(connection, actor, "set.change", name, {"changed": ["description"]}, project=project)
    return find_set(connection, name, project=project)


def set_alias(
    connection: sa.Connection, version_set: str, alias: str, *, number: int, project: str, actor: str
) -> AliasView:
    """Set the alias, or move it. Raises Unknown, UsageFault (BAD_ALIAS), Conflict (VERSION_NOT_ACTIVE)."""
    try:
        ALIAS.check(alias)
    except ValueError as error:
        raise UsageFault(
            "BAD_ALIAS", f"{error}.", field="alias", hint="For example prod, canary or v2-shadow."
        ) from None
    found = _row(connection, version_set, project=project)
    state = connection.execute(
        sa.select(MODEL_VERSIONS.c.state).where(
            MODEL_VERSIONS.c.set_id == found.set_id, MODEL_VERSIONS.c.number == number
        )
    ).scalar_one_or_none()
    if state is None:
        raise Unknown("UNKNOWN_VERSION", f"There is no model version {version_set}:{number} here.", field="number")
    if state != VersionState.ACTIVE:
        raise Conflict(
            "VERSION_NOT_ACTIVE",
            f"{version_set}:{number} is {state}: an alias points at an ACTIVE version.",
            field="number",
            hint="Wait until its job has succeeded, or take another version.",
        )
    generation = connection.execute(
        VERSION_SETS.update()
        .where(VERSION_SETS.c.set_id == found.set_id)
        .values(alias_changes=VERSION_SETS.c.alias_changes + 1)
        .returning(VERSION_SETS.c.alias_changes)
    ).scalar_one()
    where = (ALIASES.c.set_id == found.set_id) & (ALIASES.c.alias == alias)
    before = connection.execute(sa.select(ALIASES.c.number).where(where)).scalar_one_or_none()
    values = {"number": number, "generation": generation, "changed_at": now()}
    if before is None:
        connection.execute(ALIASES.insert().values(values | {"set_id": found.set_id, "alias": alias}))
    else:
        connection.execute(ALIASES.update().where(where).values(values))
    audit.record(
        connection, actor, "alias.set", f"{version_set}@{alias}", {"from": before, "to": number}, project=project
    )
    return find_alias(connection, version_set, alias, project=project)


def remove_alias(connection: sa.Connection, version_set: str, alias: str, *, project: str, actor: str) -> None:
    """Raises Unknown."""
    before = find_alias(connection, version_set, alias, project=project)
    set_id = _row(connection, version_set, project=project).set_id
    connection.execute(ALIASES.delete().where(ALIASES.c.set_id == set_id, ALIASES.c.alias == alias))
    audit.record(connection, actor, "alias.remove", f"{version_set}@{alias}", {"from": before.number}, project=project)


def find_alias(connection: sa.Connection, version_set: str, alias: str, *, project: str) -> AliasView:
    """Raises Unknown (UNKNOWN_VERSION_SET, UNKNOWN_ALIAS)."""
    found = find_set(connection, version_set, project=project)
    for each in found.aliases:
        if each.alias == alias:
            return each
    there = ", ".join(each.alias for each in found.aliases) or "none"
    raise Unknown(
        "UNKNOWN_ALIAS",
        f"The version set {version_set} has no alias {alias[:80]!r}.",
        field="alias",
        hint=f"Its aliases: {there}.",
    )


def _row(connection: sa.Connection, name: str, *, project: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(VERSION_SETS).where(_is(project, name))).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_VERSION_SET", f"There is no version set {name[:80]!r} here.", field="version_set",
            hint="The first job that names a set makes it.",
        )  # fmt: skip
    return row


def _is(project: str, name: str) -> sa.ColumnElement[bool]:
    return (VERSION_SETS.c.project == project) & (VERSION_SETS.c.name == name)


def _views(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[VersionSetView]:
    ids = [row.set_id for row in rows]
    names = {row.set_id: row.name for row in rows}
    counts: dict[int, int] = {
        row.set_id: row.versions
        for row in connection.execute(
            sa.select(MODEL_VERSIONS.c.set_id, sa.func.count().label("versions"))
            .where(MODEL_VERSIONS.c.set_id.in_(ids), MODEL_VERSIONS.c.state != VersionState.DELETED)
            .group_by(MODEL_VERSIONS.c.set_id)
        )
    }
    aliases: dict[int, list[AliasView]] = {}
    for row in connection.execute(sa.select(ALIASES).where(ALIASES.c.set_id.in_(ids)).order_by(ALIASES.c.alias)):
        name = names[row.set_id]
        aliases.setdefault(row.set_id, []).append(
            AliasView(
                alias=row.alias, version_set=name, number=row.number, model_version=f"{name}:{row.number}",
                generation=row.generation, changed_at=row.changed_at,
            )
        )  # fmt: skip
    return [
        VersionSetView(
            name=row.name, description=row.description, versions=counts.get(row.set_id, 0),
            last_number=row.last_number, aliases=aliases.get(row.set_id, []), created_at=row.created_at,
        )
        for row in rows
    ]  # fmt: skip
