"""Accepts a job into the queue, and prepares it when its turn has come.

In: a request and settings as somebody sent them. Out: a job in state ACCEPTED, durable with the caller's transaction;
what takes longer than a look (inspecting the model, counting tokens, planning) happens at its start, in phase
`preparing`. A refusal there is the job's failure.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog.idempotency import recall, remember
from tunesmith.catalog.logs import find_log
from tunesmith.errors import MachineCannot
from tunesmith.files import json_bytes
from tunesmith.jobs.finetune import (
    PreparedJob,
    dataset_path,
    default_version_set,
    lineage_of,
    prepare_job,
    write_folder,
)
from tunesmith.jobs.inputs import dataset_name, in_location, model_name, results_uri
from tunesmith.jobs.parents import find_parent, with_form_of
from tunesmith.jobs.records import new_job_id, now
from tunesmith.jobs.results_check import ResultsChecks
from tunesmith.jobs.settings import read_flat, refuse_not_built
from tunesmith.jobs.state import State
from tunesmith.jobs.store import Lease, NewJob
from tunesmith.jobs.supervisor import StopWish
from tunesmith.spec.catalog import DEFAULT_PROJECT, LOCAL_USER
from tunesmith.spec.datasets import Notice
from tunesmith.spec.jobs import MAXIMUM_ATTEMPTS, JobRecord
from tunesmith.spec.metrics import NoticeEvent
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.locations import find_place, is_bucket, uri_of

ROUTE = "POST /api/jobs"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is submitted, by whom, and how it is to be queued."""

    request: FinetuneRequest
    settings: TrainingSettings
    project: str = DEFAULT_PROJECT
    submitted_by: str = LOCAL_USER
    priority: int = 0
    run_limit_seconds: int | None = None

    def sha256(self) -> str:
        """Equal for equal wishes, however they were written."""
        told = {"request": self.request.as_json(), "settings": self.settings.as_json(), "project": self.project}
        told |= {"priority": self.priority, "run_limit_seconds": self.run_limit_seconds}
        return hashlib.sha256(json_bytes(told)).hexdigest()


def check_submission(submission: Submission, *, state: State, results_checks: ResultsChecks) -> NewJob:
    """What can be refused at a look: values not built yet, a model or a dataset that is not there, a place for results
    that is not fit.

    Raises InputRefused, MachineCannot, Unknown. Writes nothing but a probe into that place.
    """
    request = submission.request
    settings, parent = submission.settings, None
    refuse_not_built(request, settings)
    if request.log is not None:
        with state.database.read() as connection:
            find_log(connection, request.log)
    if request.from_version is not None:
        found = find_parent(request.from_version, state=state, project=submission.project)
        settings, parent = with_form_of(found, settings), found.model_version
        request = request.model_copy(update={"from_version": parent})  # an alias may move before its turn comes
    base_name = model_name(request.model, state=state)
    names = [_dataset_name(text, field, state=state, project=submission.project) for field, text in _datasets(request)]
    results, notices = None, list[Notice]()
    if request.results is not None:
        results = uri_of(find_place(results_uri(request.results, state=state, field="results"), field="results"))
        notices = results_checks.check(results, state=state, project=submission.project)
    return NewJob(
        job_id=new_job_id(),
        request=request,
        settings=settings,
        version_set=request.version_set or default_version_set(base_name, names[0]),
        results_uri=results,
        results_root=state.results(submission.project),
        base_name=base_name,
        project=submission.project,
        submitted_by=submission.submitted_by,
        priority=submission.priority,
        run_limit_seconds=submission.run_limit_seconds,
        parent=parent,
        notices=notices,
    )


def _datasets(request: FinetuneRequest) -> list[tuple[str, str]]:
    fields = ("dataset", "validation_dataset", "test_dataset")
    return [(field, text) for field in fields if (text := getattr(request, field)) is not None]


def _dataset_name(text: str, field: str, *, state: State, project: str) -> str:
    """What it is called, if it is there; what lies in a store is looked at when the job starts."""
    name = dataset_name(text, state=state, project=project)
    if name is None and in_location(text) is None and not is_bucket(text):
        dataset_path(text, field=field)
    return name or text


def submit(
    connection: sa.Connection, submission: Submission, new: NewJob, *, state: State, key: str | None = None
) -> tuple[JobRecord, bool]:
    """The accepted job, and whether it is new: with a key that was used before it is the earlier request's job.

    new: from `check_submission`. Run it inside `database.write_grouped`. Raises Conflict (IDEMPOTENCY_KEY_REUSED).
    """
    made = submitted_before(connection, submission, state=state, key=key)
    if made is not None:
        return made, False
    record = state.jobs.insert(connection, new, above=state.highest_result(new.version_set, project=new.project))
    if key is not None:
        remember(connection, object_id=record.job_id, **_wish(submission, key))
    return record, True


def submitted_before(
    connection: sa.Connection, submission: Submission, *, state: State, key: str | None
) -> JobRecord | None:
    """The job that this request with this key made earlier. Raises Conflict (IDEMPOTENCY_KEY_REUSED)."""
    if key is None:
        return None
    made = recall(connection, **_wish(submission, key))
    return None if made is None else state.jobs.read(made, connection=connection)


def _wish(submission: Submission, key: str) -> dict[str, str]:
    return {
        "actor": submission.submitted_by, "key": key, "route": ROUTE, "body_sha256": submission.sha256(),
        "project": submission.project,
    }  # fmt: skip


def cloned(job_id: str, *, state: State, overrides: Mapping[str, Any], submitted_by: str = LOCAL_USER) -> Submission:
    """What makes the same job again, with some fields of the request or the settings changed.

    Raises Unknown, UsageFault for a field or a value that there is not.
    """
    record = state.jobs.read(job_id)
    request, settings = state.jobs.asked(job_id)
    values: dict[str, Any] = request.model_dump() | settings.model_dump() | dict(overrides)
    changed_request, changed_settings = read_flat(values)
    return Submission(
        request=changed_request,
        settings=changed_settings,
        project=record.project,
        submitted_by=submitted_by,
        priority=record.priority,
        run_limit_seconds=record.run_limit_seconds,
    )


def submission_notices(request: FinetuneRequest) -> list[Notice]:
    """What is said of a request itself, before anything was looked at."""
    if request.log is not None:
        return []
    return [
        Notice(
            code="LOG_RECOMMENDED",
            message="No log was chosen: the job's output is kept in a file of its own, for as long as its folder.",
            hint="A named log (`tunesmith log add NAME`, then --log NAME) is recommended: it has its own retention.",
        )
    ]


def prepare_accepted(
    lease: Lease, record: JobRecord, *, state: State, environment: Mapping[str, str], wish: StopWish
) -> JobRecord:
    """Inspect, plan, write the folder, say what must be said before the start. Raises what `prepare_job` refuses."""
    request, settings = state.jobs.asked(record.job_id)
    prepare = partial(
        prepare_job,
        request,
        settings,
        state=state,
        environment=environment,
        progress=_untold,
        job_id=record.job_id,
        project=record.project,
        is_unwanted=lambda: wish.is_wanted,
    )
    prepared = _in_attempts(prepare, is_unwanted=lambda: wish.is_wanted)
    # those of the dataset are told by the worker, whoever starts it
    about_model = [Notice(code="MODEL", message=message) for message in prepared.facts.notices]
    told = [*submission_notices(request), *about_model, *prepared.plan.notices]
    events = [NoticeEvent(time=now(), code=each.code, message=each.message, hint=each.hint) for each in told]
    state.jobs.describe_version(lease, lineage=lineage_of(prepared))
    write_folder(prepared, record, state=state)
    return state.jobs.say(lease, *events)


def _in_attempts(prepare: Callable[[], PreparedJob], *, is_unwanted: Callable[[], bool]) -> PreparedJob:
    """Again where the system killed the inspect worker, as often as a training worker is started again."""
    for _ in range(MAXIMUM_ATTEMPTS - 1):
        try:
            return prepare()
        except MachineCannot as error:
            if error.code != "OUT_OF_MEMORY" or is_unwanted():
                raise
            log.warning("the preparation of a job was killed; it is started again")
    return prepare()


def _untold(_what: str) -> None:
    """The phase `preparing` tells enough."""
