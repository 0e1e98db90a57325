"""Admin: declared locations: the list, declaring and changing one, one with its check, what lies there, its uses.

A check writes a small probe and may take twenty seconds: it is an action, made by itself once, after declaring.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError
from tunesmith.server.api import locations as routes
from tunesmith.server.errors import status_of
from tunesmith.server.pages.page import View, action, done, is_part, page, query_text, redirect
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, BrowseQuery, SearchQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import LocationChange, LocationView, NewLocation
from tunesmith.spec.faults import checked

FIELDS = tuple(NewLocation.model_fields)
CHANGED_FIELDS = tuple(LocationChange.model_fields)


class LocationListQuery(Spec):
    """The list's own form; a field that was left empty is absent."""

    search: str = Field("", max_length=200)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def location_list(call: CallNow, query: Annotated[LocationListQuery, Query()]) -> View:
    asked = {"search": query.search.strip() or None, "after": query.after or None}
    found = routes.list_locations(call, SearchQuery.model_validate(asked))
    context = {
        "locations": found.locations,
        "next": found.next,
        "query": query,
        "kept": query_text(search=query.search),
        "is_filtered": any(asked.values()),
    }
    name = "location_list" if is_part(call.request) else "locations"
    return View(template=f"admin/{name}.html", context=context)


# ---- declaring one


def add_page(call: CallNow) -> View:
    return _add_form({})


def _add_form(values: dict[str, str], *, error: TunesmithError | None = None) -> View:
    context = {"it": None, "values": {name: values.get(name, "") for name in FIELDS}, "error": error}
    return View(template="admin/location_add.html", context=context, status=200 if error is None else status_of(error))


def add(call: CallNow) -> View | Response:
    given = call.form.texts()
    wanted = {name: given[name].strip() for name in FIELDS if name in given}
    try:
        routes.add_location(call, checked(NewLocation, wanted))
    except TunesmithError as error:
        return _add_form(given, error=error)
    return redirect(f"{LOCATIONS}/{quote(wanted['name'])}?new=yes")


# ---- changing one


def edit_page(call: CallNow, name: str) -> View:
    view = routes.show_location(call, name)
    return _edit_form(view, {field: getattr(view, field) or "" for field in CHANGED_FIELDS})


def _edit_form(view: LocationView, values: dict[str, str], *, error: TunesmithError | None = None) -> View:
    context = {"it": view, "values": values, "error": error}
    return View(template="admin/location_add.html", context=context, status=200 if error is None else status_of(error))


def change(call: CallNow, name: str) -> View | Response:
    given = call.form.texts()
    values = {field: given.get(field, "").strip() for field in CHANGED_FIELDS}
    try:
        routes.change_location(call, name, checked(LocationChange, values))
    except TunesmithError as error:
        if error.code == "UNKNOWN_LOCATION":
            raise
        return _edit_form(routes.show_location(call, name), values, error=error)
    return redirect(f"{LOCATIONS}/{quote(name)}?new=yes")


# ---- one location


class ShowQuery(Spec):
    new: str = Field("", max_length=3, description="It was declared a moment ago: the page checks it by itself.")


def location_page(call: CallNow, name: str, query: Annotated[ShowQuery, Query()]) -> View:
    return _location(call, name, is_new=bool(query.new))


def _location(call: Call, name: str, **more: Any) -> View:
    view = routes.show_location(call, name)
    context = {
        "it": view, "uses": routes.show_location_uses(call, name), "is_new": False, "check": None, "error": None,
    }  # fmt: skip
    return View(template="admin/location.html", context=context | more)


def check(call: CallNow, name: str) -> View:
    """A refusal is what the page tells; as a part of the page, or with all of it."""
    found: dict[str, Any]
    try:
        found = {"check": routes.check_location(call, name)}
    except TunesmithError as error:
        if error.code == "UNKNOWN_LOCATION":
            raise
        found = {"error": error}
    if not is_part(call.request):
        return _location(call, name, **found)
    context = {"check": None, "error": None, "is_new": False, "it": routes.show_location(call, name), **found}
    return View(template="admin/location_check.html", context=context)


class BrowsePageQuery(Spec):
    path: str = Field("", max_length=1024)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS * 4)


def browse(call: CallNow, name: str, query: Annotated[BrowsePageQuery, Query()]) -> View:
    """Folders and objects below a path; a place that does not answer is told in place."""
    view = routes.show_location(call, name)
    steps = [step for step in query.path.split("/") if step]
    context: dict[str, Any] = {
        "it": view, "entries": [], "next": None, "error": None, "path_below": query.path,
        "crumbs": [("/".join(steps[: place + 1]), step) for place, step in enumerate(steps)],
    }  # fmt: skip
    try:
        asked = BrowseQuery.model_validate({"path": query.path, "after": query.after or None})
        found = routes.browse_location(call, name, asked)
        context |= {"entries": found.entries, "next": found.next}
    except TunesmithError as error:
        context["error"] = error
    part = "location_browse" if is_part(call.request) else "location_browse_page"
    return View(template=f"admin/{part}.html", context=context)


def delete_page(call: CallNow, name: str) -> View:
    """Asks, and says what stays and what forbids it."""
    context = {"it": routes.show_location(call, name), "uses": routes.show_location_uses(call, name)}
    return View(template="admin/location_delete.html", context=context)


def delete(call: CallNow, name: str) -> Response:
    routes.remove_location(call, name)
    return done(call, LOCATIONS)


LOCATIONS = "/admin/locations"
ADD = "/admin/location-add"  # beside the names, which could be `add`
LOCATION = f"{LOCATIONS}/{{name}}"
ROUTES = [
    page(LOCATIONS, location_list, permission="location.read", summary="Locations"),
    page(ADD, add_page, permission="location.add", summary="Declare a location"),
    action(ADD, add, permission="location.add", summary="Declare a location"),
    page(LOCATION, location_page, permission="location.read", summary="A location"),
    page(f"{LOCATION}/edit", edit_page, permission="location.change", summary="Change a location"),
    action(f"{LOCATION}/edit", change, permission="location.change", summary="Change a location"),
    page(f"{LOCATION}/browse", browse, permission="location.browse", summary="What lies in a location"),
    page(f"{LOCATION}/delete", delete_page, permission="location.remove", summary="Before it is deleted"),
    action(f"{LOCATION}/check", check, permission="location.check", summary="Check a location"),
    action(f"{LOCATION}/delete", delete, permission="location.remove", summary="Delete a location"),
]
