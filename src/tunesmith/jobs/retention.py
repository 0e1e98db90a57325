"""What may be removed from a state folder, and its removal: nothing that an unfinished job uses.

In: the home, its database, an age. Out: a list with bytes and reasons, which `remove` takes. Checkpoints go once their
job is finished; caches are made anew when needed; uploads go that no dataset names; logs as their named log says.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.jobs.backup import tree_bytes
from tunesmith.jobs.home import Home
from tunesmith.jobs.parents import adapters_folder
from tunesmith.jobs.records import JobFolder
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.spec.state import Waste, WasteKind
from tunesmith.storage.database import Database
from tunesmith.storage.fetch import fetched_folder
from tunesmith.storage.tables import DATASETS, JOBS, LOGS

DAY = 86_400.0
IN_USE_SECONDS = DAY  # an upload that arrives, or an inspection that runs, is younger


def find_waste(home: Home, database: Database, *, older_than_days: float, now: float | None = None) -> list[Waste]:
    """Everything that may go and is older than that. now: seconds since the epoch."""
    moment = time.time() if now is None else now
    before = moment - older_than_days * DAY
    with database.read() as connection:
        jobs = connection.execute(sa.select(JOBS.c.job_id, JOBS.c.state, JOBS.c.finished_at, JOBS.c.log)).all()
        datasets = set(connection.execute(sa.select(DATASETS.c.dataset_id)).scalars())
        logs = connection.execute(sa.select(LOGS)).all()
    finished = {row.job_id: _seconds(row.finished_at) for row in jobs if row.state in FINAL_STATES}
    has_unfinished = len(finished) < len(jobs)
    return [
        *_checkpoints(home, finished, before),
        *_caches(home, before, has_unfinished=has_unfinished),
        *_uploads(home, datasets, min(before, moment - IN_USE_SECONDS)),
        *_logs(home, jobs, finished, logs, moment),
    ]


def drop_old_logs(home: Home, database: Database, *, now: float | None = None) -> list[Waste]:
    """Remove what named logs keep no longer; returns it. A server does this by itself."""
    with database.read() as connection:
        logs = connection.execute(sa.select(LOGS)).all()
        columns = (JOBS.c.job_id, JOBS.c.state, JOBS.c.finished_at, JOBS.c.log)
        jobs = connection.execute(sa.select(*columns).where(JOBS.c.log.is_not(None))).all()
    finished = {row.job_id: _seconds(row.finished_at) for row in jobs if row.state in FINAL_STATES}
    dropped = list(_logs(home, jobs, finished, logs, time.time() if now is None else now))
    for each in dropped:
        remove(each)
    return dropped


def remove(waste: Waste) -> None:
    """Gone already is as good. Raises OSError."""
    path = Path(waste.path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _checkpoints(home: Home, finished: dict[str, float], before: float) -> Iterator[Waste]:
    for job_id, finished_at in sorted(finished.items()):
        path = JobFolder(path=home.jobs / job_id).path / "checkpoints"
        if finished_at < before and path.is_dir():
            yield _waste(WasteKind.CHECKPOINTS, path, f"{job_id} is finished")


def _caches(home: Home, before: float, *, has_unfinished: bool) -> Iterator[Waste]:
    """By the time of their last change. Whose tokens an unfinished job reads is told by no name: then all stay."""
    if not has_unfinished:
        for kind, folder in (
            (WasteKind.TOKENS, home.cache / "tokens"),
            (WasteKind.OBJECTS, fetched_folder(home.cache)),
            (WasteKind.OBJECTS, adapters_folder(home)),
        ):
            yield from (_waste(kind, path, "made anew when needed") for path in _older(folder, before))
    for path in _older(home.cache / "inspections", min(before, time.time() - IN_USE_SECONDS)):
        yield _waste(WasteKind.INSPECTIONS, path, "made anew when needed")


def _uploads(home: Home, datasets: set[str], before: float) -> Iterator[Waste]:
    for path in _older(home.uploads, before):
        yield _waste(WasteKind.UPLOADS, path, "an upload that never became a dataset")
    for path in _older(home.datasets, before):
        if path.name not in datasets:
            yield _waste(WasteKind.UPLOADS, path, "no dataset names it")


def _logs(home: Home, jobs: Any, finished: dict[str, float], logs: Any, moment: float) -> Iterator[Waste]:
    """Of finished jobs with a named log: beyond its retention, then the oldest above its size."""
    for log in logs:
        kept: list[tuple[float, Path]] = []
        total = 0
        for job in jobs:
            path = JobFolder(path=home.jobs / job.job_id).worker_log
            if job.log != log.name or not path.is_file():
                continue
            if job.job_id in finished and finished[job.job_id] < moment - log.retention_days * DAY:
                yield _waste(WasteKind.LOG, path, f"the log {log.name} keeps {log.retention_days} days")
                continue
            total += path.stat().st_size
            if job.job_id in finished:
                kept.append((finished[job.job_id], path))
        for _, path in sorted(kept):
            if total <= log.maximum_bytes:
                break
            total -= path.stat().st_size
            yield _waste(WasteKind.LOG, path, f"the log {log.name} keeps {log.maximum_bytes:,} bytes")


def _older(folder: Path, before: float) -> list[Path]:
    """Entries whose newest change, at any depth, is before that time."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if _changed_at(path) < before]


def _changed_at(path: Path) -> float:
    newest = 0.0
    for each in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        try:
            newest = max(newest, each.lstat().st_mtime)
        except FileNotFoundError:
            return time.time()  # somebody is at work there
    return newest


def _seconds(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text is not None else time.time()


def _waste(kind: WasteKind, path: Path, reason: str) -> Waste:
    return Waste(kind=kind, path=str(path), bytes=tree_bytes(path), reason=reason)
