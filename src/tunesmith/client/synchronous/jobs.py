# Made from client/asynchronous/jobs.py by scripts/make_sync_client.py; do not edit.
"""Jobs: submitting, following and steering them.

In: what to fine-tune. Out: a handle of the job, with its state as last seen. A path of this machine is uploaded first;
everything else is the server's to find. A handle knows what the server told last: `refresh` asks anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tunesmith.bundled import MODEL_NAME
from tunesmith.client.display import DisplayKind, display_for, table_html
from tunesmith.client.events import NumberedEvent, Watched
from tunesmith.client.notebook import PlanDocument
from tunesmith.client.streams import Progress
from tunesmith.client.synchronous.nouns import Datasets, PathLike, part
from tunesmith.client.synchronous.wire import Wire
from tunesmith.errors import JobFailed, MachineCannot
from tunesmith.spec.api import AcceptedJob, JobDeletion, JobDetail, JobView, LogLines
from tunesmith.spec.artifacts import LedgerRow
from tunesmith.spec.datasets import Notice
from tunesmith.spec.jobs import FINAL_STATES, JobResult, JobState
from tunesmith.spec.metrics import Curves

# a dataset's id, a URI, or a path in a declared location; all else is a file here
KNOWN_TO_SERVER = re.compile(r"ds-[0-9a-f]{16}|[a-z0-9][a-z0-9._-]{0,62}:.+", re.DOTALL)
DATASET_FIELDS = ("dataset", "validation_dataset", "test_dataset")
Submission = Mapping[str, Any]


class Job:
    """One job. `view` is what the server told last; `notices`: what it said of a job when it accepted it."""

    def __init__(self, jobs: Jobs, view: JobView) -> None:
        self._jobs = jobs
        self.view = view
        self.notices: list[Notice] = view.notices if isinstance(view, AcceptedJob) else []

    @property
    def job_id(self) -> str:
        return self.view.job_id

    @property
    def state(self) -> JobState:
        return self.view.state

    @property
    def model_version(self) -> str:
        return self.view.model_version

    @property
    def is_finished(self) -> bool:
        return self.view.state in FINAL_STATES

    def refresh(self) -> Job:
        self.view = self._jobs.view(self.job_id)
        return self

    def events(self, *, after: int = 0) -> Iterator[NumberedEvent]:
        """Every event from number `after` + 1 to the job's end, as it comes."""
        return self._jobs.events(self.job_id, after=after)

    def watch(self, *, display: DisplayKind = "auto") -> Job:
        """Show the job until it ends: in a notebook's cell, a terminal's panel, or lines on standard error.

        Interrupting it ends the watching alone; the job runs on.
        """
        watched = Watched(job_id=self.job_id, name=self.view.name, state=self.view.state, phase=self.view.phase)
        with display_for(display) as shown:
            shown.show(watched, None)
            for each in self.events():
                watched.add(each.event)
                shown.show(watched, each.event)
            self.refresh()
            shown.show(watched, None)
        return self

    def wait(self) -> Job:
        """Until it ends, without a word."""
        return self.watch(display="none")

    def result(self) -> JobResult:
        """The result, once the job ended. Raises JobFailed where it failed or was canceled, with its failure."""
        if not self.is_finished and not (self.refresh()).is_finished:
            self.wait()
        result = self._jobs.result(self.job_id)
        if result.state is JobState.SUCCEEDED:
            return result
        failure = result.failure
        if failure is None:
            raise JobFailed(
                "JOB_CANCELED",
                f"The job {self.job_id} was canceled.",
                field="JOB",
                hint="`clone` submits it again.",
            )
        raise JobFailed(failure["code"], failure["message"], field=failure["field"], hint=failure["hint"])

    def cancel(self) -> Job:
        return self._now(self._jobs.act(self.job_id, "cancel"))

    def pause(self) -> Job:
        return self._now(self._jobs.act(self.job_id, "pause"))

    def resume(self) -> Job:
        return self._now(self._jobs.act(self.job_id, "resume"))

    def clone(self, **changes: Any) -> Job:
        """A new job of the same model, data and settings, but for the changes."""
        return self._jobs.clone(self.job_id, **changes)

    def delete(self) -> None:
        """It has to have ended. Its model version stays."""
        self._jobs.delete(self.job_id)

    def _now(self, view: JobView) -> Job:
        self.view = view
        return self

    def __repr__(self) -> str:
        return f"<Job {self.job_id} {self.state.value} {self.model_version}>"

    def _repr_html_(self) -> str:
        view = self.view
        rows = [("job", view.job_id), ("name", view.name), ("state", view.state.value)]
        rows += [("phase", view.phase)] if view.phase else []
        rows += [("version", view.model_version), ("created", view.created_at)]
        return table_html(("", ""), rows)


class Jobs:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._datasets = Datasets(wire)

    def submit(self, model: str, dataset: PathLike, *, progress: Progress | None = None, **settings: Any) -> Job:
        """Submit a fine-tuning job; accepted means durable.

        dataset: a file of this machine (uploaded first), a dataset's id, or `location:path`. settings: every option of
        `tunesmith finetune` by its field name, such as epochs, learning_rate, lora_rank, name, version_set.
        """
        self._refuse_without_server()
        body = self._body({**settings, "model": model, "dataset": dataset}, progress)
        return Job(self, self._wire.fetch(AcceptedJob, "POST", "/api/jobs", body=body, creates=True))

    def plan(self, model: str, dataset: PathLike, **settings: Any) -> PlanDocument:
        """What the same submission would do and cost; nothing is started."""
        body = self._body({**settings, "model": model, "dataset": dataset}, None)
        return PlanDocument(self._wire.document("POST", "/api/plan", body=body))

    def get(self, job_id: str) -> Job:
        return Job(self, self.view(job_id))

    def view(self, job_id: str) -> JobView:
        return self._wire.fetch(JobView, "GET", f"/api/jobs/{part(job_id)}")

    def detail(self, job_id: str) -> JobDetail:
        """The job with its settings and why they are so, notices, epochs, verdict and samples so far."""
        return self._wire.fetch(JobDetail, "GET", f"/api/jobs/{part(job_id)}/detail")

    def list(self, *, state: str | None = None, search: str | None = None, limit: int | None = None) -> list[Job]:
        query = {"state": state, "search": search}
        views = self._wire.pages(JobView, "/api/jobs", "jobs", query=query, limit=limit)
        return [Job(self, view) for view in views]

    def result(self, job_id: str) -> JobResult:
        """Of a job that ended, however it did. Raises Conflict before that."""
        return self._wire.fetch(JobResult, "GET", f"/api/jobs/{part(job_id)}/result")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[NumberedEvent]:
        return self._wire.events(part(job_id), after=after)

    def cancel(self, job_id: str) -> Job:
        return Job(self, self.act(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        return Job(self, self.act(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        return Job(self, self.act(job_id, "resume"))

    def clone(self, job_id: str, **changes: Any) -> Job:
        self._refuse_without_server()
        body = self._body(changes, None)
        path = f"/api/jobs/{part(job_id)}/clone"
        return Job(self, self._wire.fetch(AcceptedJob, "POST", path, body=body, creates=True))

    def act(self, job_id: str, verb: str) -> JobView:
        if verb == "resume":
            self._refuse_without_server()
        return self._wire.fetch(JobView, "POST", f"/api/jobs/{part(job_id)}/{verb}")

    def deletion(self, job_id: str) -> JobDeletion:
        """What `delete` would remove and keep. Raises Conflict before the job has ended."""
        return self._wire.fetch(JobDeletion, "GET", f"/api/jobs/{part(job_id)}/deletion")

    def delete(self, job_id: str) -> None:
        """Entry, events and folder of a job that has ended; its model version and published files stay."""
        self._wire.send("DELETE", f"/api/jobs/{part(job_id)}")

    def curves(self, job_id: str, *, points: int = 400, first: int = 1, last: int | None = None) -> Curves:
        """Its series by step, thinned to `points` without losing an extreme, and the scores of each epoch."""
        query = {"points": points, "first": first, "last": last}
        return self._wire.fetch(Curves, "GET", f"/api/jobs/{part(job_id)}/curves", query=query)

    def log(self, job_id: str, *, lines: int = 200, search: str | None = None) -> list[str]:
        """The end of the job's log."""
        query = {"lines": lines, "search": search}
        return (self._wire.fetch(LogLines, "GET", f"/api/jobs/{part(job_id)}/log", query=query)).lines

    def download_log(self, job_id: str, target: PathLike) -> Path:
        return self._wire.download(f"/api/jobs/{part(job_id)}/log/download", Path(target))

    def ledger(self, job_id: str, *, fate: str | None = None, limit: int | None = None) -> list[LedgerRow]:
        """What became of each row of the datasets."""
        path = f"/api/jobs/{part(job_id)}/ledger"
        return self._wire.pages(LedgerRow, path, "rows", query={"fate": fate}, limit=limit)

    def _refuse_without_server(self) -> None:
        if self._wire.endpoint.is_in_process:
            raise MachineCannot(
                "SERVER_NEEDED",
                "No server runs that could run a job.",
                field="TUNESMITH_URL",
                hint="Start one with `tunesmith serve`; `tunesmith finetune` runs a job in the foreground without one.",
            )

    def _body(self, wanted: Submission, progress: Progress | None) -> dict[str, Any]:
        """The request with files of this machine uploaded and relative folders made absolute."""
        body = {name: value for name, value in wanted.items() if value is not None}
        for name in DATASET_FIELDS:
            if name in body and _is_ours(body[name]):
                file = Path(body[name]).expanduser()
                uploaded = self._datasets.upload(file, columns=body.get("columns"), progress=progress)
                body[name] = uploaded.dataset_id
        for name in ("model", "results"):
            if name in body and _is_folder(body[name]):
                body[name] = os.fspath(Path(body[name]).expanduser().absolute())
        return {name: _plain(value) for name, value in body.items()}


def _is_ours(dataset: PathLike) -> bool:
    """Whether it is a file of this machine. A file that exists comes before a location of the same name."""
    if isinstance(dataset, os.PathLike):
        return True
    return os.path.isfile(dataset) or not (KNOWN_TO_SERVER.fullmatch(dataset))


def _is_folder(value: PathLike) -> bool:
    return isinstance(value, os.PathLike) or (value != MODEL_NAME and os.path.isdir(os.path.expanduser(value)))


def _plain(value: Any) -> Any:
    """Tuples and paths as JSON knows them."""
    if isinstance(value, os.PathLike):
        return os.fspath(cast(PathLike, value))
    return list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value
