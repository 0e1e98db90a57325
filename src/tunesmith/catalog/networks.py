"""Networks: which addresses, and which interface, the machines of one job talk over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import NetworkChange, NetworkView, NewNetwork
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import JOBS, NETWORKS


def add_network(connection: sa.Connection, new: NewNetwork, *, actor: str) -> NetworkView:
    """Raises Conflict (NETWORK_TAKEN)."""
    if connection.execute(sa.select(NETWORKS.c.name).where(NETWORKS.c.name == new.name)).first() is not None:
        raise Conflict(
            "NETWORK_TAKEN", f"There is a network {new.name!r} already.", field="name",
            hint="Take another name, or delete that one first.",
        )  # fmt: skip
    connection.execute(NETWORKS.insert().values(new.model_dump() | {"created_at": now()}))
    audit.record(connection, actor, "network.add", new.name, {"cidr": new.cidr})
    return find_network(connection, new.name)


def list_networks(
    connection: sa.Connection, *, search: str | None = None, after: str | None = None, limit: int | None = None
) -> Page[NetworkView]:
    """By name."""
    query = sa.select(NETWORKS).where(matching(search, NETWORKS.c.name, NETWORKS.c.cidr, NETWORKS.c.description))
    return read_page(connection, query, key=NETWORKS.c.name, after=after, limit=limit, make=_views)


def find_network(connection: sa.Connection, name: str) -> NetworkView:
    """Raises Unknown (UNKNOWN_NETWORK)."""
    row = connection.execute(sa.select(NETWORKS).where(NETWORKS.c.name == name)).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_NETWORK", f"There is no network {name[:80]!r} here.", field="network",
            hint="One replica needs none: leave it out.",
        )  # fmt: skip
    return _views([row])[0]


def change_network(connection: sa.Connection, name: str, change: NetworkChange, *, actor: str) -> NetworkView:
    """Jobs read it when they start. Raises Unknown."""
    find_network(connection, name)
    if values := change.model_dump(exclude_none=True):
        values |= {"interface": values["interface"] or None} if "interface" in values else {}
        connection.execute(NETWORKS.update().where(NETWORKS.c.name == name).values(values))
        audit.record(connection, actor, "network.change", name, values)
    return find_network(connection, name)


def jobs_of_network(connection: sa.Connection, name: str) -> list[str]:
    """Unfinished ones, the newest first. Raises Unknown."""
    find_network(connection, name)
    rows = connection.execute(
        sa.select(JOBS.c.job_id, JOBS.c.request)
        .where(JOBS.c.state.not_in(FINAL_STATES), JOBS.c.request.contains(json.dumps(name), autoescape=True))
        .order_by(JOBS.c.created_at.desc())
    )  # fmt: skip
    return [row.job_id for row in rows if json.loads(row.request).get("network") == name]


def remove_network(connection: sa.Connection, name: str, *, actor: str) -> None:
    """Raises Unknown, Conflict (NETWORK_IN_USE)."""
    if users := jobs_of_network(connection, name):
        raise Conflict(
            "NETWORK_IN_USE", f"The network {name} is used by {named(users)}.", field="network",
            hint="Wait for those jobs.",
        )  # fmt: skip
    connection.execute(NETWORKS.delete().where(NETWORKS.c.name == name))
    audit.record(connection, actor, "network.remove", name)


def _views(rows: Sequence[sa.Row[Any]]) -> list[NetworkView]:
    return [NetworkView.model_validate(fields_of(row)) for row in rows]
