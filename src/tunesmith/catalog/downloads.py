"""Downloads of base models: durable rows that move along one table; functions inside a caller's transaction.

Of no project, as the base models that they become. Every move is one conditional UPDATE. Who does the work, and what
happens to bytes, is `jobs/downloads.py`'s.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.paging import Page, read_page, tags_text
from tunesmith.errors import Conflict, TunesmithError, Unknown
from tunesmith.spec.catalog import DEFAULT_PROJECT
from tunesmith.spec.hub import DOWNLOAD_MOVES, DownloadPlan, DownloadState, DownloadView, NewDownload
from tunesmith.storage.tables import DOWNLOADS

COLUMNS = DOWNLOADS.c


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadWork:
    """What its worker needs beside the view."""

    view: DownloadView
    plan: DownloadPlan
    description: str
    tags: dict[str, str]
    attempts: int


def add_download(
    connection: sa.Connection,
    new: NewDownload,
    *,
    name: str,
    revision: str,
    target_uri: str,
    plan: DownloadPlan,
    actor: str,
) -> str:
    """Raises Conflict (DOWNLOAD_RUNNING) where the same commit is on its way to the same place."""
    running = connection.execute(
        sa.select(COLUMNS.download_id)
        .where(COLUMNS.target_uri == target_uri)
        .where(COLUMNS.state.in_((DownloadState.WAITING, DownloadState.RUNNING)))
    ).scalar()
    if running is not None:
        raise Conflict(
            "DOWNLOAD_RUNNING", f"{new.hub_id} is on its way to that place already: {running}.", field="hub_id",
            hint="Follow that download, or cancel it first.",
        )  # fmt: skip
    download_id = f"dl-{secrets.token_hex(6)}"
    connection.execute(
        DOWNLOADS.insert().values(
            download_id=download_id, project=DEFAULT_PROJECT, submitted_by=actor, state=DownloadState.WAITING,
            attempts=0, is_cancel_wanted=False, name=name, hub_id=new.hub_id, revision=revision, location=new.location,
            target_uri=target_uri, plan=plan.model_dump_json(), description=new.description,
            tags=tags_text(new.tags), bytes_total=plan.bytes, bytes_done=0, created_at=now(),
        )
    )  # fmt: skip
    audit.record(connection, actor, "model.download", download_id, {"hub_id": new.hub_id, "revision": revision})
    return download_id


def list_downloads(
    connection: sa.Connection,
    *,
    state: DownloadState | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Page[DownloadView]:
    """The newest first."""
    query = sa.select(DOWNLOADS)
    if state is not None:
        query = query.where(COLUMNS.state == state)
    return read_page(connection, query, key=COLUMNS.sequence, after=after, limit=limit, make=_views)


def find_download(connection: sa.Connection, download_id: str) -> DownloadView:
    """Raises Unknown (UNKNOWN_DOWNLOAD)."""
    return _views([_row(connection, download_id)])[0]


def read_work(connection: sa.Connection, download_id: str) -> DownloadWork:
    row = _row(connection, download_id)
    return DownloadWork(
        view=_views([row])[0],
        plan=DownloadPlan.model_validate_json(row.plan),
        description=row.description,
        tags=json.loads(row.tags),
        attempts=row.attempts,
    )


def due_downloads(connection: sa.Connection, *, at: float) -> list[str]:
    """Those that wait and whose time has come, and those that ran when their server ended; the oldest first."""
    rows = connection.execute(
        sa.select(COLUMNS.download_id)
        .where(
            (COLUMNS.state == DownloadState.RUNNING)
            | ((COLUMNS.state == DownloadState.WAITING) & (sa.func.coalesce(COLUMNS.retry_at, 0) <= at))
        )
        .order_by(COLUMNS.sequence)
    )
    return list(rows.scalars())


def move_download(connection: sa.Connection, download_id: str, state: DownloadState, **fields: Any) -> None:
    """Raises TunesmithError (FORBIDDEN_MOVE)."""
    allowed = [before for before, moves in DOWNLOAD_MOVES.items() if state in moves]
    changed = connection.execute(
        DOWNLOADS.update()
        .where(COLUMNS.download_id == download_id, COLUMNS.state.in_(allowed))
        .values({"waiting_reason": None, "retry_at": None} | fields | {"state": state})
    )
    if changed.rowcount != 1:
        raise TunesmithError("FORBIDDEN_MOVE", f"The download {download_id} cannot become {state}.", field="state")


def note_progress(connection: sa.Connection, download_id: str, done: int) -> bool:
    """Keep how many bytes are here. Returns whether somebody wants it cancelled."""
    row = connection.execute(
        DOWNLOADS.update()
        .where(COLUMNS.download_id == download_id)
        .values(bytes_done=done)
        .returning(COLUMNS.is_cancel_wanted)
    ).one()
    return bool(row.is_cancel_wanted)


def cancel_download(connection: sa.Connection, download_id: str, *, actor: str) -> DownloadView:
    """One that waits ends at once, one that runs within seconds. Raises Unknown, Conflict (DOWNLOAD_ENDED)."""
    view = find_download(connection, download_id)
    if view.state is DownloadState.WAITING:
        move_download(connection, download_id, DownloadState.CANCELED, finished_at=now())
    elif view.state is DownloadState.RUNNING:
        connection.execute(DOWNLOADS.update().where(COLUMNS.download_id == download_id).values(is_cancel_wanted=True))
    else:
        raise Conflict("DOWNLOAD_ENDED", f"The download {download_id} is {view.state} already.", field="download_id")
    audit.record(connection, actor, "download.cancel", download_id)
    return find_download(connection, download_id)


def resume_download(connection: sa.Connection, download_id: str, *, actor: str) -> DownloadView:
    """What is whole is kept. Raises Unknown, Conflict (DOWNLOAD_ENDED, DOWNLOAD_RUNNING)."""
    view = find_download(connection, download_id)
    if view.state is DownloadState.SUCCEEDED:
        raise Conflict("DOWNLOAD_ENDED", f"The download {download_id} has succeeded.", field="download_id")
    if view.state is DownloadState.RUNNING:
        raise Conflict("DOWNLOAD_RUNNING", f"The download {download_id} is running.", field="download_id")
    if view.state is DownloadState.WAITING:
        connection.execute(DOWNLOADS.update().where(COLUMNS.download_id == download_id).values(retry_at=None))
    else:
        move_download(
            connection, download_id, DownloadState.WAITING, attempts=0, is_cancel_wanted=False, failure=None,
            finished_at=None,
        )  # fmt: skip
    audit.record(connection, actor, "download.resume", download_id)
    return find_download(connection, download_id)


def _row(connection: sa.Connection, download_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(DOWNLOADS).where(COLUMNS.download_id == download_id)).one_or_none()
    if row is None:
        raise Unknown(
            "UNKNOWN_DOWNLOAD", f"There is no download {download_id[:60]!r} here.", field="download_id",
            hint="`tunesmith download list` lists them.",
        )  # fmt: skip
    return row


def _views(rows: Sequence[sa.Row[Any]]) -> list[DownloadView]:
    views: list[DownloadView] = []
    for row in rows:
        plan = DownloadPlan.model_validate_json(row.plan)
        views.append(
            DownloadView(
                download_id=row.download_id, state=DownloadState(row.state), waiting_reason=row.waiting_reason,
                name=row.name, hub_id=row.hub_id, revision=row.revision, location=row.location,
                target_uri=row.target_uri, files=len(plan.files), left_out=plan.left_out,
                bytes_total=row.bytes_total, bytes_done=row.bytes_done, is_cancel_wanted=row.is_cancel_wanted,
                failure=json.loads(row.failure) if row.failure else None, submitted_by=row.submitted_by,
                created_at=row.created_at, finished_at=row.finished_at,
            )
        )  # fmt: skip
    return views
