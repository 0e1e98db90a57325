"""Policies as rows: functions inside a caller's transaction. What they mean, and the check of what they say, is the
server's (`server/auth.py`, `server/policies.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.access import ANY, USERS, NewPolicy, PolicyChange, PolicyView
from tunesmith.spec.datasets import Notice
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import POLICIES, TOKENS

LISTS = ("who", "may", "projects")
COLUMNS = POLICIES.c


def add_policy(connection: sa.Connection, new: NewPolicy, *, actor: str) -> PolicyView:
    """Raises Conflict (POLICY_TAKEN)."""
    if connection.execute(sa.select(COLUMNS.name).where(COLUMNS.name == new.name)).first() is not None:
        raise Conflict(
            "POLICY_TAKEN", f"There is a policy {new.name!r} already.", field="name",
            hint="Take another name, or change that one.",
        )  # fmt: skip
    moment = now()
    connection.execute(
        POLICIES.insert().values(_columns(new.model_dump()) | {"created_at": moment, "changed_at": moment})
    )
    audit.record(connection, actor, "policy.create", new.name, {name: getattr(new, name) for name in LISTS})
    return find_policy(connection, new.name)


def list_policies(
    connection: sa.Connection, *, search: str | None = None, after: str | None = None, limit: int | None = None
) -> Page[PolicyView]:
    """By name."""
    query = sa.select(POLICIES).where(
        matching(search, COLUMNS.name, COLUMNS.description, COLUMNS.who, COLUMNS.may, COLUMNS.projects)
    )

    def make(rows: Sequence[sa.Row[Any]]) -> list[PolicyView]:
        return _views(connection, rows)

    return read_page(connection, query, key=COLUMNS.name, after=after, limit=limit, make=make)


def all_policies(connection: sa.Connection) -> list[PolicyView]:
    """Every policy by name, without notices: what each request is decided by."""
    return [_view(row) for row in connection.execute(sa.select(POLICIES).order_by(COLUMNS.name))]


def find_policy(connection: sa.Connection, name: str) -> PolicyView:
    """Raises Unknown (UNKNOWN_POLICY)."""
    row = connection.execute(sa.select(POLICIES).where(COLUMNS.name == name)).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_POLICY", f"There is no policy {name[:80]!r} here.", field="policy", hint="List the policies."
        )
    return _views(connection, [row])[0]


def change_policy(connection: sa.Connection, name: str, change: PolicyChange, *, actor: str) -> PolicyView:
    """Raises Unknown."""
    find_policy(connection, name)
    if values := change.model_dump(exclude_none=True):
        connection.execute(
            POLICIES.update().where(COLUMNS.name == name).values(_columns(values) | {"changed_at": now()})
        )
        audit.record(connection, actor, "policy.change", name, values)
    return find_policy(connection, name)


def delete_policy(connection: sa.Connection, name: str, *, actor: str) -> None:
    """Raises Unknown."""
    gone = find_policy(connection, name)
    connection.execute(POLICIES.delete().where(COLUMNS.name == name))
    audit.record(connection, actor, "policy.delete", name, {each: getattr(gone, each) for each in LISTS})


def policies_of_project(connection: sa.Connection, project: str) -> list[str]:
    """Those that name it; `*` names none."""
    return [policy.name for policy in all_policies(connection) if project in policy.projects]


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    lists = {name: json.dumps(values[name], ensure_ascii=False) for name in LISTS if name in values}
    return values | lists


def _views(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[PolicyView]:
    views = [_view(row) for row in rows]
    nobodys = _nobodys(connection, {each for view in views for each in view.who})
    return [
        view.model_copy(update={"notices": [nobody_yet(who) for who in view.who if who in nobodys]}) for view in views
    ]


def _view(row: sa.Row[Any]) -> PolicyView:
    fields = fields_of(row)
    return PolicyView.model_validate(fields | {name: json.loads(fields[name]) for name in LISTS})


def _nobodys(connection: sa.Connection, names: Iterable[str]) -> set[str]:
    """Those of the names that no token carries which could be used."""
    asked = set(names) - {ANY, USERS}
    found = connection.execute(
        sa.select(TOKENS.c.name).where(
            TOKENS.c.name.in_(asked),
            TOKENS.c.revoked_at.is_(None),
            TOKENS.c.expires_at.is_(None) | (TOKENS.c.expires_at > now()),
        )
    )
    return asked - set(found.scalars())


def nobody_yet(who: str) -> Notice:
    return Notice(
        code="NO_TOKEN_YET",
        message=f"No token is called {who!r} now: that entry allows nothing until one is.",
        hint=f"`tunesmith token create {json.dumps(who, ensure_ascii=False)}` makes one.",
    )
