"""Datasets: upload or register, list, show, change, delete, report, preview."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tunesmith.catalog import datasets, locations, versions
from tunesmith.catalog.datasets import new_dataset_id
from tunesmith.catalog.quotas import Room, upload_room
from tunesmith.data.rows import check_file
from tunesmith.errors import REFERENCE, Unknown, UsageFault
from tunesmith.files import fsync_folder
from tunesmith.jobs.inputs import dataset_file, in_location, model_folder
from tunesmith.jobs.inspection import Inspection
from tunesmith.jobs.settings import read_columns, read_lines
from tunesmith.server import uploads
from tunesmith.server.auth import may, require
from tunesmith.server.dataset_rows import read_row_page
from tunesmith.server.inputs import DATASET_FIELDS, check_in_location, check_model, inspecting
from tunesmith.server.json_body import read_json
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.routes import JSON_BODY_BYTES, Route, created, too_large
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    DatasetPage,
    DatasetPreview,
    DatasetRowPage,
    DatasetUses,
    NewLocatedDataset,
    PreviewQuery,
    RowQuery,
    TaggedQuery,
    UploadQuery,
)
from tunesmith.spec.catalog import DatasetView, NewDataset, NounChange, VersionView
from tunesmith.spec.datasets import DatasetInput, DatasetReport, InspectRequest, PreviewWish
from tunesmith.spec.faults import checked, shown
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.fetch import fetch, fetched_folder

ROUTE = "POST /api/datasets"
BINARY = "application/octet-stream"


async def add_dataset(
    call: CallNow,
    request: Request,
    query: Annotated[UploadQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a file (application/octet-stream), or register one that lies in a declared location (application/json).

    A file is checked while it arrives. One with errors is refused with all of them, and nothing of it is kept.
    """
    kind = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = bytearray()
        async for chunk in call.request.stream():
            body += chunk
            if len(body) > JSON_BODY_BYTES:
                raise too_large(JSON_BODY_BYTES)
        new = checked(NewLocatedDataset, read_json(bytes(body)), hint=REFERENCE)
        return await run_in_threadpool(_register, call, new, idempotency_key)
    if kind != BINARY:
        raise UsageFault(
            "CONTENT_TYPE", f"The body's type is {shown(kind or 'not named')}.", field="Content-Type",
            hint=f"Send a file as {BINARY}, or the place of one as application/json.",
        )  # fmt: skip
    dataset_id = new_dataset_id()
    columns = read_columns([query.columns]) if query.columns is not None else {}
    length = request.headers.get("content-length", "")
    arrived = await uploads.receive(
        call.request.stream(),
        call.state.home.uploads / f"{dataset_id}-{uploads.file_name(query.filename)}",
        columns=columns,
        name=query.filename,
        expected_bytes=int(length) if length.isdecimal() else None,
        quota=await run_in_threadpool(_upload_room, call),
    )
    return await run_in_threadpool(
        _keep, call, dataset_id, arrived, query=query, columns=columns, key=idempotency_key
    )  # fmt: skip


def _upload_room(call: Call) -> Room:
    with call.database.read() as connection:
        return upload_room(connection, call.actor)


def _keep(
    call: Call,
    dataset_id: str,
    arrived: uploads.Arrived,
    *,
    query: UploadQuery,
    columns: dict[str, str],
    key: str | None,
) -> Response:
    """Give the file its place, then the dataset its row; a file without a row is nobody's, and removed."""
    name = query.name or PurePosixPath(query.filename).stem[:128] or "dataset"
    file_name = uploads.file_name(query.filename)
    folder = call.state.home.datasets / dataset_id
    is_new = False
    try:
        folder.mkdir(mode=0o700)
        _place(call, arrived, folder / file_name)
        fsync_folder(folder)
        fsync_folder(folder.parent)
        new = NewDataset(
            name=name, sha256=arrived.sha256, columns=columns, report=arrived.report, file_name=file_name,
            location=None, source_uri=None,
        )  # fmt: skip

        def make(connection: sa.Connection) -> str:
            return datasets.add_dataset(
                connection, new, project=call.project, actor=call.actor, dataset_id=dataset_id
            ).dataset_id

        wish = f"{arrived.sha256} {query.model_dump_json()}"
        made, is_new = once(call, key, wish, route=ROUTE, make=make)
        return created(show_dataset(call, made), is_new=is_new)
    finally:
        arrived.path.unlink(missing_ok=True)
        if not is_new:
            shutil.rmtree(folder, ignore_errors=True)


def add_file(call: Call, path: Path, *, name: str) -> DatasetView:
    """A file that comes with Tunesmith, as if it had been uploaded; bytes that are here already are not kept twice."""
    dataset_id = new_dataset_id()
    copy = call.state.home.uploads / f"{dataset_id}-{path.name}"
    shutil.copyfile(path, copy)
    report = check_file(copy, columns={}, name=path.name)
    sha256 = hashlib.sha256(copy.read_bytes()).hexdigest()
    query = UploadQuery.model_validate({"name": name, "filename": path.name})
    arrived = uploads.Arrived(path=copy, sha256=sha256, report=report)
    _keep(call, dataset_id, arrived, query=query, columns={}, key=None)
    return show_dataset(call, dataset_id)


def _place(call: Call, arrived: uploads.Arrived, target: Path) -> None:
    """The file under its name; bytes that are kept for another dataset are not kept twice."""
    with call.database.read() as connection:
        known = datasets.with_bytes(connection, arrived.sha256)
    for dataset_id, file_name in known:
        with contextlib.suppress(OSError):  # just deleted, or a file system without links
            os.link(call.state.home.datasets / dataset_id / file_name, target)
            return
    arrived.path.rename(target)


def _register(call: Call, new: NewLocatedDataset, key: str | None) -> Response:
    kept = located(call, new)

    def make(connection: sa.Connection) -> str:
        return datasets.add_dataset(connection, kept, project=call.project, actor=call.actor).dataset_id

    made, is_new = once(call, key, new, route=ROUTE, make=make)
    return created(show_dataset(call, made), is_new=is_new)


def pinned(call: Call, request: FinetuneRequest) -> FinetuneRequest:
    """The request with each `location:path` as a dataset of the catalog: that version and no other is what runs.

    Raises what registering it would: it is fetched and its rows are checked now. One that is known is not added twice.
    """
    changes: dict[str, str] = {}
    for field in DATASET_FIELDS:
        place = in_location(getattr(request, field) or "")
        if place is None:
            continue
        require(call.principal, "dataset.add")
        new = NewLocatedDataset.model_validate({"location": place[0], "path": place[1], "columns": request.columns})
        changes[field] = known_or_registered(call, new)
    return request.model_copy(update=changes) if changes else request


def known_or_registered(call: Call, new: NewLocatedDataset) -> str:
    """The id of what lies there now, fetched and checked; the same version is not added twice."""
    return call.database.write_grouped(partial(_known_or_added, call, located(call, new)))


def _known_or_added(call: Call, new: NewDataset, connection: sa.Connection) -> str:
    known = datasets.with_source(connection, new, project=call.project)
    return known or datasets.add_dataset(connection, new, project=call.project, actor=call.actor).dataset_id


def located(call: Call, new: NewLocatedDataset) -> NewDataset:
    """What lies there now, fetched and checked. Raises Unknown, InputRefused for faulty rows, what a store raises."""
    check_in_location(call, new.location, new.path, field="path")
    with call.database.read() as connection:
        view = locations.find_location(connection, new.location)
        location = locations.location_of_uri(connection, view.uri)
    fetched = fetch(
        location, fetched_folder(call.state.home.cache), environment=call.service.environment, path=new.path,
        maximum_bytes=uploads.MAXIMUM_BYTES, field="path",
    )  # fmt: skip
    if new.columns:
        read_columns([f"{ours}={theirs}" for ours, theirs in new.columns.items()])
    report = check_file(fetched.path, columns=new.columns, name=new.path)
    if report.num_errors:
        raise uploads.refusal(report)
    return NewDataset(
        name=new.name or PurePosixPath(new.path).name[:128], description=new.description, tags=new.tags,
        sha256=fetched.sha256, columns=new.columns, report=report, file_name=uploads.file_name(new.path),
        location=new.location, source_uri=fetched.uri, source_version_id=fetched.version_id,
    )  # fmt: skip


def list_datasets(call: CallNow, query: Annotated[TaggedQuery, Query()]) -> DatasetPage:
    """The newest first."""
    with call.database.read() as connection:
        page = datasets.list_datasets(
            connection, project=call.project, search=query.search, tag=query.tag, after=query.after, limit=query.limit
        )
    return DatasetPage(datasets=page.items, next=page.next)


def show_dataset(call: CallNow, dataset_id: str) -> DatasetView:
    """A dataset with its hashes and counts."""
    with call.database.read() as connection:
        return datasets.find_dataset(connection, dataset_id, project=call.project)


def change_dataset(call: CallNow, dataset_id: str, change: Annotated[NounChange, Body()]) -> DatasetView:
    """Change its name, description or tags."""
    return call.database.write_grouped(
        lambda connection: datasets.change_dataset(
            connection, dataset_id, change, project=call.project, actor=call.actor
        )
    )


def delete_dataset(call: CallNow, dataset_id: str) -> None:
    """Delete it and its uploaded file; what lies in a location stays. 409 while an unfinished job needs it."""
    deleted = call.database.write_grouped(
        lambda connection: datasets.delete_dataset(connection, dataset_id, project=call.project, actor=call.actor)
    )
    if deleted.source_uri is None:
        shutil.rmtree(call.state.home.datasets / deleted.dataset_id, ignore_errors=True)


def show_report(call: CallNow, dataset_id: str) -> DatasetReport:
    """What its check found: every warning with its line."""
    with call.database.read() as connection:
        return datasets.read_report(connection, dataset_id, project=call.project)


def preview_dataset(call: CallNow, dataset_id: str, query: Annotated[PreviewQuery, Query()]) -> DatasetPreview:
    """Some rows as this model would see them, and the number of tokens. The first time takes some seconds.

    With `lines` the rows that start there, else the longest, the shortest and two others. With `spans` token by token.
    """
    dataset = show_dataset(call, dataset_id)
    check_model(call, query.model)
    environment = call.service.environment
    model = model_folder(query.model, state=call.state, environment=environment)
    file = dataset_file(dataset.dataset_id, state=call.state, project=call.project, environment=environment)
    assert file is not None, "it is the id of a dataset"
    question = InspectRequest(
        model_name=model.name,
        model_path=str(model.path),
        datasets=[DatasetInput(role="training", path=str(file.path), name=dataset.name, columns=dataset.columns)],
        settings=TrainingSettings.model_validate({"render": query.render, "validation_fraction": 0, "too_long": "cut"}),
        cache_folder=str(call.state.home.cache),
        preview=PreviewWish(lines=read_lines(query.lines), spans=query.spans),
    )
    with inspecting(call), Inspection(question, home=call.state.home, environment=environment) as inspection:
        found = inspection.answer().preparation
    assert found is not None, "datasets were given"
    return DatasetPreview(
        render=found.render, tokens=found.training, previews=found.previews, notices=found.notices
    )  # fmt: skip


def show_uses(call: CallNow, dataset_id: str) -> DatasetUses:
    """What was trained on it, and its other versions."""
    with call.database.read() as connection:
        dataset = datasets.find_dataset(connection, dataset_id, project=call.project)
        trained: list[VersionView] = []
        if may(call.principal, "version.read"):
            trained = versions.trained_on(
                connection, dataset_id=dataset_id, content_hash=dataset.content_hash, project=call.project
            )
        return DatasetUses(
            versions=trained,
            siblings=datasets.sibling_datasets(connection, dataset, project=call.project),
        )


def list_rows(call: CallNow, dataset_id: str, query: Annotated[RowQuery, Query()]) -> DatasetRowPage:
    """Rows as they stand in the file, with what the check found in each. A long text is cut, and says so."""
    with call.database.read() as connection:
        report = datasets.read_report(connection, dataset_id, project=call.project)
    file = dataset_file(dataset_id, state=call.state, project=call.project, environment=call.service.environment)
    if file is None:
        raise Unknown("UNKNOWN_DATASET", f"There is no dataset {shown(dataset_id)} here.", field="dataset")
    return read_row_page(file.path, columns=file.columns, report=report, after=query.after, limit=query.limit)


EXAMPLE: dict[str, Any] = {"name": "support", "location": "team-data", "path": "support/rows.jsonl"}
DATASET = "/api/datasets/{dataset_id}"
ROUTES = [
    Route(
        method="GET", path="/api/datasets", handler=list_datasets, permission="dataset.read", summary="List datasets",
        answer=DatasetPage,
    ),
    Route(
        method="POST", path="/api/datasets", handler=add_dataset, permission="dataset.add",
        summary="Upload or register a dataset", answer=DatasetView, status=201, statuses=(200,), refusals=(404, 409),
        body="stream", body_limit=uploads.MAXIMUM_BYTES,
        request_content={
            BINARY: {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": NewLocatedDataset.model_json_schema(), "example": EXAMPLE},
        },
    ),
    Route(
        method="GET", path=DATASET, handler=show_dataset, permission="dataset.read", summary="Show a dataset",
        answer=DatasetView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=DATASET, handler=change_dataset, permission="dataset.change", summary="Change a dataset",
        answer=DatasetView, refusals=(404,), body="json", request_example={"description": "Tickets of 2025"},
    ),
    Route(
        method="DELETE", path=DATASET, handler=delete_dataset, permission="dataset.delete",
        summary="Delete a dataset", status=204, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{DATASET}/report", handler=show_report, permission="dataset.read",
        summary="What a dataset's check found", answer=DatasetReport, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{DATASET}/preview", handler=preview_dataset, permission="dataset.read",
        summary="Rows as a model sees them", answer=DatasetPreview, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{DATASET}/rows", handler=list_rows, permission="dataset.read",
        summary="Rows of a dataset", answer=DatasetRowPage, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{DATASET}/uses", handler=show_uses, permission="dataset.read",
        summary="What was trained on a dataset", answer=DatasetUses, refusals=(404,),
    ),
]  # fmt: skip
