"""The model explorer: cards of what is here and what is known, a model's page, registering, changing, forgetting.

What comes from the hub, and downloads, are `hub.py`'s. A model's name is a path of up to two steps, so that what is
done with one has addresses of its own (`/model-register`), not one below `/models/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.server.api import explorer, locations, models
from tunesmith.server.pages import words
from tunesmith.server.pages.jobs import new_key
from tunesmith.server.pages.page import View, action, done, is_part, page, query_text, redirect, seen
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, BrowseQuery, SearchQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import BaseModelChange, NewBaseModel
from tunesmith.spec.explorer import ExplorerPage, ExplorerQuery, Label, ModelDetail
from tunesmith.spec.faults import checked
from tunesmith.spec.plan import MemoryFit

SHOWN = 24
SIZES = {  # a choice of the filter -> parameters at least and at most
    "up to 1B": (None, 1_000_000_000),
    "1B to 4B": (1_000_000_000, 4_000_000_000),
    "4B to 10B": (4_000_000_000, 10_000_000_000),
    "10B to 40B": (10_000_000_000, 40_000_000_000),
    "above 40B": (40_000_000_000, None),
}
ALL = {"limit": 200}


class ModelListQuery(Spec):
    """The explorer's own form; a field that was left empty is absent."""

    search: str = Field("", max_length=200)
    source: Literal["", "here", "elsewhere"] = ""
    label: str = Field("", max_length=40)
    family: str = Field("", max_length=60)
    publisher: str = Field("", max_length=60)
    kind: str = Field("", max_length=60)
    licence: str = Field("", max_length=60)
    tag: str = Field("", max_length=330)
    size: str = Field("", max_length=20)
    sort: str = Field("", max_length=20)
    after: str = Field("", max_length=400)

    @property
    def fields(self) -> dict[str, str]:
        """What a link to the same list holds; not where it begins."""
        return {name: value for name, value in self.as_json().items() if name != "after" and value}


def model_list(call: CallNow, query: Annotated[ModelListQuery, Query()]) -> View:
    found = explorer.explore_models(call, _asked(query))
    context = {
        "found": found,
        "query": query,
        "kept": query_text(**query.fields),
        "without_label": query_text(**{name: value for name, value in query.fields.items() if name != "label"}),
        "labels": _label_choices(found),
        "sizes": list(SIZES),
        "sorts": words.MODEL_ORDERS,
        "is_filtered": bool(query.fields),
    }
    return View(template="models/cards.html" if is_part(call.request) else "models/list.html", context=context)


def _asked(query: ModelListQuery) -> ExplorerQuery:
    if query.size and query.size not in SIZES:
        raise UsageFault("INVALID_FIELD", f"size: {query.size!r} is not one of {', '.join(SIZES)}.", field="size")
    low, high = SIZES.get(query.size, (None, None))
    given = {
        name: getattr(query, name)
        for name in ("search", "label", "family", "publisher", "kind", "licence", "tag", "sort", "after")
    }
    here = {"here": True, "elsewhere": False}.get(query.source)
    asked = {name: value.strip() for name, value in given.items() if value.strip()}
    return checked(
        ExplorerQuery, asked | {"here": here, "minimum_parameters": low, "maximum_parameters": high, "limit": SHOWN}
    )


def _label_choices(found: ExplorerPage) -> list[tuple[Label, int]]:
    """Ready to Fine Tune first, as the enum has them."""
    return [(label, found.choices.labels[label]) for label in Label if label in found.choices.labels]


# ---- one model


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFits:
    """What fine-tuning needs on one device: a line for each length of rows."""

    name: str
    kind: str
    free_bytes: int
    total_bytes: int
    fits: list[MemoryFit]

    @property
    def longest(self) -> MemoryFit | None:
        """The longest rows that fit now."""
        return next((fit for fit in reversed(self.fits) if fit.verdict == "fits"), None)

    @property
    def is_tight(self) -> bool:
        return any(fit.verdict == "tight" for fit in self.fits)


def model_page(call: CallNow, name: str) -> View:
    detail = explorer.show_model_detail(call, name)
    sizes = detail.facts or (detail.known.sizes() if detail.known is not None else None)
    context = {
        "detail": detail,
        "it": detail.card,
        "sizes": sizes,
        "devices": _by_device(detail),
        "is_trainable": detail.card.has(Label.READY_TO_FINE_TUNE),
        "tags_text": tags_text(detail.card.tags),
        "hub_url": f"https://huggingface.co/{detail.card.hub_id}" if detail.card.hub_id else None,
    }
    return View(template="models/show.html", context=context)


def _by_device(detail: ModelDetail) -> list[DeviceFits]:
    names = list(dict.fromkeys((fit.device, fit.device_name) for fit in detail.memory))
    grouped = [[fit for fit in detail.memory if (fit.device, fit.device_name) == name] for name in names]
    return [
        DeviceFits(
            name=fits[0].device_name, kind=fits[0].device, free_bytes=fits[0].free_bytes,
            total_bytes=fits[0].total_bytes, fits=fits,
        )
        for fits in grouped
    ]  # fmt: skip


def template_part(call: CallNow, name: str) -> View:
    """What the model reads of a short conversation; asked for by the page, since a worker renders it."""
    context: dict[str, Any] = {"name": name, "preview": None, "error": None}
    try:
        context["preview"] = explorer.preview_template(call, name)
    except TunesmithError as error:
        context["error"] = error
    return View(template=f"models/template{'' if is_part(call.request) else '_page'}.html", context=context)


# ---- registering


class RegisterQuery(Spec):
    """What a link to the form may fill in."""

    name: str = Field("", max_length=200)
    path: str = Field("", max_length=4096)


def register_page(call: CallNow, query: Annotated[RegisterQuery, Query()]) -> View:
    return _register_form(call, {"name": query.name, "path": query.path})


def _register_form(
    call: Call, values: dict[str, str], *, error: TunesmithError | None = None, status: int = 200
) -> View:
    every = SearchQuery.model_validate(ALL)
    context = {
        "values": {"name": "", "path": "", "description": "", "tags": "", "licence_note": "", "key": new_key()}
        | values,
        "locations": seen(call, "location.read", lambda: locations.list_locations(call, every).locations),
        "is_local": call.principal.is_local,
        "error": error,
    }
    return View(template="models/register.html", context=context, status=status)


def register(call: CallNow) -> View | Response:
    values = call.form.texts()
    given = {name: values.get(name, "") for name in ("name", "path", "description", "licence_note")}
    try:
        new = checked(NewBaseModel, {**given, "tags": read_tags(values.get("tags", ""))})
        answer = models.register_model(call, new, values.get("key"))
    except TunesmithError as error:
        return _register_form(call, values, error=error, status=422)
    return redirect(f"/models/{quote(orjson.loads(answer.body)['name'])}")


class BrowseForm(Spec):
    location: str = Field(max_length=63)
    path: str = Field("", max_length=1024)
    after: str = Field("", max_length=4 * CURSOR_CHARACTERS)


def browse(call: CallNow, query: Annotated[BrowseForm, Query()]) -> View:
    """The folders of a location, to choose one that holds a model."""
    asked = BrowseQuery.model_validate({"path": query.path, "after": query.after or None})
    found = locations.browse_location(call, query.location, asked)
    steps = [step for step in query.path.split("/") if step]
    context = {
        "location": query.location,
        "path": query.path,
        "crumbs": [("/".join(steps[: place + 1]), step) for place, step in enumerate(steps)],
        "entries": found.entries,
        "next": found.next,
        "is_model": any(entry.name == "config.json" for entry in found.entries),
        "name": model_name(steps[-1] if steps else query.location),
    }
    return View(template=f"models/browse{'' if is_part(call.request) else '_page'}.html", context=context)


def scan_page(call: CallNow, location: Annotated[str, Query(max_length=63)]) -> View:
    """The models that lie in a location, to register one after the other."""
    found = locations.scan_location(call, location)
    names = {each.path: model_name((each.path or location).rpartition("/")[2]) for each in found.models}
    places = {each.path: f"{location}:{each.path}" for each in found.models if each.path}
    if call.principal.is_local:  # the location's own folder is no LOCATION:path; only a URI names it
        places[""] = locations.show_location(call, location).uri
    context = {"location": location, "found": found, "names": names, "places": places}
    return View(template="models/scan.html", context=context)


def model_name(text: str) -> str:
    """A name in the catalog that a folder's name suggests."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:96]


# ---- changing


def edit(call: CallNow, name: str) -> Response:
    form = call.form
    given = {field: form.text(field) or "" for field in ("description", "licence_note")}
    models.change_model(call, name, checked(BaseModelChange, {**given, "tags": read_tags(form.text("tags") or "")}))
    return done(call, f"/models/{quote(name)}")


def delete(call: CallNow, name: str) -> Response:
    models.delete_model(call, name)
    return done(call, "/models")


def read_tags(text: str) -> dict[str, str]:
    """`team=support, approved`: pairs with commas or lines between. Raises UsageFault for a tag that stands twice."""
    tags: dict[str, str] = {}
    for part in re.split(r"[,\n]", text):
        key, _, value = (side.strip() for side in part.partition("="))
        if not key and not value:
            continue
        if key in tags:
            raise UsageFault(
                "INVALID_FIELD", f"tags: {key!r} stands twice.", field="tags", hint="Give each tag one value."
            )
        tags[key] = value
    return tags


def tags_text(tags: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" if value else key for key, value in tags.items())


ROUTES = [
    page("/models", model_list, permission="model.read", summary="Models"),
    page("/model-register", register_page, permission="model.register", summary="Register a model"),
    action("/model-register", register, permission="model.register", summary="Register a model"),
    page("/model-browse", browse, permission="location.browse", summary="Folders of a location"),
    page("/model-scan", scan_page, permission="location.browse", summary="Models in a location"),
    page("/model-template/{name:path}", template_part, permission="model.read", summary="What a model reads"),
    action("/models/{name:path}/edit", edit, permission="model.change", summary="Change a model"),
    action("/models/{name:path}/delete", delete, permission="model.delete", summary="Forget a model"),
    page("/models/{name:path}", model_page, permission="model.read", summary="A model"),
]
