"""The audit log: who did what to which object, in the transaction that did it. Nothing changes or removes a row.

The catalog's own writing functions record themselves; who starts jobs or deployments records those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog.clock import now
from tunesmith.catalog.paging import Page, read_page
from tunesmith.spec.catalog import DEFAULT_PROJECT, AuditView
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import AUDIT

ADD = AUDIT.insert()


def record(
    connection: sa.Connection,
    actor: str,
    action: str,
    object: str,
    detail: Mapping[str, Any] | None = None,
    *,
    project: str = DEFAULT_PROJECT,
) -> None:
    """action: noun and verb, as in `version.delete`. detail: no secret, nothing of a dataset's content. project: the
    object's, told in the detail where it is not the default one.
    """
    if project != DEFAULT_PROJECT:
        detail = {"project": project, **(detail or {})}
    text = None if detail is None else json.dumps(detail, ensure_ascii=False, allow_nan=False)
    row = {"time": now(), "actor": actor, "action": action, "object": object, "detail": text}
    connection.execute(ADD, row)


def list_audit(
    connection: sa.Connection,
    *,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[AuditView]:
    """The newest first. action: a whole action, or a noun for all of its."""
    query = sa.select(AUDIT)
    if actor is not None:
        query = query.where(AUDIT.c.actor == actor)
    if action is not None:
        query = query.where((AUDIT.c.action == action) | AUDIT.c.action.startswith(action + ".", autoescape=True))
    if object is not None:
        query = query.where(AUDIT.c.object == object)
    return read_page(connection, query, key=AUDIT.c.sequence, after=after, limit=limit, make=_views)


def _views(rows: Sequence[sa.Row[Any]]) -> list[AuditView]:
    return [
        AuditView.model_validate(fields_of(row) | {"detail": json.loads(row.detail) if row.detail else None})
        for row in rows
    ]
