"""Jobs: submit, list, show, result, wishes (cancel, pause, resume, clone), events, log, ledger."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Body, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from tunesmith.catalog import audit
from tunesmith.catalog.idempotency import check_key
from tunesmith.catalog.paging import matching, read_page
from tunesmith.errors import Conflict, TunesmithError, Unknown, UsageFault
from tunesmith.jobs import service as jobs
from tunesmith.jobs.accept import Submission
from tunesmith.jobs.deletion import delete_job, remove_folder, what_goes
from tunesmith.jobs.detail import job_detail, progress_of
from tunesmith.jobs.events import job_result
from tunesmith.jobs.queue import QueuePlace
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.store import RECORD_COLUMNS, NewJob
from tunesmith.jobs.wishes import ask
from tunesmith.server.api.datasets import pinned
from tunesmith.server.auth import may
from tunesmith.server.feed import read_page as read_event_page
from tunesmith.server.files import attachment, ledger_page
from tunesmith.server.inputs import check_places, names_only
from tunesmith.server.log_lines import lines_of
from tunesmith.server.once import IdempotencyKey
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    MAXIMUM_NUMBER,
    AcceptedJob,
    CurvesQuery,
    EventPage,
    EventQuery,
    JobChanges,
    JobDeletion,
    JobDetail,
    JobPage,
    JobQuery,
    JobSubmission,
    JobView,
    LedgerPage,
    LedgerQuery,
    LogLines,
    LogQuery,
)
from tunesmith.spec.datasets import Notice
from tunesmith.spec.faults import shown
from tunesmith.spec.jobs import FINAL_STATES, JobRecord, JobResult, JobState
from tunesmith.spec.metrics import Curves, NoticeEvent
from tunesmith.storage.tables import JOBS

EVENT_STREAM = "text/event-stream"
ONE_JOB = sa.select(JOBS.c.sequence, *RECORD_COLUMNS).where(
    JOBS.c.job_id == sa.bindparam("job_id"), JOBS.c.project == sa.bindparam("project")
)
EXAMPLE = {
    "model": "tunesmith/demo", "dataset": "ds-0123456789abcdef", "name": "support bot", "epochs": 3,
    "learning_rate": 0.0002, "validation_fraction": 0.1, "version_set": "support-bot",
}  # fmt: skip


# ---- submitting


async def submit_job(
    call: CallNow, submission: Annotated[JobSubmission, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """Accept a job. It is durable before this answers; its model and data are looked at when its turn has come.

    Its results location has to be fit now: writable, and keeping versions. One that does not answer is checked when the
    job starts, and `notices` says so.
    """
    request, settings = submission.parts()
    given = Submission(
        request=request, settings=settings, project=call.project, submitted_by=call.actor,
        priority=submission.priority, run_limit_seconds=submission.run_limit_seconds,
    )  # fmt: skip
    return await _submit(call, given, key=idempotency_key)


async def clone_job(
    call: CallNow, job_id: str, changes: Annotated[JobChanges, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """A new job with the same request and settings, but for the fields given."""
    given = await run_in_threadpool(_cloned, call, job_id, changes)
    return await _submit(call, given, key=idempotency_key)


def _cloned(call: Call, job_id: str, changes: JobChanges) -> Submission:
    _read(call, job_id)
    return jobs.cloned(job_id, state=call.state, overrides=changes.given(), submitted_by=call.actor)


async def _submit(call: Call, submission: Submission, *, key: str | None) -> Response:
    if key is not None:
        check_key(key)
    try:
        if names_only(submission.request):  # a thread and back would take longer than its two rows
            submission, new = _checked(call, submission)
        else:
            submission, new = await run_in_threadpool(_checked, call, submission)
    except TunesmithError:
        # its dataset may be gone since, or its results be where they were to go
        made = await run_in_threadpool(_made_before, call, submission, key)
        if made is None:
            raise
        return created(_accepted(made, submission, _said(call, made)), is_new=False)

    def write(connection: sa.Connection) -> tuple[JobRecord, bool]:
        record, is_new = jobs.submit(connection, submission, new, state=call.state, key=key)
        if is_new:
            told = {"version": record.model_version}
            audit.record(connection, call.actor, "job.submit", record.job_id, told, project=call.project)
        return record, is_new

    record, is_new = await call.database.write_soon(write)
    if is_new and call.service.queue is not None:
        call.service.queue.wake()
    return created(_accepted(record, submission, new.notices if is_new else _said(call, record)), is_new=is_new)


def _made_before(call: Call, submission: Submission, key: str | None) -> JobRecord | None:
    try:
        with call.database.read() as connection:
            return jobs.submitted_before(connection, submission, state=call.state, key=key)
    except Conflict:
        return None


def _checked(call: Call, submission: Submission) -> tuple[Submission, NewJob]:
    """Its model and data are there and may be named by this caller; what lies in a location is pinned."""
    check_places(call, submission.request)
    submission = replace(submission, request=pinned(call, submission.request))
    new = jobs.check_submission(submission, state=call.state, results_checks=call.service.results_checks)
    return submission, new


def _said(call: Call, record: JobRecord) -> list[Notice]:
    """With the acceptance of an earlier request: it stands behind the first event."""
    second = call.state.jobs.events(record.job_id, after=1, limit=1)
    notices = [each.event for each in second if isinstance(each.event, NoticeEvent)]
    return [Notice(code=each.code, message=each.message, hint=each.hint) for each in notices]


def _accepted(record: JobRecord, submission: Submission, said: Sequence[Notice]) -> AcceptedJob:
    notices = [*jobs.submission_notices(submission.request), *said]
    return AcceptedJob.model_validate({**record.model_dump(), "notices": notices})


# ---- reading


def list_jobs(call: CallNow, query: Annotated[JobQuery, Query()]) -> JobPage:
    """The newest first."""
    wanted = sa.select(JOBS.c.sequence, *RECORD_COLUMNS).where(
        JOBS.c.project == call.project,
        matching(query.search, JOBS.c.job_id, JOBS.c.name, JOBS.c.model_version),
    )
    if query.state is not None:
        wanted = wanted.where(JOBS.c.state == query.state)
    places = _places(call)
    with call.database.read() as connection:
        page = read_page(
            connection, wanted, key=JOBS.c.sequence, after=query.after, limit=query.limit,
            make=lambda rows: _views(connection, rows, places),
        )  # fmt: skip
    return JobPage(jobs=page.items, next=page.next)


async def show_job(call: CallNow, job_id: str) -> JobView:
    """One job as it is now, with its place in the queue and its progress."""
    # A row by its key takes 0.3 ms, and a thread and back as long again. An unfinished job's place in the queue may
    # take a look at the devices, which is a thread's work.
    with call.database.read() as connection:
        row = connection.execute(ONE_JOB, {"job_id": job_id, "project": call.project}).one_or_none()
        if row is None:
            raise _unknown_job(job_id)
        if row.state in FINAL_STATES:
            return _views(connection, [row], {})[0]
    return await run_in_threadpool(read_view, call, job_id)


def read_view(call: Call, job_id: str) -> JobView:
    places = _places(call)
    with call.database.read() as connection:
        row = connection.execute(ONE_JOB, {"job_id": job_id, "project": call.project}).one_or_none()
        if row is None:
            raise _unknown_job(job_id)
        return _views(connection, [row], places)[0]


def _places(call: Call) -> dict[str, QueuePlace]:
    """Asked before a connection is taken: it takes one itself, and who holds one while he waits may wait for ever."""
    return call.service.queue.positions() if call.service.queue is not None else {}


def _views(connection: sa.Connection, rows: Sequence[sa.Row[Any]], places: Mapping[str, QueuePlace]) -> list[JobView]:
    running = [row.job_id for row in rows if row.state in (JobState.IN_PROGRESS, JobState.CANCELING)]
    progress = progress_of(connection, running) if running else {}
    views: list[JobView] = []
    for row in rows:
        fields: dict[str, Any] = dict(zip(JobRecord.model_fields, row[1:], strict=True))  # without the sequence
        fields["command"] = json.loads(row.command)
        fields["failure"] = json.loads(row.failure) if row.failure else None
        place = places.get(row.job_id)
        if place is not None:
            fields["position"] = place.position
            fields["waiting_reason"] = row.waiting_reason or place.reason
        fields["progress"] = progress.get(row.job_id)
        views.append(JobView.model_validate(fields))
    return views


def _read(call: Call, job_id: str) -> JobRecord:
    record = call.state.jobs.read(job_id)
    if record.project != call.project:
        raise _unknown_job(job_id)
    return record


def _unknown_job(job_id: str) -> Unknown:
    return Unknown("UNKNOWN_JOB", f"There is no job {shown(job_id)} here.", field="job_id", hint="List the jobs.")


def own_jobs(call: Call, job_ids: Collection[str]) -> set[str]:
    """Those of the caller's project, where he may see jobs: of others not even an id is told."""
    if not job_ids or not may(call.principal, "job.read"):
        return set()
    query = sa.select(JOBS.c.job_id).where(JOBS.c.job_id.in_(job_ids), JOBS.c.project == call.project)
    with call.database.read() as connection:
        return set(connection.execute(query).scalars())


def show_result(call: CallNow, job_id: str) -> JobResult:
    """The result object, the same as `tunesmith finetune --json` ends with. 409 while the job is not finished."""
    record = _read(call, job_id)
    if record.state not in FINAL_STATES:
        raise Conflict(
            "JOB_NOT_FINISHED", f"Job {job_id} is {record.state}.", field="job_id",
            hint="Follow its events; the last one is a state event.",
        )  # fmt: skip
    return job_result(call.state.jobs, _folder(call, record))


def show_detail(call: CallNow, job_id: str) -> JobDetail:
    """The job with its settings and why they are so, its notices, its epochs, verdict and samples so far."""
    return job_detail(read_view(call, job_id), state=call.state, with_folder=call.principal.is_local)


def _folder(call: Call, record: JobRecord) -> JobFolder:
    return JobFolder(path=call.state.home.jobs / record.job_id)


# ---- wishes


def cancel_job(call: CallNow, job_id: str) -> JobView:
    """End it: at once where nothing runs, else CANCELING until its worker is gone (10 s at most)."""
    return _wish(call, job_id, "cancel")


def pause_job(call: CallNow, job_id: str) -> JobView:
    """Stop it with a checkpoint, and leave it until it is resumed."""
    return _wish(call, job_id, "pause")


def resume_job(call: CallNow, job_id: str) -> JobView:
    """Let a paused or waiting job go on as soon as a device is free."""
    return _wish(call, job_id, "resume")


def _wish(call: Call, job_id: str, what: Literal["cancel", "pause", "resume"]) -> JobView:
    _read(call, job_id)
    ask(call.state.jobs, job_id, what, actor=call.actor)
    if call.service.queue is not None:
        call.service.queue.wake()
    return read_view(call, job_id)


# ---- deleting


def show_deletion(call: CallNow, job_id: str) -> JobDeletion:
    """What deleting it would remove, and what it would keep. 409 before it has ended."""
    _read(call, job_id)
    return what_goes(job_id, state=call.state)


def remove_job(call: CallNow, job_id: str) -> None:
    """Its entry, its events and its folder; the model version and its published files stay. 409 before it has ended."""
    _read(call, job_id)
    call.database.write_grouped(lambda connection: delete_job(connection, job_id, state=call.state, actor=call.actor))
    remove_folder(job_id, home=call.state.home)


# ---- events


async def list_events(
    call: CallNow,
    job_id: str,
    query: Annotated[EventQuery, Query()],
    accept: Annotated[str | None, Header(max_length=1000)] = None,
    last_event_id: Annotated[
        str | None, Header(description="Of a stream that broke off: it goes on after this number.", max_length=20)
    ] = None,
) -> Response:
    """A page of events by number; under `Accept: text/event-stream` a stream that ends when the job is final."""
    record = await run_in_threadpool(_read, call, job_id)
    kinds = frozenset(query.kinds.split(",")) if query.kinds else frozenset[str]()
    if EVENT_STREAM not in (accept or ""):
        return await run_in_threadpool(_event_page, call, job_id, query, kinds)
    after = query.after
    if last_event_id is not None:
        if not last_event_id.isascii() or not last_event_id.isdecimal() or int(last_event_id) > MAXIMUM_NUMBER:
            raise UsageFault("INVALID_FIELD", "Last-Event-ID is no number of an event.", field="Last-Event-ID")
        after = int(last_event_id)
    if record.state in FINAL_STATES and after >= record.num_events:
        return Response(status_code=204)  # tells a browser's EventSource not to come back
    frames = call.service.feed.frames(job_id, after=after, kinds=kinds)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    first = await anext(frames)  # a refusal (too many streams) comes before the answer begins

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for frame in frames:
            yield frame

    return StreamingResponse(whole(), headers=headers, media_type=EVENT_STREAM)


def _event_page(call: Call, job_id: str, query: EventQuery, kinds: frozenset[str]) -> Response:
    events = read_event_page(call.database, job_id, after=query.after, limit=query.limit + 1, kinds=kinds)
    page = events[: query.limit]
    following = json.dumps(str(page[-1].number)) if len(events) > query.limit else "null"
    # the stored JSON as it is: reading 2,000 events to write them again costs 20 ms
    text = f'{{"next":{following},"events":[{",".join(event.json() for event in page)}]}}'
    return Response(text, media_type="application/json")


def show_curves(call: CallNow, job_id: str, query: Annotated[CurvesQuery, Query()]) -> Curves:
    """Loss, learning rate, gradient norm, speed and memory by step, and the scores of each epoch."""
    _read(call, job_id)
    with call.database.read() as connection:
        return call.service.curves.read(connection, job_id, points=query.points, first=query.first, last=query.last)


# ---- log and ledger


def show_log(call: CallNow, job_id: str, query: Annotated[LogQuery, Query()]) -> LogLines:
    """The end of what the job's workers wrote beside their events."""
    log = _folder(call, _read(call, job_id)).worker_log
    return LogLines(job_id=job_id, lines=lines_of(log, query))


def download_log(call: CallNow, job_id: str) -> Response:
    """The whole log as a file."""
    record = _read(call, job_id)
    return attachment(_folder(call, record).worker_log, name=f"{record.job_id}.log", media_type="text/plain")


def list_ledger(call: CallNow, job_id: str, query: Annotated[LedgerQuery, Query()]) -> LedgerPage:
    """What became of each dataset row: trained, validation, cut, dropped, duplicate. After the job has succeeded."""
    record = _read(call, job_id)
    path = _folder(call, record).artifact / "ledger.jsonl"
    if record.state is not JobState.SUCCEEDED or not path.is_file():
        raise Conflict(
            "NO_LEDGER", f"Job {job_id} has no ledger here: it is {record.state}.", field="job_id",
            hint="The ledger is written with the artifact; it is kept there as ledger.jsonl.",
        )  # fmt: skip
    return ledger_page(path, query)


JOB = "/api/jobs/{job_id}"
ROUTES = [
    Route(
        method="POST", path="/api/jobs", handler=submit_job, permission="job.submit", summary="Submit a job",
        answer=AcceptedJob, status=201, statuses=(200,), refusals=(404, 409), body="json", request_example=EXAMPLE,
    ),
    Route(
        method="GET", path="/api/jobs", handler=list_jobs, permission="job.read", summary="List jobs", answer=JobPage,
    ),
    Route(
        method="GET", path=JOB, handler=show_job, permission="job.read", summary="Show a job", answer=JobView,
        refusals=(404,),
    ),
    Route(
        method="GET", path=f"{JOB}/result", handler=show_result, permission="job.read",
        summary="The result of a finished job", answer=JobResult, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{JOB}/detail", handler=show_detail, permission="job.read",
        summary="All about a job", answer=JobDetail, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{JOB}/deletion", handler=show_deletion, permission="job.read",
        summary="What deleting a job removes and keeps", answer=JobDeletion, refusals=(404, 409),
    ),
    Route(
        method="DELETE", path=JOB, handler=remove_job, permission="job.delete", summary="Delete a job", status=204,
        refusals=(404, 409),
    ),
    *(
        Route(
            method="POST", path=f"{JOB}/{word}", handler=handler, permission=f"job.{word}", summary=summary,
            answer=JobView, refusals=(404, 409),
        )
        for word, handler, summary in (
            ("cancel", cancel_job, "Cancel a job"),
            ("pause", pause_job, "Pause a job"),
            ("resume", resume_job, "Resume a job"),
        )
    ),
    Route(
        method="POST", path=f"{JOB}/clone", handler=clone_job, permission="job.submit",
        summary="Submit a job like another one", answer=AcceptedJob, status=201, statuses=(200,), refusals=(404, 409),
        body="json", request_example={"epochs": 5},
    ),
    Route(
        method="GET", path=f"{JOB}/events", handler=list_events, permission="job.read",
        summary="Events of a job, as a page or as a stream", answer=EventPage, statuses=(204,), refusals=(404,),
        content={EVENT_STREAM: {"schema": {"type": "string"}}},
    ),
    Route(
        method="GET", path=f"{JOB}/curves", handler=show_curves, permission="job.read",
        summary="Series of a job's steps and epochs", answer=Curves, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{JOB}/log", handler=show_log, permission="job.read", summary="The end of a job's log",
        answer=LogLines, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{JOB}/log/download", handler=download_log, permission="job.read",
        summary="A job's whole log", content={"text/plain": {"schema": {"type": "string"}}}, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{JOB}/ledger", handler=list_ledger, permission="job.read",
        summary="The fate of each dataset row", answer=LedgerPage, refusals=(404, 409),
    ),
]  # fmt: skip
