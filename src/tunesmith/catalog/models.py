"""Base models: the bundled one, which is always there, and folders that somebody registered with their inspected facts.

They are of no project: weights are large, and every project tunes the same ones.
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
from tunesmith.catalog.known import bundled_facts
from tunesmith.catalog.paging import Page, matching, read_page, tagged, tags_text
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import DEFAULT_PROJECT, BaseModelChange, BaseModelView, NewBaseModel, VersionState
from tunesmith.spec.models import ModelFacts
from tunesmith.storage.tables import BASE_MODELS, MODEL_VERSIONS

PATH = sa.select(BASE_MODELS.c.path).where(BASE_MODELS.c.name == sa.bindparam("name"))
BUNDLED_DESCRIPTION = "The small model that comes with Tunesmith: for the demo, for tests, for a first try on a CPU."
NAMED_USERS = 5


def register_model(
    connection: sa.Connection,
    new: NewBaseModel,
    *,
    facts: ModelFacts,
    actor: str,
    hub_id: str | None = None,
    revision: str | None = None,
) -> BaseModelView:
    """hub_id, revision: the hub's model and commit that it was downloaded as. Raises Conflict (MODEL_NAME_TAKEN)."""
    require_free_name(connection, new.name)
    _insert(connection, new, facts=facts, hub_id=hub_id, revision=revision)
    audit.record(connection, actor, "model.register", new.name, {"path": new.path, "digest": facts.digest})
    return find_model(connection, new.name)


def require_free_name(connection: sa.Connection, name: str) -> None:
    """Raises Conflict (MODEL_NAME_TAKEN)."""
    taken = sa.select(BASE_MODELS.c.sequence).where(_is(name))
    if name == MODEL_NAME or connection.execute(taken).first() is not None:
        raise Conflict(
            "MODEL_NAME_TAKEN",
            f"There is a base model named {name!r} already.",
            field="name",
            hint="Take another name, or delete that one first.",
        )


def list_models(
    connection: sa.Connection,
    *,
    search: str | None = None,
    tag: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[BaseModelView]:
    """The newest first; the bundled model leads the first page of what it matches."""
    query = sa.select(BASE_MODELS).where(
        BASE_MODELS.c.name != MODEL_NAME,
        matching(search, BASE_MODELS.c.name, BASE_MODELS.c.description, BASE_MODELS.c.tags),
        tagged(tag, BASE_MODELS.c.tags),
    )
    page = read_page(connection, query, key=BASE_MODELS.c.sequence, after=after, limit=limit, make=_views)
    words = (search or "").lower().split()
    bundled = find_model(connection, MODEL_NAME)
    text = f"{bundled.name} {bundled.description}".lower()
    if after is None and not tag and all(word in text for word in words):
        return Page(items=[bundled, *page.items], next=page.next)
    return page


def all_models(connection: sa.Connection) -> list[BaseModelView]:
    """Every base model that is here, the bundled one first."""
    rows = connection.execute(
        sa.select(BASE_MODELS).where(BASE_MODELS.c.name != MODEL_NAME).order_by(BASE_MODELS.c.sequence.desc())
    ).all()
    return [find_model(connection, MODEL_NAME), *_views(rows)]


def find_model(connection: sa.Connection, name: str) -> BaseModelView:
    """Raises Unknown (UNKNOWN_MODEL)."""
    if name == MODEL_NAME:  # never a row; one that an earlier release wrote tells of that release's
        return BaseModelView(
            name=MODEL_NAME, path=str(MODEL_FOLDER), description=BUNDLED_DESCRIPTION, tags={}, is_bundled=True,
            facts=bundled_facts(), created_at=None,
        )  # fmt: skip
    row = connection.execute(sa.select(BASE_MODELS).where(_is(name))).one_or_none()
    if row is None:
        raise _unknown(name)
    return _views([row])[0]


def model_path(connection: sa.Connection, name: str) -> str:
    """Where its folder lies: a look that each submission takes. Raises Unknown (UNKNOWN_MODEL)."""
    if name == MODEL_NAME:
        return str(MODEL_FOLDER)
    path = connection.execute(PATH, {"name": name}).scalar_one_or_none()
    if path is None:
        raise _unknown(name)
    return path


def _unknown(name: str) -> Unknown:
    return Unknown(
        "UNKNOWN_MODEL",
        f"There is no base model named {name[:200]!r} here.",
        field="model",
        hint="Search them (`tunesmith model search`); a folder becomes one by registering it.",
    )


def change_model(connection: sa.Connection, name: str, change: BaseModelChange, *, actor: str) -> BaseModelView:
    """Raises Unknown, Conflict (MODEL_BUNDLED)."""
    if find_model(connection, name).is_bundled:
        raise _bundled("changed")
    given = change.model_dump(exclude_none=True)
    values = given | ({"tags": tags_text(given["tags"])} if "tags" in given else {})
    if values:
        connection.execute(BASE_MODELS.update().where(_is(name)).values(values))
        audit.record(connection, actor, "model.change", name, {"changed": sorted(values)})
    return find_model(connection, name)


def delete_model(connection: sa.Connection, name: str, *, project: str, actor: str) -> None:
    """Take it out of the catalog; its folder stays as it is. Raises Unknown, Conflict (MODEL_BUNDLED, MODEL_IN_USE).

    project: the caller's: versions of others are counted, not named.
    """
    if find_model(connection, name).is_bundled:
        raise _bundled("deleted")
    users = connection.execute(
        sa.select(MODEL_VERSIONS.c.model_version, MODEL_VERSIONS.c.project)
        .where(MODEL_VERSIONS.c.base_name == name)
        .where(MODEL_VERSIONS.c.state.in_((VersionState.CREATING, VersionState.ACTIVE)))
        .order_by(MODEL_VERSIONS.c.sequence.desc())
    ).all()
    if users:
        own = [row.model_version for row in users if row.project == project]
        others = len(users) - len(own)
        told = [named(own)] * bool(own) + [f"{others:,} model versions of other projects"] * bool(others)
        raise Conflict(
            "MODEL_IN_USE",
            f"The base model {name} is used by {' and by '.join(told)}.",
            field="model",
            hint="A tuned version needs its base: delete those versions first.",
        )
    connection.execute(BASE_MODELS.delete().where(_is(name)))
    audit.record(connection, actor, "model.delete", name)


def named(users: Sequence[str]) -> str:
    """The first few by name and the count of the rest."""
    more = len(users) - NAMED_USERS
    return ", ".join(users[:NAMED_USERS]) + (f" and {more} more" if more > 0 else "")


def _insert(
    connection: sa.Connection,
    new: NewBaseModel,
    *,
    facts: ModelFacts,
    hub_id: str | None = None,
    revision: str | None = None,
) -> None:
    connection.execute(
        BASE_MODELS.insert().values(
            project=DEFAULT_PROJECT, name=new.name, path=new.path, description=new.description,
            tags=tags_text(new.tags), facts=facts.model_dump_json(), created_at=now(),
            licence_note=new.licence_note, hub_id=hub_id, revision=revision,
        )
    )  # fmt: skip


def _is(name: str) -> sa.ColumnElement[bool]:
    return BASE_MODELS.c.name == name


def _bundled(what: str) -> Conflict:
    return Conflict("MODEL_BUNDLED", f"{MODEL_NAME} comes with Tunesmith: it cannot be {what}.", field="model")


def _views(rows: Sequence[sa.Row[Any]]) -> list[BaseModelView]:
    return [
        BaseModelView(
            name=row.name,
            path=row.path,
            description=row.description,
            tags=json.loads(row.tags),
            licence_note=row.licence_note,
            hub_id=row.hub_id,
            revision=row.revision,
            is_bundled=False,
            facts=ModelFacts.model_validate_json(row.facts),
            created_at=row.created_at,
        )
        for row in rows
    ]
