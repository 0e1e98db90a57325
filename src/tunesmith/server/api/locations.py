"""Locations: declare, check and browse the places of datasets and results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
from fastapi import Body, Query
from starlette.responses import Response

from tunesmith.catalog import locations
from tunesmith.catalog.datasets import own_datasets
from tunesmith.catalog.models import all_models
from tunesmith.errors import InputRefused
from tunesmith.jobs.scan import scan
from tunesmith.server.api.jobs import own_jobs
from tunesmith.server.auth import may
from tunesmith.server.inputs import check_in_location
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    BrowseQuery,
    LocationCheck,
    LocationEntries,
    LocationEntry,
    LocationPage,
    SearchQuery,
    Uses,
)
from tunesmith.spec.catalog import MAXIMUM_PAGE, LocationChange, LocationView, NewLocation
from tunesmith.spec.explorer import ScannedLocation
from tunesmith.spec.faults import shown
from tunesmith.storage.location_check import PROBE, check_declared
from tunesmith.storage.locations import find_place, is_uri, uri_of
from tunesmith.storage.objects import Location, check_key, join_key, open_objects

BROWSE_SECONDS = 15.0


def list_locations(call: CallNow, query: Annotated[SearchQuery, Query()]) -> LocationPage:
    """By name."""
    with call.database.read() as connection:
        page = locations.list_locations(connection, search=query.search, after=query.after, limit=query.limit)
    return LocationPage(locations=page.items, next=page.next)


def add_location(
    call: CallNow, new: Annotated[NewLocation, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """Declare a place. Credentials are named, never given: they stay where the server's machine keeps them."""
    new = new.model_copy(update={"uri": _place_of(call, new)})

    def make(connection: sa.Connection) -> str:
        return locations.add_location(connection, new, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/locations", make=make)
    return created(show_location(call, name), is_new=is_new)


def _place_of(call: Call, wanted: NewLocation | LocationView) -> str:
    """Its URI as it is kept, if it is a place at all. Touches no network. Raises InputRefused."""
    if not is_uri(wanted.uri) and not Path(wanted.uri).is_absolute():
        raise InputRefused(
            "BAD_LOCATION", f"The place {shown(wanted.uri)} is relative: to what, only the server's folder could tell.",
            field="uri", hint="Write file:///absolute/folder or s3://bucket/prefix.",
        )  # fmt: skip
    open_objects(_location(wanted), call.service.environment, field="uri")
    return uri_of(find_place(wanted.uri, field="uri"))


def change_location(call: CallNow, name: str, change: Annotated[LocationChange, Body()]) -> LocationView:
    """Change how it is reached, or its description; its URI while nothing uses it. What is absent stays as it is."""
    wanted = show_location(call, name).model_copy(update=change.model_dump(exclude_none=True))
    if change.uri is not None:
        change = change.model_copy(update={"uri": _place_of(call, wanted)})
    elif change.model_dump(include={"endpoint_url", "region", "credentials"}, exclude_none=True):
        _place_of(call, wanted)
    return call.database.write_grouped(
        lambda connection: locations.change_location(connection, name, change, actor=call.actor)
    )


def show_location(call: CallNow, name: str) -> LocationView:
    """A declared place."""
    with call.database.read() as connection:
        return locations.find_location(connection, name)


def show_location_uses(call: CallNow, name: str) -> Uses:
    """Datasets that were registered from it, and unfinished jobs that read it or publish there."""
    with call.database.read() as connection:
        datasets, jobs = locations.users_of_location(connection, name)
        visible = datasets if may(call.principal, "dataset.read") else []
        shown = own_datasets(connection, visible, project=call.project)
    own = own_jobs(call, jobs) | shown
    return Uses(
        datasets=[each for each in datasets if each in own][:MAXIMUM_PAGE],
        jobs=[each for each in jobs if each in own][:MAXIMUM_PAGE],
        of_other_projects=len({*datasets, *jobs}) - len(own),
    )


def remove_location(call: CallNow, name: str) -> None:
    """Its objects stay. 409 while a dataset or an unfinished job names it."""
    call.database.write_grouped(lambda connection: locations.remove_location(connection, name, actor=call.actor))


def check_location(call: CallNow, name: str) -> LocationCheck:
    """Whether it answers, can be written and keeps versions, within 20 s. Else the refusal that a job would meet."""
    view = show_location(call, name)
    check_declared(_location(view), call.service.environment, field="location")
    return LocationCheck(name=name, is_reachable=True, is_writable=True, keeps_versions=True)


def browse_location(call: CallNow, name: str, query: Annotated[BrowseQuery, Query()]) -> LocationEntries:
    """Folders and objects right below a path."""
    view = show_location(call, name)
    below = query.path.strip("/")
    if below:
        check_key(below, field="path")
        check_in_location(call, name, below, field="path")
    store, prefix = open_objects(_location(view), call.service.environment, retry_seconds=BROWSE_SECONDS)
    base = f"{prefix}/" if prefix else ""
    top = join_key(prefix, below) if below else prefix
    listing = store.list(f"{top}/" if top else "", after=query.after, limit=query.limit, by_folder=True)
    entries = [_entry(base, key, kind="folder") for key in listing.folders]
    entries += [
        _entry(base, each.key, kind="object").model_copy(update={"size": each.size, "modified_at": each.modified_at})
        for each in listing.objects
        if not each.key.rpartition("/")[2].startswith(
            PROBE
        )  # of a check: gone in a moment, or left where it may not delete
    ]
    places = {each.path: uri_of(locations.place_in(view, each.path)) for each in entries if each.kind == "folder"}
    with call.database.read() as connection:
        hidden = locations.places_of_others(
            connection, [locations.place_in(view, path) for path in places], project=call.project
        )
    seen = [each for each in entries if places.get(each.path) not in hidden]
    return LocationEntries(entries=seen, next=listing.next)


def scan_location(call: CallNow, name: str) -> ScannedLocation:
    """Models that lie in it, at any depth: folders with config.json and safetensors. Registers nothing."""
    view = show_location(call, name)
    store, prefix = open_objects(_location(view), call.service.environment, retry_seconds=BROWSE_SECONDS)
    with call.database.read() as connection:
        here = all_models(connection)
    return scan(store, prefix, uri=view.uri, registered={each.path.rstrip("/"): each.name for each in here})


def _entry(base: str, key: str, *, kind: str) -> LocationEntry:
    path = key.removeprefix(base).rstrip("/")
    return LocationEntry.model_validate({"name": path.rpartition("/")[2], "path": path, "kind": kind})


def _location(view: LocationView | NewLocation) -> Location:
    return Location(
        uri=view.uri, endpoint_url=view.endpoint_url or None, region=view.region or None,
        credentials=view.credentials or None,
    )  # fmt: skip


LOCATION = "/api/locations/{name}"
ROUTES = [
    Route(
        method="GET", path="/api/locations", handler=list_locations, permission="location.read",
        summary="List locations", answer=LocationPage,
    ),
    Route(
        method="POST", path="/api/locations", handler=add_location, permission="location.add",
        summary="Declare a location", answer=LocationView, status=201, statuses=(200,), refusals=(409,), body="json",
        request_example={
            "name": "team-data", "uri": "s3://team-bucket/tunesmith", "endpoint_url": "https://objects.example.com",
            "credentials": "env:TEAM",
        },
    ),
    Route(
        method="GET", path=LOCATION, handler=show_location, permission="location.read", summary="Show a location",
        answer=LocationView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=LOCATION, handler=change_location, permission="location.change",
        summary="Change a location", answer=LocationView, refusals=(404, 409), body="json",
        request_example={"credentials": "env:TEAM_2"},
    ),
    Route(
        method="GET", path=f"{LOCATION}/uses", handler=show_location_uses, permission="location.read",
        summary="What uses a location", answer=Uses, refusals=(404,),
    ),
    Route(
        method="DELETE", path=LOCATION, handler=remove_location, permission="location.remove",
        summary="Remove a location", status=204, refusals=(404, 409),
    ),
    Route(
        method="POST", path=f"{LOCATION}/check", handler=check_location, permission="location.check",
        summary="Check a location", answer=LocationCheck, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{LOCATION}/browse", handler=browse_location, permission="location.browse",
        summary="Browse a location", answer=LocationEntries, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{LOCATION}/models", handler=scan_location, permission="location.browse",
        summary="Find the models in a location", answer=ScannedLocation, refusals=(404, 409),
    ),
]  # fmt: skip
