"""Looks after one job from its first worker to its published artifact.

In: a job's folder. Out: its events as they come, and an `Ending`. Starts the worker or follows one that lives, forwards
a wish to stop, starts a killed worker again (3 attempts), publishes. Knows no terminal and no exit code. Killed itself
at any line it leaves a job that `run_job` takes up again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tunesmith.errors import ErrorForm, JobFailed, MachineCannot, TunesmithError, from_form
from tunesmith.jobs.events import EventTail, History, append_event, job_result
from tunesmith.jobs.launcher import (
    exit_code,
    is_running,
    process_started_at,
    signal_worker,
    start_logged,
    train_command,
    worker_environment,
)
from tunesmith.jobs.records import JobFolder, last_lines, move, now, read_job_file, read_record, supervising, update
from tunesmith.spec.artifacts import MANIFEST_NAME
from tunesmith.spec.jobs import FINAL_STATES, MAXIMUM_ATTEMPTS, JobRecord, JobResult, JobState
from tunesmith.spec.metrics import AnyEvent, FailureEvent, NoticeEvent, PhaseEvent
from tunesmith.spec.verdict import Outcome
from tunesmith.storage.locations import local_path
from tunesmith.storage.publish import FULL, publish

POLL_SECONDS = 0.05
STOPPED_CODES = frozenset({130, 143, -signal.SIGINT, -signal.SIGTERM})
# Faults that somebody mends outside the job: it waits, with its checkpoint, and is not failed.
WAITING_CODES = frozenset({"DISK_FULL", "RESULTS_NOT_WRITABLE", "RESULTS_NOT_EMPTY"})


class Ending(Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    WAITING = "waiting"  # something must be mended outside; resume goes on
    STOPPED = "stopped"  # somebody asked; resume goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    ending: Ending
    result: JobResult
    error: TunesmithError | None


@dataclass(slots=True)
class StopWish:
    """How often somebody asked to stop: once is a checkpoint and an orderly end, twice is at once."""

    times: int = 0
    told: int = 0


@contextmanager
def listening_for_stop(wish: StopWish) -> Generator[None]:
    """Count SIGINT, SIGTERM and SIGHUP into `wish` for as long as the block runs (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        wish.times += 1

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class _Run:
    """One supervision: the job's folder, its record as last written, and the events heard so far."""

    folder: JobFolder
    record: JobRecord
    environment: Mapping[str, str]
    on_event: Callable[[AnyEvent], None]
    wish: StopWish
    command: Callable[[Path], list[str]]
    tail: EventTail
    history: History = field(default_factory=History)

    def hear(self, *, is_past: bool = False) -> None:
        """Pass on what the worker wrote since the last time; the past does not change the record."""
        for event in self.tail.read():
            self.history.add(event)
            self.on_event(event)
            if isinstance(event, PhaseEvent) and event.phase != self.record.phase and not is_past:
                self.change(phase=event.phase)

    def say(self, event: AnyEvent) -> None:
        """An event of our own, into the log where the disk allows it; only while no worker runs."""
        try:
            append_event(self.folder.events, event)
        except OSError:
            self.history.add(event)
            self.on_event(event)
            return
        self.hear()

    def change(self, **changes: Any) -> None:
        self.record = update(self.folder, self.record, **changes)


def run_job(
    folder: JobFolder,
    *,
    environment: Mapping[str, str],
    on_event: Callable[[AnyEvent], None],
    wish: StopWish,
    command: Callable[[Path], list[str]] = train_command,
) -> Ended:
    """Run the job to an ending, or to a wait. A finished job only tells its result again.

    on_event gets each event of the job once, in order, those of earlier attempts first. `command` starts the worker.
    Raises MachineCannot (JOB_BUSY) while another supervisor holds the job.
    """
    with supervising(folder):
        record = read_record(folder)
        if record.state in FINAL_STATES:
            return _told_again(folder, record)
        run = _Run(folder, record, environment, on_event, wish, command, EventTail(folder.events))
        run.hear(is_past=True)
        if record.state is JobState.ACCEPTED:
            run.record = move(folder, record, JobState.IN_PROGRESS, phase="preparing")
        try:
            run.change(waiting_reason=None, failure=None, failure_family=None)
            ended = _train(run)
            return ended if ended is not None else _publish(run)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return _out_of_space(run, error)


def _told_again(folder: JobFolder, record: JobRecord) -> Ended:
    error = from_form(record.failure, record.failure_family or "") if record.failure else None
    ending = Ending.SUCCEEDED if record.state is JobState.SUCCEEDED else Ending.FAILED
    return Ended(ending=ending, result=job_result(folder), error=error)


def _train(run: _Run) -> Ended | None:
    """Workers until the artifact is whole (None) or the job ends otherwise."""
    starts = 0
    while not _has_artifact(run):
        if run.wish.times:
            return _stopped(run)
        pid = run.record.worker_pid
        if pid is None or not is_running(pid, started_at=run.record.worker_started_at):
            pid = _start(run)
            starts += 1
        code = _watch(run, pid)
        run.change(worker_pid=None, worker_started_at=None)
        if _has_artifact(run):
            break
        failure = run.history.failure
        if failure is not None and not failure.retry:
            return _failed(run, failure.error, failure.family)
        if run.wish.times or code in STOPPED_CODES or (code is None and run.history.phase == "waiting"):
            return _stopped(run)
        end = _how_it_ended(run.folder, code)
        if starts >= MAXIMUM_ATTEMPTS:
            error = JobFailed(
                "WORKER_DIED",
                f"The worker ended {MAXIMUM_ATTEMPTS} times without finishing; the last time {end}.",
                hint=f"Read {run.folder.worker_log}; too little memory is the usual reason for SIGKILL.",
            )
            form, family = (failure.error, failure.family) if failure else (error.form(), "JobFailed")
            run.say(FailureEvent(time=now(), error=form, family=family, retry=False))
            return _failed(run, form, family)
        reason = f"it failed with {failure.error['code']}: {failure.error['message']}" if failure else end
        run.say(
            NoticeEvent(
                time=now(),
                code="WORKER_RESTARTED",
                message=f"The worker ended before its job did: {reason}. Attempt {starts + 1} of {MAXIMUM_ATTEMPTS} "
                "goes on from the newest checkpoint.",
            )
        )
    return None


def _has_artifact(run: _Run) -> bool:
    return run.history.finished is not None and (run.folder.artifact / MANIFEST_NAME).is_file()


def _start(run: _Run) -> int:
    """A worker in the job's own folder; its pid stands in the record before anything is awaited of it."""
    run.history.failure = run.history.phase = None  # what an earlier attempt said is not this one's
    # killed between its manifest and its last event: a worker that finds a manifest would have nothing to do
    (run.folder.artifact / MANIFEST_NAME).unlink(missing_ok=True)
    needs_cuda = read_job_file(run.folder).device == "cuda"
    pid = start_logged(
        run.command(run.folder.job_file),
        folder=run.folder.path,
        log=run.folder.worker_log,
        environment=worker_environment(run.environment, needs_cuda=needs_cuda),
    )
    try:
        run.change(worker_pid=pid, worker_started_at=process_started_at(pid), attempts=run.record.attempts + 1)
    except OSError:
        # nobody would know of it, and a resumed job would start a second one beside it
        signal_worker(pid, signal.SIGKILL, whole_group=True)
        raise
    return pid


def _watch(run: _Run, pid: int) -> int | None:
    """Hear the worker until it ends. Returns its exit code; None for one that is not our child."""
    told = 0
    while is_running(pid, started_at=run.record.worker_started_at):
        run.hear()
        if run.wish.times > told:
            told = run.wish.times
            run.on_event(_stopping(at_once=told > 1))
            signal_worker(pid, signal.SIGTERM if told == 1 else signal.SIGKILL, whole_group=told > 1)
        time.sleep(POLL_SECONDS)
    code = exit_code(pid)
    # whatever it started dies with it: a forked child would go on holding memory and the log
    signal_worker(pid, signal.SIGKILL, whole_group=True)
    run.hear()
    return code


def _stopping(*, at_once: bool) -> NoticeEvent:
    """Told, not kept: the worker may be writing its own events now."""
    message = "Stopping at once." if at_once else "Stopping: the worker writes a checkpoint. Ask again to stop at once."
    return NoticeEvent(time=now(), code="STOPPING", message=message)


def _how_it_ended(folder: JobFolder, code: int | None) -> str:
    said = [line.strip() for line in last_lines(folder.worker_log, lines=20) if line.strip()]
    last = said[-1][:200] if said else ""
    if code is None:
        how = "it was killed"
    elif code < 0:
        how = f"it was killed by {signal.Signals(-code).name}"
    else:
        how = f"it ended with exit code {code}"
    return f"{how} (its log ends: {last})" if last and (code or 0) >= 0 else how


def _publish(run: _Run) -> Ended:
    """Bring the artifact to its results location, then give the job its final state."""
    target = local_path(run.record.results_uri, field="results")
    run.say(PhaseEvent(time=now(), phase="publishing", detail=str(target)))
    try:
        publish(run.folder.artifact, target)
    except TunesmithError as error:
        return _failed(run, error.form(), type(error).__name__)
    artifact_uri = target.as_uri()
    verdict = run.history.verdict
    if verdict is not None and verdict.outcome is Outcome.NOT_USABLE:
        # kept and published as evidence; the state keeps anybody from taking it for a success
        unusable = JobFailed(
            "NOT_USABLE",
            "The tuned model is not usable: " + " ".join(verdict.reasons),
            field="verdict",
            hint="A lower learning rate is the usual remedy; the artifact and its verdict were kept.",
        )
        run.change(artifact_uri=artifact_uri)
        return _failed(run, unusable.form(), "JobFailed")
    run.record = move(
        run.folder, run.record, JobState.SUCCEEDED, artifact_uri=artifact_uri, phase=None, waiting_reason=None
    )
    return Ended(ending=Ending.SUCCEEDED, result=job_result(run.folder), error=None)


def _stopped(run: _Run) -> Ended:
    error = TunesmithError(
        "INTERRUPTED",
        f"The job was stopped after step {run.history.last_step.step}."
        if run.history.last_step
        else "The job was stopped before its first step.",
        hint=f"Go on with `tunesmith job resume {run.folder.job_id}`.",
    )
    return _wait(run, error.form(), type(error).__name__, Ending.STOPPED)


def _failed(run: _Run, form: ErrorForm, family: str) -> Ended:
    """A final failure, or a wait where somebody can mend the cause outside the job."""
    if form["code"] in WAITING_CODES:
        return _wait(run, form, family, Ending.WAITING)
    run.record = move(
        run.folder, run.record, JobState.FAILED, failure=form, failure_family=family, phase=None, waiting_reason=None
    )
    return _told_again(run.folder, run.record)


def _out_of_space(run: _Run, error: OSError) -> Ended:
    """The disk has no room for our own record: the job waits as it was last written, and its worker is stopped."""
    if run.record.worker_pid is not None and is_running(run.record.worker_pid, started_at=run.record.worker_started_at):
        signal_worker(run.record.worker_pid, signal.SIGTERM)
    full = MachineCannot(
        "DISK_FULL",
        f"The disk is full: {error.filename or run.folder.path} could not be written.",
        field="TUNESMITH_HOME",
        hint=f"Free some space. Then go on with `tunesmith job resume {run.folder.job_id}`.",
    )
    result = job_result(run.folder).model_copy(update={"failure": full.form()})
    return Ended(ending=Ending.WAITING, result=result, error=full)


def _wait(run: _Run, form: ErrorForm, family: str, ending: Literal[Ending.WAITING, Ending.STOPPED]) -> Ended:
    if form["code"] in WAITING_CODES:
        resume = f"Then go on with `tunesmith job resume {run.folder.job_id}`."
        form = {**form, "hint": f"{form['hint']} {resume}" if form["hint"] else resume}
    run.say(PhaseEvent(time=now(), phase="waiting", detail=form["message"]))
    run.change(phase="waiting", waiting_reason=form["message"], failure=form, failure_family=family)
    return Ended(ending=ending, result=job_result(run.folder), error=from_form(form, family))
