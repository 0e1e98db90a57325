"""`tunesmith job list | show | logs | resume | pause | cancel`, and `submit | clone | watch` of a server's jobs.

Without TUNESMITH_URL the first six work on this machine's state folder, with or without its server.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.connected import JsonOption, LimitOption, complete_job
from tunesmith.cli.options import with_run_options
from tunesmith.cli.output import Output
from tunesmith.errors import UsageFault

if TYPE_CHECKING:
    from tunesmith.jobs.state import State
    from tunesmith.spec.jobs import JobRecord

PriorityOption = Annotated[
    int, typer.Option("--priority", min=-100, max=100, help="Higher starts earlier among jobs of one project.")
]
RunLimitOption = Annotated[
    int | None, typer.Option("--run-limit-seconds", min=1, help="Running time after which it fails.")
]
SEEN_TO_SECONDS = 15.0

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
    help="Submit, watch, list, show, resume, pause, cancel and clone jobs.",
)  # fmt: skip

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", autocompletion=complete_job)]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show it until it ends, and end with its result.")]


@app.callback()
def job() -> None:
    """Submit, watch, list, show, resume, pause, cancel and clone jobs."""


@app.command("list")
def list_(limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the jobs, the newest first."""
    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().list_(limit=limit, output=output)
    records = _open().jobs.records()[:limit]
    if json_wanted:
        output.result({"jobs": [record.as_json() for record in records]})
        return 0
    if not records:
        output.say("No jobs yet. `tunesmith demo` runs the first one.")
    for record in records:
        state = record.state.value + (f" ({record.phase})" if record.phase else "")
        output.say(f"{record.job_id}  {record.created_at[:19]}  {state:<26}  {record.model_version}  {record.name}")
    return 0


@app.command()
def show(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Show a job: its state, its settings, its epochs, its verdict."""
    from tunesmith.cli.report import EPOCH_HEADER, epoch_line, tell_samples, tell_verdict
    from tunesmith.cli.running import tell_artifact
    from tunesmith.jobs.events import job_result, read_history
    from tunesmith.jobs.records import read_job_file

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().show(job, output=output)
    state = _open()
    folder = state.folder(job)
    record, result, history = state.jobs.read(job), job_result(state.jobs, folder), read_history(state.jobs, job)
    request, asked = state.jobs.asked(job)
    job_file = read_job_file(folder) if folder.job_file.exists() else None  # None: not prepared yet
    if json_wanted:
        shown: dict[str, Any] = {
            **result.as_json(),
            "record": record.as_json(),
            "settings": (job_file.settings if job_file else asked).as_json(),
            "plan_reasons": job_file.plan_reasons if job_file else {},
            "notices": [notice.model_dump(mode="json") for notice in history.notices],
            "samples": [sample.as_json() for sample in history.samples],
            "folder": str(folder.path),
        }
        output.result(shown)
        return 0
    output.say(f"{record.job_id}  {record.name}")
    if request.description:
        output.say(request.description)
    output.say(f"state     {record.state.value}" + (f", phase {record.phase}" if record.phase else ""))
    output.say(f"base      {job_file.base.name if job_file else request.model}")
    output.say(f"version   {record.model_version}")
    output.say(f"created   {record.created_at}" + (f", finished {record.finished_at}" if record.finished_at else ""))
    output.say(f"attempts  {record.attempts}")
    output.say(f"folder    {folder.path}")
    if history.last_step is not None and result.verdict is None:
        output.say(f"step      {history.last_step.step:,} of {history.last_step.steps:,}")
    if history.epochs:
        output.say(EPOCH_HEADER)
    for epoch in sorted(history.epochs.values(), key=lambda epoch: epoch.epoch):
        output.say(epoch_line(epoch.epoch, epoch.training, epoch.validation))
    for notice in history.notices:
        output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
    tell_samples(output, history.samples)
    if result.verdict is not None:
        tell_verdict(output, result.verdict)
    if result.artifact_uri is not None:
        tell_artifact(output, result)
    if record.failure is not None:
        output.say(f"{record.failure['code']}: {record.failure['message']} {record.failure['hint'] or ''}".rstrip())
    return 0


@app.command()
def logs(
    job: JobArgument,
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many lines from the end.")] = 200,
    json_wanted: JsonOption = False,
) -> int:
    """Show the end of a job's worker log."""
    from tunesmith.jobs.records import last_lines

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().logs(job, lines=lines, output=output)
    folder = _open().folder(job)
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

    A finished job tells its result again. With TUNESMITH_URL that server goes on with it.
    """
    from tunesmith.cli.report import Reporter
    from tunesmith.cli.running import run_in_foreground
    from tunesmith.jobs.wishes import resume
    from tunesmith.spec.jobs import FINAL_STATES

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "resume", output=output)
    state = _open()
    record = state.jobs.read(job)
    if record.is_paused and record.state not in FINAL_STATES:
        resume(state.jobs, job)
    return run_in_foreground(lambda: state.folder(job), state=state, output=output, reporter=Reporter(output))


@app.command()
def cancel(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """End a job for good, whoever looks after it; its worker gets a few seconds to end."""
    from tunesmith.jobs.wishes import cancel
    from tunesmith.spec.jobs import JobState

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "cancel", output=output)
    state = _open()
    cancel(state.jobs, job)
    record = _seen_to(state, job, until=lambda record: record.state is not JobState.CANCELING)
    output.say(f"{job} is {record.state}.")
    output.result(record.as_json())
    return 0


@app.command()
def pause(job: JobArgument, json_wanted: JsonOption = False) -> int:
    """Stop a job with a checkpoint, or keep it from starting, until it is resumed."""
    from tunesmith.jobs.wishes import pause
    from tunesmith.spec.jobs import FINAL_STATES, JobState

    output = Output(json_wanted=json_wanted)
    if _is_elsewhere():
        return _over_client().act(job, "pause", output=output)
    state = _open()
    pause(state.jobs, job)
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
    output.result(record.as_json())
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


def _is_elsewhere() -> bool:
    return bool(os.environ.get("TUNESMITH_URL"))


def _over_client() -> Any:
    """The commands over the client; its libraries are imported when they are needed."""
    from tunesmith.cli import served_job

    return served_job


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
