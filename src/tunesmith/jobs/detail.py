"""One job as its user sees it: record, result, settings with their reasons, notices, samples; and how far a run is.

In: the state, and records with their places in the queue. Out: the models of `spec.api`, whose import costs more than a
foreground command wants to spend: what only runs jobs stays in `events.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from tunesmith.jobs.events import job_result, read_history
from tunesmith.jobs.records import JobFolder, read_job_file
from tunesmith.jobs.state import State
from tunesmith.spec.api import JobDetail, JobProgress, JobView
from tunesmith.storage.tables import EVENTS, JOBS


def job_detail(view: JobView, *, state: State, with_folder: bool) -> JobDetail:
    folder = JobFolder(path=state.home.jobs / view.job_id)
    history = read_history(state.jobs, view.job_id)
    request, asked = state.jobs.asked(view.job_id)
    job_file = read_job_file(folder) if folder.job_file.exists() else None  # None: not prepared yet
    return JobDetail(
        **dict(job_result(state.jobs, folder)),
        record=view,
        request=request,
        settings=job_file.settings if job_file else asked,
        plan_reasons=job_file.plan_reasons if job_file else {},
        notices=history.notices,
        samples=history.samples,
        folder=str(folder.path) if with_folder else None,
    )


def progress_of(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, JobProgress]:
    """From the newest step event of each."""
    # a look at the end of the index for each job: grouped, SQLite would read all step events of each
    number = (
        sa.select(sa.func.max(EVENTS.c.number))
        .where(EVENTS.c.job_id == JOBS.c.job_id, EVENTS.c.kind == "step")
        .correlate(JOBS)
        .scalar_subquery()
    )
    newest = sa.select(JOBS.c.job_id, number.label("number")).where(JOBS.c.job_id.in_(job_ids)).subquery()
    rows = connection.execute(
        sa.select(EVENTS.c.job_id, EVENTS.c.body).join(
            newest, (EVENTS.c.job_id == newest.c.job_id) & (EVENTS.c.number == newest.c.number)
        )
    ).all()
    found: dict[str, JobProgress] = {}
    for row in rows:
        step = json.loads(row.body)
        found[row.job_id] = JobProgress(**{name: step[name] for name in JobProgress.model_fields})
    return found
