"""`tunesmith job list | show | curves | logs | resume | pause | cancel | delete`, and `submit | clone | watch`.

Without TUNESMITH_URL the first six work on this machine's state folder, with or without its server.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.chosen import own_project
from tunesmith.cli.connected import JsonOption, LimitOption, complete_job, connected, tell_table
from tunesmith.cli.options import with_run_options
from tunesmith.cli.output import Output
from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.spec.jobs import FINAL_STATES, JobState

if TYPE_CHECKING:
    from tunesmith.jobs.state import State
    from tunesmith.spec.api import JobDetail, JobView
    from tunesmith.spec.jobs import JobRecord

PriorityOption = Annotated[
    int, typer.Option("--priority", min=-100, max=100, help="Higher starts earlier among jobs of one project.")
]
RunLimitOption = Annotated[
    int | None, typer.Option("--run-limit-seconds", min=1, help="Running time after which it fails.")
]
SEEN_TO_SECONDS = 15.0
NO_SERVER = "No server runs; `tunesmith serve` starts it, or `job resume` runs it in the foreground."

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
    help="Submit, watch, list, show, resume, pause, cancel, clone and delete jobs.",
)  # fmt: skip

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", autocompletion=complete_job)]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show it until it ends, and end with its result.")]


@app.callback()
def job() -> None:
    """Submit, watch, list, show, resume, pause, cancel, clone and delete jobs."""


@app.command("list")
def list_(
    search: Annotated[
        str | None, typer.Option("--search", help="Only those whose id, name or model version holds it.")
    ] = None,
    state: Annotated[JobState | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """List the jobs, the newest first."""
    output = Output(json_wanted=json_wanted)
    if _is_elsewhere() or search is not None:
        return _over_client().list_(search=search, state=state, limit=limit, output=output)
    own = _open()
    records = own.jobs.records(
        states=[state] if state is not None else [], project=own_project(own), limit=limit
    )  # fmt: skip
    views = _with_places(own, records)
    if not json_wanted:
        tell_jobs(views, output=output)
    output.result({"jobs": [view.as_json() for view in views]})
    return 0


def tell_jobs(views: Sequence[JobView], *, output: Output) -> None:
    rows = [
        (
            each.job_id,
            each.created_at[:19],
            each.state.value + (f" ({each.phase})" if each.phase else ""),
            each.position,
            each.model_version,
            each.name,
        )
        for each in views
    ]
    headings = ("id", "created", "state", "place", "version", "name")
    tell_table(output, headings, rows, none="No jobs yet. `tunesmith demo` runs the first one.")


def _with_places(state: State, records: Sequence[JobRecord]) -> list[JobView]:
    """Records with how far they are, and with their places in the queue, which only a server that runs knows."""
    from tunesmith.jobs.detail import progress_of
    from tunesmith.spec.api import JobView

    queued = [
        each.job_id
        for each in records
        if each.state is JobState.ACCEPTED and not each.is_foreground and not each.is_paused
    ]
    places = _places(queued) if queued else {}
    running = [each.job_id for each in records if each.state in (JobState.IN_PROGRESS, JobState.CANCELING)]
    with state.database.read() as connection:
        progress = progress_of(connection, running) if running else {}
    return [
        JobView.model_validate(
            {**each.model_dump(), "progress": progress.get(each.job_id), **places.get(each.job_id, {})}
        )
        for each in records
    ]


def _places(job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    from tunesmith.client.connection import running_server  # 0.3 s
    from tunesmith.jobs.home import home_path

    if running_server(home_path(os.environ)) is None:
        return {job_id: {"waiting_reason": NO_SERVER} for job_id in job_ids}
    places: dict[str, dict[str, Any]] = {}
    try:
        with connected() as client:
            for job_id in job_ids:
                found = client.jobs.view(job_id)
                places[job_id] = {"position": found.position, "waiting_reason": found.waiting_reason}
    except TunesmithError:
        pass  # it ended just now, or is busy: what the state folder knows is told all the same
    return places


@app.command()
def show(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Show a job: its state, its settings, its epochs, its verdict."""
    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().show(job, output=output)
    from tunesmith.jobs.detail import job_detail

    state = _open()
    [view] = _with_places(state, [state.jobs.read(job, project=own_project(state))])
    tell_job(job_detail(view, state=state, with_folder=True), output=output)
    return 0


def tell_job(detail: JobDetail, *, output: Output) -> None:
    from tunesmith.cli.report import EPOCH_HEADER, epoch_line, tell_samples, tell_verdict
    from tunesmith.cli.running import tell_artifact

    if output.json_wanted:
        output.result(detail.as_json())
        return
    view = detail.record
    output.say(f"{view.job_id}  {view.name}")
    if detail.request.description:
        output.say(detail.request.description)
    output.say(f"state     {view.state.value}" + (f", phase {view.phase}" if view.phase else ""))
    if view.waiting_reason and view.finished_at is None:
        place = f"number {view.position} in the queue: " if view.position else ""
        output.say(f"waits     {place}{view.waiting_reason}")
    output.say(f"base      {detail.request.model}")
    output.say(f"version   {view.model_version}")
    output.say(f"created   {view.created_at}" + (f", finished {view.finished_at}" if view.finished_at else ""))
    output.say(f"attempts  {view.attempts}")
    if detail.folder is not None:
        output.say(f"folder    {detail.folder}")
    if view.progress is not None and detail.verdict is None:
        output.say(f"step      {view.progress.step:,} of {view.progress.steps:,}")
    if detail.base is not None:
        output.say(EPOCH_HEADER)
        output.say(epoch_line(0, detail.base.training, detail.base.validation))
    for epoch in detail.epochs:
        output.say(epoch_line(epoch.epoch, epoch.training, epoch.validation))
    for notice in detail.notices:
        output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
    tell_samples(output, detail.samples)
    if detail.verdict is not None:
        tell_verdict(output, detail.verdict)
    if detail.artifact_uri is not None:
        tell_artifact(output, detail)
    if detail.failure is not None:
        output.say(f"{detail.failure['code']}: {detail.failure['message']} {detail.failure['hint'] or ''}".rstrip())


@app.command()
def curves(
    job: JobArgument,
    points: Annotated[int, typer.Option("--points", min=4, max=4000, help="At most this many steps.")] = 20,
    first: Annotated[int, typer.Option("--first", min=1, help="Only steps from this one on.")] = 1,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only steps up to this one.")] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Show a job's loss, learning rate, speed and memory by step; of many steps the first, the last, the extremes."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.jobs.curves(job, points=points, first=first, last=last)
    if not json_wanted:
        rows = [
            (step, f"{loss:.4f}", f"{rate:.3g}", f"{norm:.3g}", f"{speed:,.0f}", f"{memory / 1e9:.2f} GB")
            for step, loss, rate, norm, speed, memory in zip(
                found.step, found.loss, found.learning_rate, found.gradient_norm, found.tokens_per_second,
                found.memory_bytes, strict=True,
            )
        ]  # fmt: skip
        headings = ("step", "loss", "learning rate", "gradient norm", "tokens/s", "memory")
        tell_table(output, headings, rows, none="No step has ended yet.")
    output.result(found.as_json())
    return 0


@app.command()
def logs(
    job: JobArgument,
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many lines from the end.")] = 200,
    search: Annotated[str | None, typer.Option("--search", help="Only lines that hold this text.")] = None,
    download: Annotated[
        str | None, typer.Option("--download", metavar="FILE", help="Write the whole log into a new file.")
    ] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Show the end of a job's worker log, search it, or download it."""
    from tunesmith.jobs.records import last_lines

    output = Output(json_wanted=json_wanted)
    if download is not None:
        return _over_client().download_log(job, download, output=output)
    if _is_elsewhere() or search is not None:
        return _over_client().logs(job, lines=lines, search=search, output=output)
    state = _open()
    folder = state.folder(job, project=own_project(state))
    found = last_lines(folder.worker_log, lines=lines)
    if json_wanted:
        output.result({"job_id": folder.job_id, "path": str(folder.worker_log), "lines": found})
        return 0
    for line in found:
        output.say(line)
    if not found:
        output.say(f"The log {folder.worker_log} is empty: the worker had nothing to say beside its events.")
    return 0


@app.command()
def resume(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Go on with a job in the foreground, from its newest checkpoint or beside its living worker.

    One that another process looks after is followed to the same end; Ctrl-C ends the following alone. A finished job
    tells its result again. With TUNESMITH_URL that server goes on with it.
    """
    from tunesmith.cli.report import Reporter
    from tunesmith.cli.running import run_in_foreground
    from tunesmith.jobs.wishes import ask
    from tunesmith.spec.catalog import LOCAL_USER

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "resume", output=output)
    state = _open()
    record = state.jobs.read(job, project=own_project(state))
    if record.is_paused and record.state not in FINAL_STATES:
        ask(state.jobs, job, "resume", actor=LOCAL_USER)
    return run_in_foreground(lambda: state.folder(job), state=state, output=output, reporter=Reporter(output))


@app.command()
def cancel(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """End a job for good, whoever looks after it; its worker gets a few seconds to end."""
    from tunesmith.jobs.wishes import ask
    from tunesmith.spec.catalog import LOCAL_USER

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "cancel", output=output)
    state = _open()
    state.jobs.read(job, project=own_project(state))
    ask(state.jobs, job, "cancel", actor=LOCAL_USER)
    record = _seen_to(state, job, until=lambda record: record.state is not JobState.CANCELING)
    output.say(f"{job} is {record.state}.")
    _tell_result(state, record, output=output)
    return 0


@app.command()
def pause(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Stop a job with a checkpoint, or keep it from starting, until it is resumed."""
    from tunesmith.jobs.wishes import ask
    from tunesmith.spec.catalog import LOCAL_USER

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "pause", output=output)
    state = _open()
    state.jobs.read(job, project=own_project(state))
    ask(state.jobs, job, "pause", actor=LOCAL_USER)
    record = _seen_to(
        state,
        job,
        until=lambda record: (
            record.phase == "waiting" or record.state is JobState.ACCEPTED or record.state in FINAL_STATES
        ),
    )
    waits = record.is_paused and record.phase != "waiting" and record.state is JobState.IN_PROGRESS
    output.say(
        f"{job} will wait as soon as its worker has written a checkpoint." if waits else f"{job} is {_how(record)}."
    )
    _tell_result(state, record, output=output)
    return 0


OWN_OPTIONS = [
    inspect.Parameter("priority", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=PriorityOption),
    inspect.Parameter("run_limit_seconds", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=RunLimitOption),
    inspect.Parameter("watch", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=WatchOption),
]


def _submit(
    values: dict[str, Any], json_wanted: bool, *, priority: int, run_limit_seconds: int | None, watch: bool
) -> int:
    """Submit a job to the server, which runs it as soon as a device is free. A file of this machine is uploaded.

    With --watch it ends like `tunesmith finetune`.
    """
    from tunesmith.cli.options import read_run

    request, settings = read_run(values)
    wanted = request.model_dump(exclude_unset=True) | settings.model_dump(exclude_unset=True)
    wanted |= {"priority": priority} if priority else {}
    wanted |= {"run_limit_seconds": run_limit_seconds} if run_limit_seconds is not None else {}
    return _over_client().submit(wanted, watch=watch, output=Output(json_wanted=json_wanted))


app.command("submit")(with_run_options(_submit, more=OWN_OPTIONS))


@app.command()
def clone(
    job: JobArgument,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="What shall differ, as in epochs=5; once for each."),
    ] = None,
    watch: WatchOption = False,
    json_wanted: JsonOption = False,
) -> int:
    """Submit a job with the model, data and settings of another one."""
    from tunesmith.jobs.settings import read_settings
    from tunesmith.spec.training import TrainingSettings

    changes: dict[str, Any] = {}
    for text in change or []:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageFault(
                "BAD_OPTION", f"--set: {text[:60]!r} is not of the form OPTION=VALUE.", field="set",
                hint="For example --set epochs=5.",
            )  # fmt: skip
        changes[name.removeprefix("--").replace("-", "_")] = value
    typed = read_settings({name: value for name, value in changes.items() if name in TrainingSettings.model_fields})
    changes |= typed.model_dump(exclude_unset=True)
    return _over_client().clone(job, changes, watch=watch, output=Output(json_wanted=json_wanted))


@app.command()
def watch(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Show a job until it ends; the exit code is the job's. Ctrl-C ends the watching, not the job."""
    return _over_client().watch(job, output=Output(json_wanted=json_wanted))


@app.command()
def delete(
    job: JobArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without this nothing is deleted.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Tell what deleting a job that has ended removes and what it keeps; with --yes, delete it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.jobs.deletion(job)
        for heading, lines in (("Goes:", found.goes), ("Stays:", found.stays)):
            output.say(heading)
            for line in lines:
                output.say(f"  {line}")
        if yes:
            client.jobs.delete(job)
    output.say(f"Deleted {job}." if yes else "Nothing was deleted. --yes deletes it.")
    output.result({"deleted": yes, **found.as_json()})
    return 0


def _is_elsewhere() -> bool:
    return bool(os.environ.get("TUNESMITH_URL"))


def _over_client() -> Any:
    """The commands over the client; its libraries are imported when they are needed."""
    from tunesmith.cli import served_job

    return served_job


def _tell_result(state: State, record: JobRecord, *, output: Output) -> None:
    if output.json_wanted:
        output.result(_with_places(state, [record])[0].as_json())


def _how(record: JobRecord) -> str:
    return "paused" if record.is_paused and record.finished_at is None else record.state.value


def _seen_to(state: State, job: str, *, until: Callable[[JobRecord], bool]) -> JobRecord:
    """The record once a wish was fulfilled, or after a while. Where nobody looks after the job, this process does."""
    from tunesmith.errors import MachineCannot
    from tunesmith.jobs.supervisor import StopWish, run_job

    end = time.monotonic() + SEEN_TO_SECONDS
    while not until(record := state.jobs.read(job)) and time.monotonic() < end:
        try:
            run_job(
                state.folder(job), state=state, environment=os.environ, on_event=lambda event: None, wish=StopWish()
            )
        except MachineCannot as error:
            if error.code != "JOB_BUSY":
                raise
            time.sleep(0.1)
    return record


def _open() -> State:
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state

    return open_state(open_home(os.environ))
