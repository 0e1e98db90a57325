"""The hub in pages: search, a look at one model with all that a download would bring, and downloads under way.

What was looked at is what is downloaded: the form that starts one carries the commit and the choice of files.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import orjson
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.server.api import hub, locations
from tunesmith.server.pages import words
from tunesmith.server.pages.jobs import new_key
from tunesmith.server.pages.models import SIZES, read_tags
from tunesmith.server.pages.page import View, action, done, is_part, page, redirect, seen
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, DownloadQuery, SearchQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.explorer import TASK
from tunesmith.spec.faults import checked
from tunesmith.spec.hub import ENDED, HubQuery, NewDownload

SHOWN = 30
ANY_TASK = "any"
ALL = {"limit": 200}


class HubForm(Spec):
    """The search form. asked: it was sent, and not only opened: the hub is asked on purpose alone."""

    asked: str = Field("", max_length=5)
    search: str = Field("", max_length=200)
    author: str = Field("", max_length=96)
    task: str = Field(TASK, max_length=60)
    licence: str = Field("", max_length=41)
    size: str = Field("", max_length=20)
    sort: str = Field("", max_length=20)


def search_page(call: CallNow, query: Annotated[HubForm, Query()]) -> View:
    context: dict[str, Any] = {
        "query": query, "sizes": list(SIZES), "sorts": words.HUB_ORDERS, "tasks": words.HUB_TASKS, "models": None,
        "error": None,
    }  # fmt: skip
    if query.asked:
        try:
            context["models"] = hub.search_hub(call, _asked(query)).models
        except TunesmithError as error:
            context["error"] = error
    template = "models/hub_found.html" if is_part(call.request) else "models/hub.html"
    return View(template=template, context=context)


def _asked(query: HubForm) -> HubQuery:
    if query.size and query.size not in SIZES:
        raise UsageFault("INVALID_FIELD", f"size: {query.size!r} is not one of {', '.join(SIZES)}.", field="size")
    low, high = SIZES.get(query.size, (None, None))
    given = {name: getattr(query, name).strip() for name in ("search", "author", "licence", "sort")}
    bounds = {"minimum_parameters": low, "maximum_parameters": high}
    task = None if query.task == ANY_TASK else query.task.strip() or TASK
    wanted = {name: value for name, value in given.items() if value}
    return checked(HubQuery, wanted | bounds | {"task": task, "limit": SHOWN})


# ---- a look, and the start of a download


class LookForm(Spec):
    hub_id: str = Field(max_length=200)
    revision: str = Field("", max_length=100)
    name: str = Field("", max_length=200)
    location: str = Field("", max_length=63)
    include: str = Field("", max_length=4000, description="Patterns, one a line.")
    exclude: str = Field("", max_length=4000)


def look_page(call: CallNow, query: Annotated[LookForm, Query()]) -> View:
    return _look(call, query.as_json(), error=None)


def _look(call: Call, values: dict[str, str], *, error: TunesmithError | None) -> View:
    """error: of a download that could not start."""
    found, status = None, 200 if error is None else 422
    try:
        found = hub.look_at_hub_model(call, _wanted(values))
    except TunesmithError as refusal:
        error = error or refusal
    every = SearchQuery.model_validate(ALL)
    context = {
        "values": values,
        "found": found,
        "error": error,
        "locations": seen(call, "location.read", lambda: locations.list_locations(call, every).locations),
        "can_download": call.service.downloads is not None,
        "key": new_key(),
    }
    return View(template="models/look.html", context=context, status=status)


def _wanted(values: dict[str, str], *, tags: dict[str, str] | None = None) -> NewDownload:
    given: dict[str, Any] = {
        name: text for name in ("hub_id", "revision", "name", "location", "description") if (text := values.get(name))
    }
    for name in ("include", "exclude"):
        given[name] = [line.strip() for line in re.split(r"[\n,]", values.get(name, "")) if line.strip()]
    return checked(NewDownload, {**given, "tags": tags or {}})


def start(call: CallNow) -> View | Response:
    values = call.form.texts()
    try:
        wanted = _wanted(values, tags=read_tags(values.get("tags", "")))
        answer = hub.start_download(call, wanted, values.get("key"))
    except TunesmithError as error:
        given = {name: values.get(name, "") for name in LookForm.model_fields}
        return _look(call, given, error=error)
    return redirect(f"/model-downloads/{orjson.loads(answer.body)['download_id']}")


# ---- downloads


class DownloadListQuery(Spec):
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def download_list(call: CallNow, query: Annotated[DownloadListQuery, Query()]) -> View:
    found = hub.list_downloads(call, DownloadQuery.model_validate({"after": query.after or None}))
    context = {
        "downloads": found.downloads,
        "next": found.next,
        "is_live": query.after is None and any(each.state not in ENDED for each in found.downloads),
    }
    template = "models/download_list.html" if is_part(call.request) else "models/downloads.html"
    return View(template=template, context=context)


def download_page(call: CallNow, download_id: str) -> View:
    view = hub.show_download(call, download_id)
    context = {"it": view, "is_live": view.state not in ENDED}
    return View(template=f"models/download{'_part' if is_part(call.request) else ''}.html", context=context)


def cancel(call: CallNow, download_id: str) -> Response:
    hub.cancel_download(call, download_id)
    return done(call, f"/model-downloads/{download_id}")


def resume(call: CallNow, download_id: str) -> Response:
    hub.resume_download(call, download_id)
    return done(call, f"/model-downloads/{download_id}")


DOWNLOAD = "/model-downloads/{download_id}"
ROUTES = [
    page("/model-hub", search_page, permission="hub.read", summary="Search the hub"),
    page("/model-look", look_page, permission="hub.read", summary="A model of the hub, before its download"),
    page("/model-downloads", download_list, permission="download.read", summary="Downloads"),
    action("/model-downloads", start, permission="model.download", summary="Download a model"),
    page(DOWNLOAD, download_page, permission="download.read", summary="A download"),
    action(f"{DOWNLOAD}/cancel", cancel, permission="download.cancel", summary="Cancel a download"),
    action(f"{DOWNLOAD}/resume", resume, permission="model.download", summary="Resume a download"),
]
