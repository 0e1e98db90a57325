"""Datasets: checked files with their hashes, counts and report. Their bytes lie elsewhere, in the state folder or where
`source_uri` says; who deletes a dataset removes them after the transaction.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit, quotas
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.paging import Page, matching, read_page, tagged, tags_text
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import DatasetView, NewDataset, NounChange
from tunesmith.spec.datasets import DatasetReport
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import DATASETS, JOBS

VIEW_COLUMNS = [column for column in DATASETS.c if column.name not in ("project", "report", "added_by")]
NAME = sa.select(DATASETS.c.name).where(
    DATASETS.c.project == sa.bindparam("project"), DATASETS.c.dataset_id == sa.bindparam("dataset_id")
)

MAXIMUM_SIBLINGS = 50
ASKED_FIELDS = ("dataset", "validation_dataset", "test_dataset")


def new_dataset_id() -> str:
    return f"ds-{secrets.token_hex(8)}"


def add_dataset(
    connection: sa.Connection, new: NewDataset, *, project: str, actor: str, dataset_id: str | None = None
) -> DatasetView:
    """dataset_id: one that its file was already kept under. Raises Conflict (QUOTA_EXCEEDED)."""
    report = new.report
    dataset_id = dataset_id or new_dataset_id()
    connection.execute(
        DATASETS.insert().values(
            dataset_id=dataset_id, project=project, name=new.name, description=new.description,
            tags=tags_text(new.tags), kind=report.kind, rows=report.rows, bytes=report.bytes, sha256=new.sha256,
            content_hash=report.content_hash, columns=json.dumps(new.columns, sort_keys=True), file_name=new.file_name,
            location=new.location, source_uri=new.source_uri, source_version_id=new.source_version_id,
            num_warnings=report.num_warnings, report=report.model_dump_json(), created_at=now(), added_by=actor,
        )
    )  # fmt: skip
    quotas.take(connection, actor, datasets=1, uploaded_bytes=report.bytes if new.source_uri is None else 0)
    audit.record(
        connection, actor, "dataset.add", dataset_id, {"name": new.name, "sha256": new.sha256}, project=project
    )
    return find_dataset(connection, dataset_id, project=project)


def list_datasets(
    connection: sa.Connection,
    *,
    project: str,
    search: str | None = None,
    tag: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[DatasetView]:
    """The newest first."""
    query = sa.select(*VIEW_COLUMNS).where(
        DATASETS.c.project == project,
        matching(search, DATASETS.c.dataset_id, DATASETS.c.name, DATASETS.c.description, DATASETS.c.tags),
        tagged(tag, DATASETS.c.tags),
    )
    return read_page(connection, query, key=DATASETS.c.sequence, after=after, limit=limit, make=_views)


def find_dataset(connection: sa.Connection, dataset_id: str, *, project: str) -> DatasetView:
    """Raises Unknown (UNKNOWN_DATASET)."""
    row = connection.execute(sa.select(*VIEW_COLUMNS).where(_is(project, dataset_id))).one_or_none()
    if row is None:
        raise _unknown(dataset_id)
    return _views([row])[0]


def dataset_name(connection: sa.Connection, dataset_id: str, *, project: str) -> str:
    """What its owner calls it: a look that each submission takes. Raises Unknown (UNKNOWN_DATASET)."""
    name = connection.execute(NAME, {"project": project, "dataset_id": dataset_id}).scalar_one_or_none()
    if name is None:
        raise _unknown(dataset_id)
    return name


def _unknown(dataset_id: str) -> Unknown:
    return Unknown(
        "UNKNOWN_DATASET",
        f"There is no dataset {dataset_id[:80]!r} here.",
        field="dataset",
        hint="List the datasets; each has an id that begins with ds-.",
    )


def read_report(connection: sa.Connection, dataset_id: str, *, project: str) -> DatasetReport:
    """Raises Unknown."""
    find_dataset(connection, dataset_id, project=project)
    text = connection.execute(sa.select(DATASETS.c.report).where(_is(project, dataset_id))).scalar_one()
    return DatasetReport.model_validate_json(text)


def change_dataset(
    connection: sa.Connection, dataset_id: str, change: NounChange, *, project: str, actor: str
) -> DatasetView:
    """Raises Unknown."""
    find_dataset(connection, dataset_id, project=project)
    given = change.model_dump(exclude_none=True)
    values = given | ({"tags": tags_text(given["tags"])} if "tags" in given else {})
    if values:
        connection.execute(DATASETS.update().where(_is(project, dataset_id)).values(values))
        audit.record(connection, actor, "dataset.change", dataset_id, {"changed": sorted(values)}, project=project)
    return find_dataset(connection, dataset_id, project=project)


def delete_dataset(connection: sa.Connection, dataset_id: str, *, project: str, actor: str) -> DatasetView:
    """Take it out of the catalog and return what it was: its file is to be removed once the transaction stands.

    Jobs that are not finished need it; the lineage of finished ones keeps its hashes. Raises Unknown,
    Conflict (DATASET_IN_USE).
    """
    dataset = find_dataset(connection, dataset_id, project=project)
    users = dataset_users(connection, dataset_id, project=project)
    if users:
        raise Conflict(
            "DATASET_IN_USE",
            f"The dataset {dataset_id} is used by {named(users)}.",
            field="dataset",
            hint="Wait until those jobs are finished, or cancel them.",
        )
    added_by = connection.execute(
        DATASETS.delete().where(_is(project, dataset_id)).returning(DATASETS.c.added_by)
    ).scalar_one()
    uploaded = dataset.bytes if dataset.source_uri is None else 0
    quotas.give_back(connection, added_by, datasets=1, uploaded_bytes=uploaded)
    audit.record(
        connection,
        actor,
        "dataset.delete",
        dataset_id,
        {"name": dataset.name, "sha256": dataset.sha256},
        project=project,
    )
    return dataset


def with_bytes(connection: sa.Connection, sha256: str) -> list[tuple[str, str]]:
    """Uploaded datasets of exactly these bytes: id and the name of the file that is kept."""
    query = sa.select(DATASETS.c.dataset_id, DATASETS.c.file_name).where(
        DATASETS.c.sha256 == sha256, DATASETS.c.source_uri.is_(None)
    )
    return [(row.dataset_id, row.file_name) for row in connection.execute(query.limit(5))]


def with_source(connection: sa.Connection, new: NewDataset, *, project: str) -> str | None:
    """The newest dataset of the same object in the same version, read by the same columns."""
    columns = DATASETS.c
    query = sa.select(columns.dataset_id).where(
        columns.project == project,
        columns.source_uri == new.source_uri,
        columns.source_version_id.is_not_distinct_from(new.source_version_id),
        columns.sha256 == new.sha256,
        columns.columns == json.dumps(new.columns, sort_keys=True),
    )
    return connection.execute(query.order_by(columns.sequence.desc()).limit(1)).scalar()


def own_datasets(connection: sa.Connection, dataset_ids: Collection[str], *, project: str) -> set[str]:
    """Those of them that are of the project."""
    query = sa.select(DATASETS.c.dataset_id).where(
        DATASETS.c.dataset_id.in_(dataset_ids), DATASETS.c.project == project
    )
    return set(connection.execute(query).scalars())


def dataset_users(connection: sa.Connection, dataset_id: str, *, project: str) -> list[str]:
    """The unfinished jobs that were asked to read it."""
    rows = connection.execute(
        sa.select(JOBS.c.job_id, JOBS.c.request)
        .where(JOBS.c.project == project, JOBS.c.state.not_in(FINAL_STATES))
        .where(JOBS.c.request.contains(json.dumps(dataset_id), autoescape=True))
        .order_by(JOBS.c.sequence)
    ).all()
    return [row.job_id for row in rows if _asks_for(json.loads(row.request), dataset_id)]


def sibling_datasets(connection: sa.Connection, dataset: DatasetView, *, project: str) -> list[DatasetView]:
    """Its other versions: datasets of the same name, or of the same place. The newest first."""
    columns = DATASETS.c
    is_alike = columns.name == dataset.name
    if dataset.source_uri is not None:
        is_alike = is_alike | (columns.source_uri == dataset.source_uri)
    query = sa.select(*VIEW_COLUMNS).where(
        columns.project == project, columns.dataset_id != dataset.dataset_id, is_alike
    )
    return _views(connection.execute(query.order_by(columns.sequence.desc()).limit(MAXIMUM_SIBLINGS)).all())


def _asks_for(request: dict[str, Any], dataset_id: str) -> bool:
    return any(request.get(field) == dataset_id for field in ASKED_FIELDS)


def _is(project: str, dataset_id: str) -> sa.ColumnElement[bool]:
    return (DATASETS.c.project == project) & (DATASETS.c.dataset_id == dataset_id)


def _views(rows: Sequence[sa.Row[Any]]) -> list[DatasetView]:
    views: list[DatasetView] = []
    for row in rows:
        fields = fields_of(row)
        del fields["sequence"]
        documents = {"tags": json.loads(row.tags), "columns": json.loads(row.columns)}
        views.append(DatasetView.model_validate(fields | documents))
    return views
