"""Deletes a job that has ended: its entry, its events and its folder. What it made stays in the catalog.

In: a job's id. Out: what would go and what would stay, for whoever has to decide; then the deletion. A kill at any line
leaves either the whole job or a marked folder that nobody knows, which `finish_deletions` removes.
"""

from __future__ import annotations

import shutil
import time

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.versions import outlive_job
from tunesmith.errors import Conflict, MachineCannot
from tunesmith.jobs.backup import tree_bytes
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.jobs.store import lease_is_held
from tunesmith.spec.api import JobDeletion
from tunesmith.spec.jobs import FINAL_STATES, JobRecord, JobState
from tunesmith.storage.database import Database
from tunesmith.storage.tables import EVENTS, JOBS

MARK = ".deleting"


def what_goes(job_id: str, *, state: State) -> JobDeletion:
    """Raises Unknown, Conflict (JOB_NOT_FINISHED)."""
    record = state.jobs.read(job_id)
    _require_ended(record)
    folder = JobFolder(path=state.home.jobs / job_id)
    num_bytes = tree_bytes(folder.path) if folder.path.is_dir() else 0
    goes = [
        f"its entry and its {record.num_events:,} events, with the curves by step",
        f"its folder of {num_bytes / 1e6:,.1f} MB: checkpoints, plan, log, and its own copy of the artifact",
    ]
    stays = [f"the model version {record.model_version}: lineage, metrics of each epoch, verdict, samples"]
    if record.artifact_uri is not None:
        stays.append(f"the published files in {record.artifact_uri}, the ledger of rows among them")
    stays.append("its lines in the audit log")
    return JobDeletion(
        job_id=job_id, model_version=record.model_version, bytes=num_bytes, goes=goes, stays=stays
    )  # fmt: skip


def delete_job(connection: sa.Connection, job_id: str, *, state: State, actor: str) -> None:
    """Its rows, inside the caller's transaction; `remove_folder` follows once that is durable.

    Raises Unknown, Conflict (JOB_NOT_FINISHED), MachineCannot (JOB_BUSY) in the moment in which its end is put away.
    """
    record = state.jobs.read(job_id, connection=connection)
    _require_ended(record)
    lease = connection.execute(sa.select(JOBS.c.lease_owner, JOBS.c.lease_until).where(JOBS.c.job_id == job_id)).one()
    if lease_is_held(lease.lease_owner, lease.lease_until, now=time.time()):
        raise MachineCannot(
            "JOB_BUSY", f"The end of job {job_id} is just being put away.", field="JOB", hint="Try again in a moment."
        )  # fmt: skip
    _mark(JobFolder(path=state.home.jobs / job_id))
    outlive_job(connection, job_id)
    connection.execute(EVENTS.delete().where(EVENTS.c.job_id == job_id))
    connection.execute(JOBS.delete().where(JOBS.c.job_id == job_id))
    told = {"version": record.model_version, "state": record.state.value}
    audit.record(connection, actor, "job.delete", job_id, told, project=record.project)


def remove_folder(job_id: str, *, home: Home) -> None:
    shutil.rmtree(home.jobs / job_id, ignore_errors=True)


def finish_deletions(home: Home, database: Database) -> list[str]:
    """Remove the folders whose deletion was cut short; of a job that is still there the mark alone."""
    marked = {mark.parent.name: mark for mark in home.jobs.glob(f"*/{MARK}")}
    if not marked:
        return []
    with database.read() as connection:
        known = set(connection.execute(sa.select(JOBS.c.job_id).where(JOBS.c.job_id.in_(marked))).scalars())
    for job_id, mark in marked.items():
        if job_id in known:
            mark.unlink(missing_ok=True)
        else:
            remove_folder(job_id, home=home)
    return sorted(marked.keys() - known)


def _mark(folder: JobFolder) -> None:
    if folder.path.is_dir():
        (folder.path / MARK).touch()


def _require_ended(record: JobRecord) -> None:
    if record.state not in FINAL_STATES:
        raise Conflict(
            "JOB_NOT_FINISHED",
            f"Job {record.job_id} is {record.state}: only one that has ended can be deleted.",
            field="JOB",
            hint="It is being canceled: wait a moment."
            if record.state is JobState.CANCELING
            else f"Wait for it, or end it with `tunesmith job cancel {record.job_id}`.",
        )
