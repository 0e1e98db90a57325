"""Base models: the bundled one, which is always there, and folders that somebody registered with their inspected facts.

Nothing here opens a model folder; `jobs/` has it inspected and brings the facts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.paging import Page, matching, read_page, tagged, tags_text
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import BaseModelChange, BaseModelView, NewBaseModel, VersionState
from tunesmith.spec.models import ModelFacts
from tunesmith.storage.tables import BASE_MODELS, MODEL_VERSIONS

BUNDLED_DESCRIPTION = "The small model that comes with Tunesmith: for the demo, for tests, for a first try on a CPU."
NAMED_USERS = 5


def register_model(
    connection: sa.Connection, new: NewBaseModel, *, project: str, facts: ModelFacts, actor: str
) -> BaseModelView:
    """Raises Conflict (MODEL_NAME_TAKEN)."""
    taken = sa.select(BASE_MODELS.c.sequence).where(_is(project, new.name))
    if new.name == MODEL_NAME or connection.execute(taken).first() is not None:
        raise Conflict(
            "MODEL_NAME_TAKEN",
            f"There is a base model named {new.name!r} already.",
            field="name",
            hint="Take another name, or delete that one first.",
        )
    _insert(connection, new, project=project, facts=facts)
    audit.record(connection, actor, "model.register", new.name, {"path": new.path, "digest": facts.digest})
    return find_model(connection, new.name, project=project)


def keep_bundled_facts(connection: sa.Connection, facts: ModelFacts, *, project: str) -> None:
    """Remember the inspection of the bundled model, in place of that of an earlier release."""
    kept = connection.execute(
        BASE_MODELS.update().where(_is(project, MODEL_NAME)).values(facts=facts.model_dump_json())
    )
    if kept.rowcount == 0:
        new = NewBaseModel(name=MODEL_NAME, path=str(MODEL_FOLDER), description=BUNDLED_DESCRIPTION)
        _insert(connection, new, project=project, facts=facts)


def list_models(
    connection: sa.Connection,
    *,
    project: str,
    search: str | None = None,
    tag: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[BaseModelView]:
    """The newest first; the bundled model leads the first page of what it matches."""
    query = sa.select(BASE_MODELS).where(
        BASE_MODELS.c.project == project,
        BASE_MODELS.c.name != MODEL_NAME,
        matching(search, BASE_MODELS.c.name, BASE_MODELS.c.description, BASE_MODELS.c.tags),
        tagged(tag, BASE_MODELS.c.tags),
    )
    page = read_page(connection, query, key=BASE_MODELS.c.sequence, after=after, limit=limit, make=_views)
    words = (search or "").lower().split()
    bundled = find_model(connection, MODEL_NAME, project=project)
    text = f"{bundled.name} {bundled.description}".lower()
    if after is None and not tag and all(word in text for word in words):
        return Page(items=[bundled, *page.items], next=page.next)
    return page


def find_model(connection: sa.Connection, name: str, *, project: str) -> BaseModelView:
    """Raises Unknown (UNKNOWN_MODEL)."""
    row = connection.execute(sa.select(BASE_MODELS).where(_is(project, name))).one_or_none()
    if row is not None:
        return _views([row])[0]
    if name == MODEL_NAME:
        return BaseModelView(
            name=MODEL_NAME, path=str(MODEL_FOLDER), description=BUNDLED_DESCRIPTION, tags={}, is_bundled=True,
            facts=None, created_at=None,
        )  # fmt: skip
    raise Unknown(
        "UNKNOWN_MODEL",
        f"There is no base model named {name[:200]!r} here.",
        field="model",
        hint="List the base models; a folder becomes one by registering it.",
    )


def change_model(
    connection: sa.Connection, name: str, change: BaseModelChange, *, project: str, actor: str
) -> BaseModelView:
    """Raises Unknown, Conflict (MODEL_BUNDLED)."""
    if find_model(connection, name, project=project).is_bundled:
        raise _bundled("changed")
    given = change.model_dump(exclude_none=True)
    values = given | ({"tags": tags_text(given["tags"])} if "tags" in given else {})
    if values:
        connection.execute(BASE_MODELS.update().where(_is(project, name)).values(values))
        audit.record(connection, actor, "model.change", name, {"changed": sorted(values)})
    return find_model(connection, name, project=project)


def delete_model(connection: sa.Connection, name: str, *, project: str, actor: str) -> None:
    """Take it out of the catalog; its folder stays as it is. Raises Unknown, Conflict (MODEL_BUNDLED, MODEL_IN_USE)."""
    if find_model(connection, name, project=project).is_bundled:
        raise _bundled("deleted")
    users = (
        connection.execute(
            sa.select(MODEL_VERSIONS.c.model_version)
            .where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.base_name == name)
            .where(MODEL_VERSIONS.c.state.in_((VersionState.CREATING, VersionState.ACTIVE)))
            .order_by(MODEL_VERSIONS.c.sequence.desc())
        )
        .scalars()
        .all()
    )
    if users:
        raise Conflict(
            "MODEL_IN_USE",
            f"The base model {name} is used by {named(users)}.",
            field="model",
            hint="A tuned version needs its base: delete those versions first.",
        )
    connection.execute(BASE_MODELS.delete().where(_is(project, name)))
    audit.record(connection, actor, "model.delete", name)


def named(users: Sequence[str]) -> str:
    """The first few by name and the count of the rest."""
    more = len(users) - NAMED_USERS
    return ", ".join(users[:NAMED_USERS]) + (f" and {more} more" if more > 0 else "")


def _insert(connection: sa.Connection, new: NewBaseModel, *, project: str, facts: ModelFacts) -> None:
    connection.execute(
        BASE_MODELS.insert().values(
            project=project, name=new.name, path=new.path, description=new.description, tags=tags_text(new.tags),
            facts=facts.model_dump_json(), created_at=now(),
        )
    )  # fmt: skip


def _is(project: str, name: str) -> sa.ColumnElement[bool]:
    return (BASE_MODELS.c.project == project) & (BASE_MODELS.c.name == name)


def _bundled(what: str) -> Conflict:
    return Conflict("MODEL_BUNDLED", f"{MODEL_NAME} comes with Tunesmith: it cannot be {what}.", field="model")


def _views(rows: Sequence[sa.Row[Any]]) -> list[BaseModelView]:
    return [
        BaseModelView(
            name=row.name,
            path=str(MODEL_FOLDER) if row.name == MODEL_NAME else row.path,  # it moves with the installation
            description=row.description,
            tags=json.loads(row.tags),
            is_bundled=row.name == MODEL_NAME,
            facts=ModelFacts.model_validate_json(row.facts),
            created_at=row.created_at,
        )
        for row in rows
    ]
