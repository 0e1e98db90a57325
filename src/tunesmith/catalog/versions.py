"""Model versions: find, list, describe, change, delete; with their lineage, metrics and verdict.

A version is named `set:number`, or `set@alias`. While its job trains, its metrics are the job's epoch events; at the
end they stand in its own row (`final_columns`). Numbers and moves are `numbers.py`'s; files are `artifacts.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic import TypeAdapter

from tunesmith.catalog import audit, quotas
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import named
from tunesmith.catalog.numbers import move_version
from tunesmith.catalog.paging import Page, matching, read_page, tagged, tags_text
from tunesmith.catalog.sets import find_alias
from tunesmith.errors import Conflict, Unknown, UsageFault
from tunesmith.spec.artifacts import Manifest
from tunesmith.spec.catalog import (
    MAXIMUM_PAGE,
    Lineage,
    NounChange,
    VersionDetail,
    VersionMetrics,
    VersionState,
    VersionView,
)
from tunesmith.spec.metrics import EpochEvent, EpochMetrics, Sample, SamplesEvent, SplitMetrics
from tunesmith.spec.verdict import Verdict
from tunesmith.storage.tables import ALIASES, EVENTS, MODEL_VERSIONS, VERSION_SETS

SHOWN_STATES = {
    VersionState.CREATING: "In progress",
    VersionState.ACTIVE: "Active",
    VersionState.FAILED: "Failed",
    VersionState.CANCELED: "Canceled",
    VersionState.DELETED: "Deleted",
}
DOCUMENTS = ("lineage", "manifest", "verdict", "samples")  # a list does not read them
SAMPLES = TypeAdapter(list[Sample])
VIEW_COLUMNS = [column for column in MODEL_VERSIONS.c if column.name not in DOCUMENTS]


def final_columns(
    *,
    lineage: Lineage | None = None,
    metrics: VersionMetrics | None = None,
    verdict: Verdict | None = None,
    manifest: Manifest | None = None,
    artifact_uri: str | None = None,
) -> dict[str, Any]:
    """The columns that a version gets with its final state (`JobStore.move(..., version=...)`); absent ones stay."""
    documents = {"lineage": lineage, "metrics": metrics, "verdict": verdict, "manifest": manifest}
    columns: dict[str, Any] = {name: value.model_dump_json() for name, value in documents.items() if value is not None}
    if artifact_uri is not None:
        columns["artifact_uri"] = artifact_uri
    if metrics is not None:
        columns["best_epoch"] = metrics.best_epoch
    if verdict is not None:
        columns["outcome"] = verdict.outcome
    return columns


# ---- reading


def list_versions(
    connection: sa.Connection,
    *,
    project: str,
    search: str | None = None,
    version_set: str | None = None,
    state: VersionState | None = None,
    tag: str | None = None,
    base_name: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[VersionView]:
    """The newest first. Deleted ones only where `state` asks for them. Raises UsageFault (BAD_CURSOR, BAD_OPTION)."""
    columns = MODEL_VERSIONS.c
    query = sa.select(*VIEW_COLUMNS).where(
        columns.project == project,
        matching(search, columns.model_version, columns.name, columns.description, columns.tags, columns.base_name),
        tagged(tag, columns.tags),
        columns.state != VersionState.DELETED if state is None else columns.state == state,
    )
    if base_name is not None:
        query = query.where(columns.base_name == base_name)
    if version_set is not None:
        sets = sa.select(VERSION_SETS.c.set_id).where(
            VERSION_SETS.c.project == project, VERSION_SETS.c.name == version_set
        )
        query = query.where(columns.set_id == sets.scalar_subquery())
    return read_page(
        connection, query, key=columns.sequence, after=after, limit=limit, make=lambda rows: _views(connection, rows)
    )


def trained_on(connection: sa.Connection, *, dataset_id: str, content_hash: str, project: str) -> list[VersionView]:
    """Versions that read this dataset, or one with the same rows; the newest first, without deleted ones."""
    columns = MODEL_VERSIONS.c
    rows = connection.execute(
        sa.select(*VIEW_COLUMNS)
        .where(columns.project == project, columns.state != VersionState.DELETED)
        .where(columns.lineage.contains(f'"{dataset_id}"') | columns.lineage.contains(f'"{content_hash}"'))
        .order_by(columns.sequence.desc())
        .limit(MAXIMUM_PAGE)
    ).all()
    return _views(connection, rows)


def find_version(connection: sa.Connection, name: str, *, project: str) -> VersionView:
    """By `set:number` or `set@alias`; a deleted one too. Raises UsageFault (BAD_VERSION_NAME), Unknown."""
    row = _row(connection, resolve(connection, name, project=project), VIEW_COLUMNS, project=project)
    return _views(connection, [row])[0]


def describe_version(connection: sa.Connection, name: str, *, project: str) -> VersionDetail:
    """All that is known of it. Raises as find_version."""
    row = _row(connection, resolve(connection, name, project=project), list(MODEL_VERSIONS.c), project=project)
    children = connection.execute(
        sa.select(MODEL_VERSIONS.c.model_version)
        .where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.parent == row.model_version)
        .where(MODEL_VERSIONS.c.state != VersionState.DELETED)
        .order_by(MODEL_VERSIONS.c.sequence)
        .limit(100)
    ).scalars()
    return VersionDetail(
        version=_views(connection, [row])[0],
        lineage=Lineage.model_validate_json(row.lineage) if row.lineage else None,
        metrics=_metrics(connection, row),
        verdict=Verdict.model_validate_json(row.verdict) if row.verdict else None,
        files=Manifest.model_validate_json(row.manifest).files if row.manifest else [],
        children=list(children),
        samples=_samples(connection, row),
    )


def read_metrics(connection: sa.Connection, name: str, *, project: str) -> VersionMetrics:
    """The metrics panel, while its job trains too. Raises as find_version."""
    columns = [MODEL_VERSIONS.c.metrics, MODEL_VERSIONS.c.job_id]
    return _metrics(connection, _row(connection, resolve(connection, name, project=project), columns, project=project))


def read_manifest(connection: sa.Connection, name: str, *, project: str) -> Manifest:
    """What the files of an ACTIVE version are. Raises as find_version, and Conflict (VERSION_NOT_ACTIVE)."""
    require_active(find_version(connection, name, project=project))
    model_version = resolve(connection, name, project=project)
    row = _row(connection, model_version, [MODEL_VERSIONS.c.manifest], project=project)
    if row.manifest is None:
        raise Conflict(
            "VERSION_NOT_ACTIVE", f"The catalog keeps no manifest of {model_version}.", field="model_version"
        )
    return Manifest.model_validate_json(row.manifest)


def require_active(version: VersionView) -> None:
    """Before anything is read, served, exported or trained on. Raises Conflict (VERSION_NOT_ACTIVE)."""
    if version.state is not VersionState.ACTIVE:
        raise Conflict(
            "VERSION_NOT_ACTIVE",
            f"{version.model_version} is {version.state}: only an ACTIVE version can be used.",
            field="model_version",
            hint="Its job has not succeeded yet." if version.state is VersionState.CREATING else "Take another one.",
        )


def resolve(connection: sa.Connection, name: str, *, project: str) -> str:
    """`set:number` of what the user wrote. Raises UsageFault (BAD_VERSION_NAME), Unknown (UNKNOWN_ALIAS, ..._SET)."""
    if "@" in name:
        version_set, _, alias = name.partition("@")
        return find_alias(connection, version_set, alias, project=project).model_version
    version_set, colon, number = name.rpartition(":")
    if not colon or not version_set or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        raise UsageFault(
            "BAD_VERSION_NAME",
            f"{name[:120]!r} names no model version.",
            field="model_version",
            hint="Write SET:NUMBER or SET@ALIAS, as in support-bot:3 or support-bot@prod.",
        )
    return f"{version_set}:{int(number)}"


# ---- changing


def change_version(
    connection: sa.Connection, name: str, change: NounChange, *, project: str, actor: str
) -> VersionView:
    """Raises as find_version, and Conflict (VERSION_DELETED)."""
    version = find_version(connection, name, project=project)
    if version.state is VersionState.DELETED:
        raise Conflict("VERSION_DELETED", f"{version.model_version} is deleted.", field="model_version")
    given = change.model_dump(exclude_none=True)
    values = given | ({"tags": tags_text(given["tags"])} if "tags" in given else {})
    if values:
        connection.execute(
            MODEL_VERSIONS.update().where(_is(project, version.model_version)).values(values | {"changed_at": now()})
        )
        audit.record(
            connection, actor, "version.change", version.model_version, {"changed": sorted(values)}, project=project
        )
    return find_version(connection, version.model_version, project=project)


def delete_version(connection: sa.Connection, name: str, *, with_bytes: bool, project: str, actor: str) -> VersionView:
    """Move it to DELETED. Its files go afterwards, by `artifacts.remove_bytes`, where `with_bytes` says so.

    One that was deleted with its files kept may be deleted again with them. Raises as find_version, and Conflict
    (VERSION_ALIASED, VERSION_IN_USE).
    """
    version = find_version(connection, name, project=project)
    model_version = version.model_version
    if version.state is not VersionState.DELETED:
        _require_unused(connection, version, project=project)
        move_version(connection, project=project, model_version=model_version, state=VersionState.DELETED, now=now())
        _give_back(connection, version)
    if with_bytes and version.artifact_uri is not None:
        _require_own_files(connection, version)
        connection.execute(MODEL_VERSIONS.update().where(_is(project, model_version)).values(is_losing_bytes=True))
    if version.state is not VersionState.DELETED or with_bytes:
        audit.record(connection, actor, "version.delete", model_version, {"with_bytes": with_bytes}, project=project)
    return find_version(connection, model_version, project=project)


def outlive_job(connection: sa.Connection, job_id: str) -> None:
    """Keep in the version's own row what would go with its job's events."""
    row = connection.execute(sa.select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.job_id == job_id)).one_or_none()
    if row is None:
        return
    connection.execute(
        MODEL_VERSIONS.update()
        .where(_is(row.project, row.model_version))
        .values(
            metrics=_metrics(connection, row).model_dump_json(),
            samples=SAMPLES.dump_json(_samples(connection, row)).decode(),
            is_job_deleted=True,
        )
    )


def _give_back(connection: sa.Connection, version: VersionView) -> None:
    where = _is(version.project, version.model_version)
    owner = connection.execute(sa.select(MODEL_VERSIONS.c.made_by).where(where)).scalar()
    if owner is not None:
        quotas.give_back(connection, owner, versions=1)


def _require_unused(connection: sa.Connection, version: VersionView, *, project: str) -> None:
    if version.aliases:
        shown = ", ".join(f"{version.version_set}@{alias}" for alias in version.aliases)
        raise Conflict(
            "VERSION_ALIASED",
            f"{version.model_version} cannot be deleted: {shown} points at it.",
            field="model_version",
            hint="Move or remove the alias first.",
        )
    users = connection.execute(
        sa.select(MODEL_VERSIONS.c.job_id)
        .where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.state == VersionState.CREATING)
        .where(
            (MODEL_VERSIONS.c.model_version == version.model_version)
            | (MODEL_VERSIONS.c.parent == version.model_version)
        )
        .order_by(MODEL_VERSIONS.c.sequence)
    ).scalars()
    running = [user for user in users if user is not None]
    if running or version.state is VersionState.CREATING:
        raise Conflict(
            "VERSION_IN_USE",
            f"{version.model_version} cannot be deleted: the job {named(running)} is not finished.",
            field="model_version",
            hint="Wait for it, or cancel it.",
        )


def _require_own_files(connection: sa.Connection, version: VersionView) -> None:
    other = connection.execute(
        sa.select(MODEL_VERSIONS.c.model_version)
        .where(MODEL_VERSIONS.c.artifact_uri == version.artifact_uri)
        .where(MODEL_VERSIONS.c.model_version != version.model_version)
        .where(MODEL_VERSIONS.c.state == VersionState.ACTIVE)
    ).first()
    if other is not None:
        raise Conflict(
            "VERSION_IN_USE",
            f"The files of {version.model_version} are those of {other.model_version} too.",
            field="model_version",
            hint="Delete it without its files.",
        )


# ---- rows


def _is(project: str, model_version: str) -> sa.ColumnElement[bool]:
    return (MODEL_VERSIONS.c.project == project) & (MODEL_VERSIONS.c.model_version == model_version)


def _row(connection: sa.Connection, model_version: str, columns: list[sa.Column[Any]], *, project: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(*columns).where(_is(project, model_version))).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_VERSION",
            f"There is no model version {model_version[:120]!r} here.",
            field="model_version",
            hint="List the versions; each is named SET:NUMBER.",
        )
    return row


def _views(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[VersionView]:
    aliases: dict[tuple[int, int], list[str]] = {}
    ids = {row.set_id for row in rows}
    for alias in connection.execute(sa.select(ALIASES).where(ALIASES.c.set_id.in_(ids)).order_by(ALIASES.c.alias)):
        aliases.setdefault((alias.set_id, alias.number), []).append(alias.alias)
    return [
        VersionView(
            model_version=row.model_version, version_set=row.model_version.rpartition(":")[0], number=row.number,
            project=row.project, state=VersionState(row.state), shown_state=SHOWN_STATES[VersionState(row.state)],
            name=row.name, description=row.description, tags=json.loads(row.tags),
            aliases=aliases.get((row.set_id, row.number), []), base_name=row.base_name, job_id=row.job_id,
            is_job_deleted=row.is_job_deleted, parent=row.parent, results_uri=row.results_uri,
            artifact_uri=row.artifact_uri, best_epoch=row.best_epoch, outcome=row.outcome,
            best=_best(row.metrics, row.best_epoch),
            created_at=row.created_at, changed_at=row.changed_at,
        )
        for row in rows
    ]  # fmt: skip


def _best(metrics: str | None, best_epoch: int | None) -> SplitMetrics | None:
    """Out of the metrics as they are stored: a list reads many, and wants one epoch of each."""
    if metrics is None or best_epoch is None:
        return None
    for epoch in orjson.loads(metrics)["epochs"]:
        if epoch["epoch"] == best_epoch and epoch["validation"] is not None:
            return SplitMetrics.model_validate(epoch["validation"])
    return None


def _of_kind(job_id: str | None, kind: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Without the last SQLite takes the primary key for the order, and reads every event of the job to find a few."""
    return EVENTS.c.job_id == job_id, EVENTS.c.kind == kind, EVENTS.c.number > 0


def _samples(connection: sa.Connection, row: sa.Row[Any]) -> list[Sample]:
    """Of the newest attempt that came so far."""
    if row.samples is not None:
        return SAMPLES.validate_json(row.samples)
    body = connection.execute(
        sa.select(EVENTS.c.body).where(*_of_kind(row.job_id, "samples")).order_by(EVENTS.c.number.desc()).limit(1)
    ).scalar()
    return SamplesEvent.model_validate_json(body).samples if body is not None else []


def _metrics(connection: sa.Connection, row: sa.Row[Any]) -> VersionMetrics:
    if row.metrics:
        return VersionMetrics.model_validate_json(row.metrics)
    bodies = connection.execute(
        sa.select(EVENTS.c.body).where(*_of_kind(row.job_id, "epoch")).order_by(EVENTS.c.number)
    ).scalars()
    events = {event.epoch: event for event in map(EpochEvent.model_validate_json, bodies)}  # an attempt may repeat one
    return VersionMetrics(
        epochs=[
            EpochMetrics(epoch=epoch, training=events[epoch].training, validation=events[epoch].validation)
            for epoch in sorted(events)
        ]
    )
