"""Jobs that a server runs: `job submit | clone | watch`, and the other verbs where TUNESMITH_URL names a server.

In: a job's id, or what to fine-tune. Out: what the server tells, in the same shapes as the commands over this machine's
own state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.cli.app import EXIT_INTERRUPTED, Interrupted, exit_code_of
from tunesmith.cli.connected import bytes_bar, connected
from tunesmith.cli.output import Output
from tunesmith.errors import JobFailed, from_form

if TYPE_CHECKING:
    from tunesmith.client import Client, Job
    from tunesmith.spec.api import JobView
    from tunesmith.spec.jobs import JobResult, JobState


def submit(wanted: dict[str, Any], *, watch: bool, output: Output) -> int:
    """wanted: fields of a submission; `model` and `dataset` among them."""
    model, dataset = wanted.pop("model"), wanted.pop("dataset")
    with connected() as client:
        with bytes_bar(output) as progress:
            job = client.jobs.submit(model, dataset, progress=progress, **wanted)
        return _accepted(client, job, watch=watch, output=output)


def clone(job_id: str, changes: dict[str, Any], *, watch: bool, output: Output) -> int:
    with connected() as client:
        return _accepted(client, client.jobs.clone(job_id, **changes), watch=watch, output=output)


def _accepted(client: Client, job: Job, *, watch: bool, output: Output) -> int:
    output.say(f"Job {job.job_id} makes {job.model_version}")
    for notice in job.notices:
        output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
    if watch:
        return _follow(client, job, output=output)
    output.say(f"Next: tunesmith job watch {job.job_id}")
    output.result(job.view.as_json())
    return 0


def watch(job_id: str, *, output: Output) -> int:
    with connected() as client:
        return _follow(client, client.jobs.get(job_id), output=output)


def _follow(client: Client, job: Job, *, output: Output) -> int:
    """Tell the job until it ends; the exit code is its own. Ctrl-C ends the watching alone."""
    from tunesmith.cli.report import Reporter

    reporter = Reporter(output)
    try:
        with reporter:
            if job.view.waiting_reason:
                reporter.say(job.view.waiting_reason)
            for each in job.events():
                reporter.event(each.event)
    except Interrupted:
        output.warn(f"The job runs on; `tunesmith job watch {job.job_id}` shows it again.")
        return EXIT_INTERRUPTED
    result = client.jobs.result(job.refresh().job_id)
    return _tell_end(job.view, result, output=output)


def _tell_end(view: JobView, result: JobResult, *, output: Output) -> int:
    from tunesmith.cli.report import tell_verdict
    from tunesmith.spec.jobs import JobState

    if result.verdict is not None:
        tell_verdict(output, result.verdict)
    if result.artifact_uri is not None:
        output.say(f"Model version {result.model_version}\nArtifact: {result.artifact_uri}")
    code = 0
    if result.failure is not None:
        error = from_form(result.failure, view.failure_family or JobFailed.__name__)
        output.warn(f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else "") + f"\n  ({error.code})")
        code = exit_code_of(error)
    elif result.state is not JobState.SUCCEEDED:
        output.warn(f"The job ended {result.state.value}.")
        code = exit_code_of(JobFailed("JOB_CANCELED", "canceled"))
    output.result(result.as_json())
    return code


# ---- the verbs that a machine's own jobs have too


def list_(*, search: str | None, state: JobState | None, limit: int | None, output: Output) -> int:
    from tunesmith.cli.job import tell_jobs

    with connected() as client:
        views = [job.view for job in client.jobs.list(search=search, state=state, limit=limit)]
    if not output.json_wanted:
        tell_jobs(views, output=output)
    output.result({"jobs": [each.as_json() for each in views]})
    return 0


def show(job_id: str, *, output: Output) -> int:
    from tunesmith.cli.job import tell_job

    with connected() as client:
        detail = client.jobs.detail(job_id)
    tell_job(detail, output=output)
    return 0


def logs(job_id: str, *, lines: int, search: str | None, output: Output) -> int:
    with connected() as client:
        found = client.jobs.log(job_id, lines=lines, search=search)
    if not output.json_wanted:
        empty = "The log is empty: the worker had nothing to say beside its events."
        for line in found or [empty if search is None else "No line holds it."]:
            output.say(line)
    output.result({"job_id": job_id, "path": None, "lines": found})  # the file is the server's
    return 0


def download_log(job_id: str, target: str, *, output: Output) -> int:
    from tunesmith.client.export import require_new_file

    path = require_new_file(target)
    with connected() as client:
        client.jobs.download_log(job_id, path)
    size = path.stat().st_size
    output.say(f"Wrote {path} ({size:,} bytes)")
    output.result({"job_id": job_id, "path": str(path.absolute()), "bytes": size})
    return 0


def act(job_id: str, verb: Literal["cancel", "pause", "resume"], *, output: Output) -> int:
    with connected() as client:
        view = client.jobs.act(job_id, verb)
    output.say(f"{job_id} is {'paused' if view.is_paused and view.finished_at is None else view.state.value}.")
    output.result(view.as_json())
    return 0
