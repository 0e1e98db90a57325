"""Declared storage locations: an administrator gives a name to a URI; users choose the name and a path below it.

A location keeps a reference to its credentials, never a secret. What a location can do is `storage.location_check`'s.
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
from tunesmith.spec.catalog import LocationView, NewLocation
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import fields_of
from tunesmith.storage.objects import Location
from tunesmith.storage.tables import DATASETS, JOBS, LOCATIONS


def add_location(connection: sa.Connection, new: NewLocation, *, actor: str) -> LocationView:
    """Raises Conflict (LOCATION_TAKEN)."""
    if connection.execute(sa.select(LOCATIONS.c.name).where(LOCATIONS.c.name == new.name)).first() is not None:
        raise Conflict("LOCATION_TAKEN", f"There is a location {new.name!r} already.", field="name")
    connection.execute(LOCATIONS.insert().values(new.model_dump() | {"created_at": now()}))
    audit.record(connection, actor, "location.add", new.name, {"uri": new.uri})
    return find_location(connection, new.name)


def list_locations(
    connection: sa.Connection, *, search: str | None = None, after: str | None = None, limit: int | None = None
) -> Page[LocationView]:
    """By name."""
    query = sa.select(LOCATIONS).where(matching(search, LOCATIONS.c.name, LOCATIONS.c.uri, LOCATIONS.c.description))
    return read_page(connection, query, key=LOCATIONS.c.name, after=after, limit=limit, make=_views)


def find_location(connection: sa.Connection, name: str) -> LocationView:
    """Raises Unknown (UNKNOWN_LOCATION)."""
    row = connection.execute(sa.select(LOCATIONS).where(LOCATIONS.c.name == name)).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_LOCATION", f"There is no location {name[:80]!r} here.", field="location",
            hint="List the locations; an administrator declares one.",
        )  # fmt: skip
    return _views([row])[0]


def location_of_uri(connection: sa.Connection, uri: str) -> Location:
    """How to reach `uri`: through the declared location that holds it (the deepest), else as the environment says."""
    views = _views(connection.execute(sa.select(LOCATIONS)).all())
    holding = [view for view in views if uri == view.uri or uri.startswith(view.uri.rstrip("/") + "/")]
    if not holding:
        return Location(uri=uri)
    found = max(holding, key=lambda view: len(view.uri))
    return Location(uri=uri, endpoint_url=found.endpoint_url, region=found.region, credentials=found.credentials)


def remove_location(connection: sa.Connection, name: str, *, actor: str) -> None:
    """Its objects stay. Raises Unknown, Conflict (LOCATION_IN_USE) while a dataset or an unfinished job names it."""
    location = find_location(connection, name)
    datasets = connection.execute(sa.select(DATASETS.c.dataset_id).where(DATASETS.c.location == name)).scalars()
    below = location.uri.rstrip("/") + "/"
    jobs = connection.execute(
        sa.select(JOBS.c.job_id)
        .where(JOBS.c.state.not_in(FINAL_STATES))
        .where(
            JOBS.c.results_uri.startswith(below, autoescape=True)
            | JOBS.c.request.contains(f'"{name}:', autoescape=True)  # `location:path`
        )
    ).scalars()
    if users := [*datasets, *jobs]:
        raise Conflict(
            "LOCATION_IN_USE",
            f"The location {name} is used by {named(users)}.",
            field="location",
            hint="Delete those datasets, and wait for those jobs, first.",
        )
    connection.execute(LOCATIONS.delete().where(LOCATIONS.c.name == name))
    audit.record(connection, actor, "location.remove", name, {"uri": location.uri})


def _views(rows: Sequence[sa.Row[Any]]) -> list[LocationView]:
    return [LocationView.model_validate(fields_of(row)) for row in rows]
