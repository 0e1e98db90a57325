"""Datasets: the list, one with its report, rows, preview and uses, adding one, and what may be done with it.

An upload is sent by `static/js/upload.js` to `/api/datasets`; a file in a declared location is named in a form here.
What needs a worker or a network (the preview, rows that lie in a bucket) is a part of its own, asked for afterwards.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError
from tunesmith.jobs.settings import read_columns
from tunesmith.server.api import datasets as routes
from tunesmith.server.api import locations, models
from tunesmith.server.pages.page import View, action, done, is_part, page, query_text, redirect, seen
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    CURSOR_CHARACTERS,
    MAXIMUM_NUMBER,
    NewLocatedDataset,
    PreviewQuery,
    RowQuery,
    SearchQuery,
    TaggedQuery,
)
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DatasetView, NounChange
from tunesmith.spec.faults import checked

SHOWN_ROWS = 10
ALL = {"limit": 200}


class DatasetListQuery(Spec):
    """The list's own form; a field that was left empty is absent."""

    search: str = Field("", max_length=200)
    tag: str = Field("", max_length=330)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def dataset_list(call: CallNow, query: Annotated[DatasetListQuery, Query()]) -> View:
    asked = {"search": query.search.strip() or None, "tag": query.tag or None, "after": query.after or None}
    found = routes.list_datasets(call, TaggedQuery.model_validate(asked))
    context = {
        "datasets": found.datasets,
        "next": found.next,
        "query": query,
        "kept": query_text(search=query.search, tag=query.tag),
        "is_filtered": any(asked.values()),
    }
    return View(template="datasets/table.html" if is_part(call.request) else "datasets/list.html", context=context)


def dataset_page(call: CallNow, dataset_id: str) -> View:
    dataset = routes.show_dataset(call, dataset_id)
    is_here = dataset.source_uri is None
    every = TaggedQuery.model_validate(ALL)
    context: dict[str, Any] = {
        "it": dataset,
        "report": routes.show_report(call, dataset_id),
        "uses": routes.show_uses(call, dataset_id),
        "models": [model.name for model in seen(call, "model.read", lambda: models.list_models(call, every).models)],
        "is_here": is_here,
        **(_rows(call, dataset_id, RowQuery(after=0, limit=SHOWN_ROWS)) if is_here else {}),
    }
    return View(template="datasets/show.html", context=context)


class RowsQuery(Spec):
    after: int = Field(0, ge=0, le=MAXIMUM_NUMBER)


def rows_page(call: CallNow, dataset_id: str, query: Annotated[RowsQuery, Query()]) -> View:
    """Some rows: a part of the dataset's page, or a page of its own without a script."""
    dataset = routes.show_dataset(call, dataset_id)
    context = {"it": dataset, **_rows(call, dataset_id, RowQuery(after=query.after, limit=SHOWN_ROWS))}
    return View(template=f"datasets/rows{'' if is_part(call.request) else '_page'}.html", context=context)


def _rows(call: Call, dataset_id: str, query: RowQuery) -> dict[str, Any]:
    """A file that cannot be read now does not take the rest of the page with it."""
    try:
        found = routes.list_rows(call, dataset_id, query)
    except TunesmithError as error:
        return {"rows": [], "next_row": None, "after": query.after, "row_error": error}
    return {"rows": found.rows, "next_row": found.next, "after": query.after, "row_error": None}


class PreviewForm(Spec):
    """A field that was left empty is absent."""

    model: str = Field("", max_length=4096)
    lines: str = Field("", max_length=400)


def preview_page(call: CallNow, dataset_id: str, form: Annotated[PreviewForm, Query()]) -> View:
    """Rows as a model sees them; a worker renders them, which takes some seconds the first time."""
    dataset = routes.show_dataset(call, dataset_id)
    context: dict[str, Any] = {"it": dataset, "model": form.model, "found": None, "error": None}
    try:
        query = checked(PreviewQuery, {"model": form.model, "lines": form.lines.replace(" ", "") or None})
        context["found"] = routes.preview_dataset(call, dataset_id, query)
    except TunesmithError as error:
        context["error"] = error
    return View(template=f"datasets/preview{'' if is_part(call.request) else '_page'}.html", context=context)


# ---- adding one


def add_page(call: CallNow) -> View:
    return _add_form(call, {})


def _add_form(call: Call, values: dict[str, str], *, error: TunesmithError | None = None) -> View:
    every = SearchQuery.model_validate(ALL)
    context = {
        "values": {name: values.get(name, "") for name in ("location", "path", "name", "columns")},
        "locations": seen(call, "location.read", lambda: locations.list_locations(call, every).locations),
        "error": error,
    }
    return View(template="datasets/add.html", context=context, status=200 if error is None else 422)


def register(call: CallNow) -> View | Response:
    """Take what lies in a location now; the same version is not added twice."""
    given = call.form.texts()
    try:
        wanted = {name: given.get(name) for name in ("location", "path", "name") if name in given}
        columns = read_columns([given["columns"]]) if "columns" in given else {}
        dataset_id = routes.known_or_registered(call, checked(NewLocatedDataset, wanted | {"columns": columns}))
    except TunesmithError as error:
        return _add_form(call, given, error=error)
    return redirect(f"/datasets/{dataset_id}")


# ---- changing it


def edit(call: CallNow, dataset_id: str) -> Response:
    name = call.form.text("name")
    change = {"description": call.form.text("description") or "", **({"name": name} if name is not None else {})}
    routes.change_dataset(call, dataset_id, checked(NounChange, change))
    return done(call, f"/datasets/{quote(dataset_id)}")


def delete_page(call: CallNow, dataset_id: str) -> View:
    """Asks, and says what will go and what stays."""
    dataset: DatasetView = routes.show_dataset(call, dataset_id)
    return View(template="datasets/delete.html", context={"it": dataset, "uses": routes.show_uses(call, dataset_id)})


def delete(call: CallNow, dataset_id: str) -> Response:
    routes.delete_dataset(call, dataset_id)
    return done(call, "/datasets")


DATASET = "/datasets/{dataset_id}"
ROUTES = [
    page("/datasets", dataset_list, permission="dataset.read", summary="Datasets"),
    page("/datasets/add", add_page, permission="dataset.add", summary="Add a dataset"),
    action("/datasets/add", register, permission="dataset.add", summary="Register a dataset of a location"),
    page(DATASET, dataset_page, permission="dataset.read", summary="A dataset"),
    page(f"{DATASET}/rows", rows_page, permission="dataset.read", summary="Its rows"),
    page(f"{DATASET}/preview", preview_page, permission="dataset.read", summary="Rows as a model sees them"),
    page(f"{DATASET}/delete", delete_page, permission="dataset.delete", summary="Before it is deleted"),
    action(f"{DATASET}/edit", edit, permission="dataset.change", summary="Change a dataset"),
    action(f"{DATASET}/delete", delete, permission="dataset.delete", summary="Delete a dataset"),
]
