"""What a user may ask of a job that was submitted: cancel, pause, resume.

In: a job's id. Out: its record as the wish left it. A wish is written into the state database and nothing else happens
here: whoever looks after the job sees it within half a second, and for one that nobody looks after it is done at once.
With `connection` a wish joins the caller's transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.errors import Conflict
from tunesmith.jobs.launcher import is_running
from tunesmith.jobs.store import JobStore, lease_is_held
from tunesmith.spec.jobs import FINAL_STATES, JobRecord, JobState
from tunesmith.storage.tables import JOBS

PAUSED = "Somebody paused it."


def cancel(store: JobStore, job_id: str, *, connection: sa.Connection | None = None) -> JobRecord:
    """CANCELED at once where no worker runs, else CANCELING. Raises Unknown, Conflict (JOB_FINISHED)."""

    def ask(connection: sa.Connection) -> JobRecord:
        record = store.read(job_id, connection=connection)
        if record.state in (JobState.CANCELING, JobState.CANCELED):
            return record
        _require_unfinished(record, "canceled")
        if record.state is JobState.ACCEPTED:
            return store.move(job_id, JobState.CANCELED, lease=None, connection=connection)
        moved = store.move(job_id, JobState.CANCELING, lease=None, connection=connection)
        if is_looked_after(connection, job_id) or has_worker(record):
            return moved
        return store.move(job_id, JobState.CANCELED, lease=None, connection=connection)

    return _together(store, connection, ask)


def pause(store: JobStore, job_id: str, *, connection: sa.Connection | None = None) -> JobRecord:
    """It stops with a checkpoint, or does not start, until resumed. Raises Unknown, Conflict."""

    def ask(connection: sa.Connection) -> JobRecord:
        record = store.read(job_id, connection=connection)
        _require_unfinished(record, "paused")
        _require_not_canceling(record, "paused")
        changes: dict[str, Any] = {"is_paused": True}
        if not is_looked_after(connection, job_id) and not has_worker(record):
            is_started = record.state is JobState.IN_PROGRESS
            changes |= {"waiting_reason": PAUSED, "retry_at": None} | ({"phase": "waiting"} if is_started else {})
        return _change(store, connection, record, changes)

    return _together(store, connection, ask)


def resume(store: JobStore, job_id: str, *, connection: sa.Connection | None = None) -> JobRecord:
    """A paused or waiting job goes on as soon as a device is free; one that runs is left so. Raises as `pause`."""

    def ask(connection: sa.Connection) -> JobRecord:
        record = store.read(job_id, connection=connection)
        _require_unfinished(record, "resumed", hint="`tunesmith job clone` makes a new job with the same settings.")
        _require_not_canceling(record, "resumed")
        changes: dict[str, Any] = {"is_paused": False}
        if record.phase == "waiting":
            changes["retry_at"] = time.time()
        elif record.state is JobState.ACCEPTED:
            changes["waiting_reason"] = None
        return _change(store, connection, record, changes)

    return _together(store, connection, ask)


def ask(store: JobStore, job_id: str, what: Literal["cancel", "pause", "resume"], *, actor: str) -> JobRecord:
    """A wish and its line in the audit, in one transaction. Raises as the wish."""

    def write(connection: sa.Connection) -> JobRecord:
        record = WISHES[what](store, job_id, connection=connection)
        audit.record(connection, actor, f"job.{what}", job_id, project=record.project)
        return record

    return store.database.write_grouped(write)


WISHES = {"cancel": cancel, "pause": pause, "resume": resume}


def is_looked_after(connection: sa.Connection, job_id: str) -> bool:
    """Whether a live process holds the job's lease."""
    row = connection.execute(
        sa.select(JOBS.c.lease_owner, JOBS.c.lease_until).where(JOBS.c.job_id == job_id)
    ).one()  # fmt: skip
    return lease_is_held(row.lease_owner, row.lease_until, now=time.time())


def has_worker(record: JobRecord) -> bool:
    pid = record.worker_pid
    return pid is not None and is_running(pid, started_at=record.worker_started_at)


def _change(store: JobStore, connection: sa.Connection, record: JobRecord, changes: dict[str, Any]) -> JobRecord:
    """Fields that anybody may change without the lease: wishes to whoever holds it."""
    connection.execute(JOBS.update().where(JOBS.c.job_id == record.job_id).values(changes))
    return store.read(record.job_id, connection=connection)


def _together(
    store: JobStore, connection: sa.Connection | None, ask: Callable[[sa.Connection], JobRecord]
) -> JobRecord:
    return ask(connection) if connection is not None else store.database.write_grouped(ask)


def _require_unfinished(record: JobRecord, done: str, *, hint: str | None = None) -> None:
    if record.state in FINAL_STATES:
        raise Conflict(
            "JOB_FINISHED",
            f"Job {record.job_id} is {record.state}: a finished job cannot be {done}.",
            field="JOB",
            hint=hint,
        )


def _require_not_canceling(record: JobRecord, done: str) -> None:
    if record.state is JobState.CANCELING:
        raise Conflict(
            "JOB_CANCELING", f"Job {record.job_id} is being canceled: it cannot be {done}.", field="JOB"
        )  # fmt: skip
