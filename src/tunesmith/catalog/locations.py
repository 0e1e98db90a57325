"""Declared storage locations: an administrator gives a name to a URI; users choose the name and a path below it.

A location keeps a reference to its credentials, never a secret. What a location can do is `storage.location_check`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.paging import Page, matching, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import LocationChange, LocationView, NewLocation
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import fields_of
from tunesmith.storage.locations import BucketPlace, Place, find_place, uri_of
from tunesmith.storage.objects import Location
from tunesmith.storage.tables import DATASETS, JOBS, LOCATIONS, MODEL_VERSIONS


def add_location(connection: sa.Connection, new: NewLocation, *, actor: str) -> LocationView:
    """Raises Conflict (LOCATION_TAKEN)."""
    if connection.execute(sa.select(LOCATIONS.c.name).where(LOCATIONS.c.name == new.name)).first() is not None:
        raise Conflict(
            "LOCATION_TAKEN", f"There is a location {new.name!r} already.", field="name",
            hint="Take another name, or delete that one first.",
        )  # fmt: skip
    connection.execute(LOCATIONS.insert().values(new.model_dump() | {"created_at": now()}))
    audit.record(connection, actor, "location.add", new.name, {"uri": new.uri})
    return find_location(connection, new.name)


def change_location(connection: sa.Connection, name: str, change: LocationChange, *, actor: str) -> LocationView:
    """Jobs read it when they start and when they publish. Raises Unknown, Conflict (LOCATION_IN_USE) for its URI."""
    location = find_location(connection, name)
    values = change.model_dump(exclude_none=True)
    values |= {field: values[field] or None for field in ("endpoint_url", "region", "credentials") if field in values}
    if values.get("uri", location.uri) != location.uri:
        _require_unused(connection, name, way_out="Declare the new place under another name, or")
    if values:
        connection.execute(LOCATIONS.update().where(LOCATIONS.c.name == name).values(values))
        audit.record(connection, actor, "location.change", name, values)
    return find_location(connection, name)


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


def place_of_file(connection: sa.Connection, uri: str, *, location: str | None) -> tuple[Location, str]:
    """How to reach a dataset's file, and its path below that: an object of a folder is found from the folder's top.

    location: the declared place that it was registered from. A folder keeps versions beside its top alone.
    """
    if location is not None and uri.startswith("file:"):
        top = find_location(connection, location).uri.rstrip("/") + "/"
        if uri.startswith(top):
            return location_of_uri(connection, top.rstrip("/")), unquote(uri.removeprefix(top))
    return location_of_uri(connection, uri), ""


def place_in(location: LocationView, below: str) -> Place:
    """What lies at a path below the location."""
    top = find_place(location.uri, field="location")
    if isinstance(top, BucketPlace):
        return BucketPlace(bucket=top.bucket, key="/".join(part for part in (top.key, below.strip("/")) if part))
    return top / below.strip("/")


def places_of_others(connection: sa.Connection, places: Collection[Place], *, project: str) -> set[str]:
    """The URIs of those places to which a version of another project was, or will be, published."""
    uris = [uri_of(place) for place in places]
    columns = MODEL_VERSIONS.c
    found = connection.execute(
        sa.select(columns.results_uri, columns.artifact_uri).where(
            columns.project != project, columns.results_uri.in_(uris) | columns.artifact_uri.in_(uris)
        )
    ).all()
    return {uri for row in found for uri in row if uri is not None} & set(uris)


def users_of_location(connection: sa.Connection, name: str) -> tuple[list[str], list[str]]:
    """Datasets and unfinished jobs that need it, the newest first. Raises Unknown."""
    location = find_location(connection, name)
    datasets = sa.select(DATASETS.c.dataset_id).where(DATASETS.c.location == name)
    below = location.uri.rstrip("/") + "/"
    jobs = (
        sa.select(JOBS.c.job_id)
        .where(JOBS.c.state.not_in(FINAL_STATES))
        .where(
            JOBS.c.results_uri.startswith(below, autoescape=True)
            | JOBS.c.request.contains(f'"{name}:', autoescape=True)  # `location:path`
        )
    )
    return (
        list(connection.execute(datasets.order_by(DATASETS.c.created_at.desc())).scalars()),
        list(connection.execute(jobs.order_by(JOBS.c.created_at.desc())).scalars()),
    )


def remove_location(connection: sa.Connection, name: str, *, actor: str) -> None:
    """Its objects stay. Raises Unknown, Conflict (LOCATION_IN_USE) while a dataset or an unfinished job names it."""
    location = find_location(connection, name)
    _require_unused(connection, name)
    connection.execute(LOCATIONS.delete().where(LOCATIONS.c.name == name))
    audit.record(connection, actor, "location.remove", name, {"uri": location.uri})


def _require_unused(connection: sa.Connection, name: str, *, way_out: str = "") -> None:
    datasets, jobs = users_of_location(connection, name)
    if users := [*datasets, *jobs]:
        raise Conflict(
            "LOCATION_IN_USE",
            f"The location {name} is used by {named(users)}.",
            field="location",
            hint=f"{way_out} delete those datasets, and wait for those jobs, first.".strip().capitalize(),
        )


def _views(rows: Sequence[sa.Row[Any]]) -> list[LocationView]:
    return [LocationView.model_validate(fields_of(row)) for row in rows]
