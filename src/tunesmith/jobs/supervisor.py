"""Looks after one job from its first worker to its published artifact.

In: a job of the database and its folder. Out: its events as they come, and an `Ending`. Holds the job's lease, starts
the worker or follows one that lives, forwards a wish to stop, pause or cancel, starts a killed worker again (3
attempts), publishes. Knows no terminal and no exit code. Killed itself at any line it leaves a job that `run_job`
takes up again; when its lease was lost (LeaseLost) it touches nothing more, the worker least of all.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tunesmith.catalog.logs import maximum_bytes_of
from tunesmith.catalog.quotas import limits_of
from tunesmith.catalog.versions import final_columns
from tunesmith.errors import JobFailed, MachineCannot, TunesmithError, from_form
from tunesmith.jobs.events import History, job_result, past_events, row_counts, version_metrics
from tunesmith.jobs.inputs import location_of
from tunesmith.jobs.launcher import (
    Standby,
    exit_code,
    is_running,
    machine_is_idle,
    process_clock,
    process_started_at,
    release,
    signal_worker,
    start_logged,
    train_command,
    worker_environment,
)
from tunesmith.jobs.records import JobFolder, keep_end, last_lines, now, read_job_file
from tunesmith.jobs.state import State
from tunesmith.jobs.store import Lease, this_process
from tunesmith.spec.artifacts import MANIFEST_NAME
from tunesmith.spec.jobs import FINAL_STATES, MAXIMUM_ATTEMPTS, JobRecord, JobResult, JobState
from tunesmith.spec.metrics import AnyEvent, EpochEvent, FailureEvent, NoticeEvent, PhaseEvent
from tunesmith.spec.verdict import Outcome
from tunesmith.storage.locations import BucketPlace, find_place
from tunesmith.storage.objects import Stopped
from tunesmith.storage.publish import FULL, publish
from tunesmith.storage.publish import WAITING_CODES as PUBLISH_WAITING_CODES

POLL_SECONDS = 0.05
HEAR_SECONDS = 0.2  # the worker's events are gathered so long: each gathering is a sync to disk
LOOK_SECONDS = 0.5
BEAT_SECONDS = 5.0
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL of a canceled worker
FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0
STOPPED_CODES = frozenset({130, 143, -signal.SIGINT, -signal.SIGTERM})
# Faults that may pass by themselves: a job of the queue tries again, after longer and longer times.
RETRIED_CODES = frozenset({
    "DISK_FULL", "DISK_FAULT", "RESULTS_NOT_WRITABLE", "LOCATION_UNREACHABLE", "LOCATION_NOT_WRITABLE",
    "LOCATION_NOT_READABLE", "LOCATION_FULL", "CREDENTIALS_REFUSED", "OBJECT_DAMAGED", "DOES_NOT_FIT_NOW",
})  # fmt: skip
# Faults that somebody mends outside the job: it waits, with its checkpoint, and is not failed.
WAITING_CODES = RETRIED_CODES | {"RESULTS_NOT_EMPTY", "VERSIONING_OFF"}

Result = TypeVar("Result")
Prepare = Callable[[Lease, JobRecord], JobRecord]


class Ending(Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    WAITING = "waiting"  # something must be mended outside, or pass; then it goes on
    STOPPED = "stopped"  # somebody asked for a stop or a pause; resume goes on
    LEFT = "left"  # the supervisor was told to go; the worker runs on for the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    ending: Ending
    result: JobResult
    error: TunesmithError | None


@dataclass(slots=True)
class StopWish:
    """What somebody in this process asked of a running supervisor."""

    times: int = 0  # once is a checkpoint and an orderly end, twice is at once
    is_leaving: bool = False  # give the job up as it is, its worker running

    @property
    def is_wanted(self) -> bool:
        return self.times > 0 or self.is_leaving


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


class _Cause(Enum):
    """Why a worker is to stop, with what is told of it; the first that holds counts."""

    CANCEL = f"Canceling: the worker has {GRACE_SECONDS:.0f} seconds to end."
    LIMIT = "The job's time limit is over: the worker is stopped."
    PAUSE = "Pausing: the worker writes a checkpoint."
    WISH = "Stopping: the worker writes a checkpoint. Ask again to stop at once."


class _LeaveAlone(Exception):
    """The supervisor was told to go."""


@dataclass(slots=True)
class _Run:
    """One supervision: the job's folder, its record as last seen, and the events heard so far."""

    folder: JobFolder
    state: State
    lease: Lease
    record: JobRecord
    environment: Mapping[str, str]
    on_event: Callable[[AnyEvent], None]
    wish: StopWish
    command: Callable[[Path], list[str]]
    standby: Standby | None
    history: History = field(default_factory=History)
    may_leave: bool = True
    _heard_bytes: int = -1
    _next_hear: float = 0.0
    _next_look: float = 0.0
    _next_beat: float = field(default_factory=lambda: time.monotonic() + BEAT_SECONDS)

    def pass_on(self, event: AnyEvent) -> None:
        self.history.add(event)
        self.on_event(event)

    def hear(self, *, at_once: bool = False) -> None:
        """Take over what the worker wrote since the last time, and pass it on."""
        if not at_once and time.monotonic() < self._next_hear:
            return
        self._next_hear = time.monotonic() + HEAR_SECONDS
        size = self.folder.events.stat().st_size if self.folder.events.exists() else 0
        if size == self._heard_bytes:
            return
        while heard := [each.event for each in self.state.jobs.take_over(self.lease, self.folder.events)]:
            for event in heard:
                self.pass_on(event)
            phases = [event.phase for event in heard if isinstance(event, PhaseEvent)]
            if phases and phases[-1] != self.record.phase:
                self.change(phase=phases[-1])
            if any(isinstance(event, EpochEvent) for event in heard):
                metrics = version_metrics(self.history, rows=row_counts(self.folder))
                self.state.jobs.describe_version(self.lease, metrics=metrics)
        self._heard_bytes = size

    def look(self) -> None:
        """The heartbeat every few seconds, and every half a second what others wrote into the record."""
        if self.wish.is_leaving and self.may_leave:
            raise _LeaveAlone
        clock = time.monotonic()
        if clock >= self._next_beat:
            self._next_beat, self._next_look = clock + BEAT_SECONDS, clock + LOOK_SECONDS
            self.record = self.state.jobs.renew(self.lease)
        elif clock >= self._next_look:
            self._next_look = clock + LOOK_SECONDS
            self.record = self.state.jobs.read(self.lease.job_id)

    def say(self, event: AnyEvent, **changes: Any) -> None:
        """An event of our own, with the changes of the record that it tells."""
        self.record = self.state.jobs.say(self.lease, event, **changes)
        self.pass_on(event)

    def change(self, **changes: Any) -> None:
        self.record = self.state.jobs.update(self.lease, **changes)

    def move(self, state: JobState, **changes: Any) -> None:
        self.record = self.state.jobs.move(self.lease.job_id, state, lease=self.lease, **changes)

    def ended(self, ending: Ending, error: TunesmithError | None = None) -> Ended:
        return Ended(ending=ending, result=job_result(self.state.jobs, self.folder), error=error)

    def cause_to_stop(self) -> _Cause | None:
        if self.record.state is JobState.CANCELING:
            return _Cause.CANCEL
        if self.record.run_limit_seconds is not None and self.ran_seconds() >= self.record.run_limit_seconds:
            return _Cause.LIMIT
        if self.record.is_paused:
            return _Cause.PAUSE
        return _Cause.WISH if self.wish.times else None

    def ran_seconds(self) -> float:
        """Of all attempts, that of a living worker so far."""
        started_at = self.record.worker_started_at
        return self.record.run_seconds + (max(0.0, process_clock() - started_at) if started_at is not None else 0.0)


def run_job(
    folder: JobFolder,
    *,
    state: State,
    environment: Mapping[str, str],
    on_event: Callable[[AnyEvent], None],
    wish: StopWish,
    command: Callable[[Path], list[str]] = train_command,
    prepare: Prepare | None = None,
    standby: Standby | None = None,
    told: int = 0,
) -> Ended:
    """Run the job to an ending, or to a wait. A finished job only tells its result again.

    on_event gets each event of the job once, in order, what is past first (of past steps the newest alone, and none up
    to the number `told`).
    `command` starts the worker, where none stands by. `prepare` makes the folder of a job that was submitted before it
    was inspected; it runs in a thread of its own, and should give up (with any TunesmithError) once `wish.is_wanted`.
    Raises MachineCannot (JOB_BUSY) while another supervisor holds the job, LeaseLost when another one took it,
    Unknown (UNKNOWN_JOB).
    """
    record = state.jobs.read(folder.job_id)
    if record.state in FINAL_STATES:
        return told_again(folder, state, record)
    lease, record = state.jobs.acquire(folder.job_id, owner=this_process())
    run = _Run(folder, state, lease, record, environment, on_event, wish, command, standby)
    try:
        return _run(run, prepare, told)
    except _LeaveAlone:
        return run.ended(Ending.LEFT)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _out_of_space(run, error)
    finally:
        with contextlib.suppress(OSError):  # a full disk: the lease ends with this process, or lapses
            state.jobs.release(lease)


def _run(run: _Run, prepare: Prepare | None, told: int) -> Ended:
    if ended := _begin(run):
        return ended
    for each in past_events(run.state.jobs, run.lease.job_id):
        run.history.add(each.event)
        if each.number > told:
            run.on_event(each.event)
    run.hear(at_once=True)
    if prepare is not None and not run.folder.job_file.exists():
        ended = _prepare(run, prepare)
        if ended is not None:
            return ended
    ended = _train(run)
    return ended if ended is not None else _publish(run)


def _begin(run: _Run) -> Ended | None:
    """Into IN_PROGRESS, with what a wait left behind taken off; a job that ended or was paused meanwhile stays so."""
    with run.state.database.write() as connection:
        run.record = run.state.jobs.read(run.lease.job_id, connection=connection)
        if run.record.state is JobState.ACCEPTED and not run.record.is_paused:
            run.record = run.state.jobs.move(
                run.lease.job_id, JobState.IN_PROGRESS, lease=run.lease, connection=connection,
                phase="preparing", waiting_reason=None,
            )  # fmt: skip
            return None
    if run.record.state in FINAL_STATES:
        return told_again(run.folder, run.state, run.record)
    if run.record.state is JobState.ACCEPTED:
        return _stopped(run)
    if not run.record.is_paused:
        phase = "preparing" if run.record.phase == "waiting" else run.record.phase
        run.change(phase=phase, waiting_reason=None, retry_at=None, failure=None, failure_family=None)
    return None


def told_again(folder: JobFolder, state: State, record: JobRecord) -> Ended:
    """The ending of a job in its final state."""
    result = job_result(state.jobs, folder)
    if record.state is JobState.CANCELED:
        return Ended(ending=Ending.CANCELED, result=result, error=JobFailed("CANCELED", "The job was canceled."))
    error = from_form(record.failure, record.failure_family or "") if record.failure else None
    ending = Ending.SUCCEEDED if record.state is JobState.SUCCEEDED else Ending.FAILED
    return Ended(ending=ending, result=result, error=error)


def _prepare(run: _Run, prepare: Prepare) -> Ended | None:
    """The folder of a job that has none yet; None once it is there."""
    if ended := _ended_by_wish(run):
        return ended
    run.say(PhaseEvent(time=now(), phase="preparing"))
    try:
        _meanwhile(run, lambda: prepare(run.lease, run.record), may_give_up=True)
    except TunesmithError as error:
        return _ended_by_wish(run, look_now=True) or _failed(run, error)
    return _ended_by_wish(run, look_now=True)


def _meanwhile(
    run: _Run, work: Callable[[], Result], *, may_give_up: bool, stop: threading.Event | None = None
) -> Result | None:
    """Let `work` run in a thread, and keep the lease meanwhile. None where it was given up: somebody wants a stop.

    stop: set at that wish, for work that ends itself.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the supervisor's own thread
            errors.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    asked_at: float | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        run.look()
        if stop is not None and run.cause_to_stop() is not None:
            stop.set()
        if may_give_up and asked_at is None and run.cause_to_stop() is not None:
            asked_at = time.monotonic()
            run.wish.times = max(1, run.wish.times)
        if asked_at is not None and time.monotonic() - asked_at > GRACE_SECONDS:
            return None
    if errors:
        raise errors[0]
    return results[0]


def _train(run: _Run) -> Ended | None:
    """Workers until the artifact is whole (None) or the job ends otherwise."""
    starts = 0
    while (pid := _living_worker(run)) is not None or not _has_artifact(run):
        if pid is None:
            if ended := _ended_by_wish(run):
                return ended
            pid = _start(run)
            starts += 1
        code = _watch(run, pid)
        run.change(worker_pid=None, worker_started_at=None, run_seconds=run.ran_seconds())
        if run.record.state is JobState.CANCELING:
            return _canceled(run)
        if _has_artifact(run):
            break
        failure = run.history.failure
        if failure is not None and not failure.retry:
            return _failed(run, from_form(failure.error, failure.family), is_said=True)
        if ended := _ended_by_wish(run):
            return ended
        if code in STOPPED_CODES or (code is None and run.history.phase == "waiting"):
            return _stopped(run)
        end = _how_it_ended(run.folder, code)
        if starts >= MAXIMUM_ATTEMPTS:
            died = JobFailed(
                "WORKER_DIED",
                f"The worker ended {MAXIMUM_ATTEMPTS} times without finishing; the last time {end}.",
                hint=f"Read {run.folder.worker_log}; too little memory is the usual reason for SIGKILL.",
            )
            return _failed(run, from_form(failure.error, failure.family) if failure else died)
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


def _living_worker(run: _Run) -> int | None:
    """The pid of the job's worker. One that died while nobody watched is taken off the record, its children with it."""
    pid, started_at = run.record.worker_pid, run.record.worker_started_at
    if pid is None or is_running(pid, started_at=started_at):
        return pid
    if process_started_at(pid) is None:  # else the pid, and the group of that number, are somebody else's now
        signal_worker(pid, signal.SIGKILL, whole_group=True)
    # it ran at least until its last word
    silent = time.time() - run.folder.events.stat().st_mtime if run.folder.events.exists() else 0.0
    ran = max(0.0, process_clock() - max(0.0, silent) - started_at) if started_at is not None else 0.0
    run.change(worker_pid=None, worker_started_at=None, run_seconds=run.record.run_seconds + ran)
    return None


def _ended_by_wish(run: _Run, *, look_now: bool = False) -> Ended | None:
    """Between two workers: the end that somebody asked for, if anybody did."""
    if look_now:
        run.record = run.state.jobs.read(run.lease.job_id)
    run.look()
    match run.cause_to_stop():
        case None:
            return None
        case _Cause.CANCEL:
            return _canceled(run)
        case _Cause.LIMIT:
            over = JobFailed(
                "RUN_LIMIT",
                f"The job's workers ran for {run.ran_seconds():,.0f} seconds; its limit is "
                f"{run.record.run_limit_seconds:,}.",
                field="run_limit_seconds",
                hint="Start a new job with a higher limit, or with less to do.",
            )
            return _failed(run, over)
        case _:
            return _stopped(run)


def _start(run: _Run) -> int:
    """A worker in the job's own folder; its pid stands in the record before anything is awaited of it."""
    run.history.failure = run.history.phase = None  # what an earlier attempt said is not this one's
    # killed between its manifest and its last event: a worker that finds a manifest would have nothing to do
    (run.folder.artifact / MANIFEST_NAME).unlink(missing_ok=True)
    pid = run.standby.take(run.folder.job_file, log=run.folder.worker_log) if run.standby else None
    if pid is None:
        needs_cuda = read_job_file(run.folder).device == "cuda"
        pid = start_logged(
            run.command(run.folder.job_file),
            folder=run.folder.path,
            log=run.folder.worker_log,
            environment=worker_environment(run.environment, needs_cuda=needs_cuda, is_idle=machine_is_idle()),
            is_held=True,
        )
    try:
        run.change(worker_pid=pid, worker_started_at=process_started_at(pid), attempts=run.record.attempts + 1)
        release(pid)
    except BaseException:
        # nobody would know of it, and a resumed job would start a second one beside it
        signal_worker(pid, signal.SIGKILL, whole_group=True)
        raise
    return pid


def _watch(run: _Run, pid: int) -> int | None:
    """Hear the worker until it ends. Returns its exit code; None for one that is not our child."""
    asked: dict[_Cause, float] = {}
    is_killed = is_cut = False
    with run.state.database.read() as connection:
        log_bytes = limits_of(connection, run.record.submitted_by)[0].log_bytes
        if (kept := maximum_bytes_of(connection, run.record.log)) is not None:
            log_bytes = min(log_bytes, kept)
    while is_running(pid, started_at=run.record.worker_started_at):
        run.hear()
        run.look()
        if keep_end(run.folder.worker_log, maximum_bytes=log_bytes) and not is_cut:
            is_cut = True
            cut = f"The worker's log outgrew {log_bytes:,} bytes: its older lines are dropped, now and from here on."
            run.say(NoticeEvent(time=now(), code="LOG_CUT", message=cut))
        cause = run.cause_to_stop()
        if cause is not None and cause not in asked:
            if not asked:
                signal_worker(pid, signal.SIGTERM)
            asked[cause] = time.monotonic()
            run.on_event(_told(cause.value))
        ended_by = [asked[final] for final in (_Cause.CANCEL, _Cause.LIMIT) if final in asked]
        is_late = any(time.monotonic() - since > GRACE_SECONDS for since in ended_by)
        if (is_late or run.wish.times > 1) and not is_killed:
            is_killed = True
            run.on_event(_told("Stopping at once."))
            signal_worker(pid, signal.SIGKILL, whole_group=True)
        time.sleep(POLL_SECONDS)
    code = exit_code(pid)
    # whatever it started dies with it: a forked child would go on holding memory and the log
    signal_worker(pid, signal.SIGKILL, whole_group=True)
    run.hear(at_once=True)
    return code


def _told(message: str) -> NoticeEvent:
    """Told to who listens now, not kept: the end that follows is what the log tells."""
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
    """Bring the artifact to its results location, then give job and model version their final state, in one move."""
    run.look()
    if run.record.state is JobState.CANCELING:
        return _canceled(run)
    try:
        artifact_uri = run.record.results_uri
        place = find_place(artifact_uri, field="results")
        location = location_of(artifact_uri, state=run.state) if isinstance(place, BucketPlace) else place
        where = artifact_uri if isinstance(place, BucketPlace) else str(place)
        run.say(PhaseEvent(time=now(), phase="publishing", detail=where), phase="publishing")
        run.may_leave = False  # nobody may publish beside us
        stop = threading.Event()
        publishing = partial(publish, run.folder.artifact, location, environment=run.environment, stop=stop)
        manifest = _meanwhile(run, publishing, may_give_up=False, stop=stop)
        assert manifest is not None, "it was not given up"
    except Stopped:
        return _ended_by_wish(run) or _stopped(run)
    except TunesmithError as error:
        return _failed(run, error, waits_for=PUBLISH_WAITING_CODES)
    metrics = version_metrics(run.history, rows=row_counts(run.folder))
    verdict = run.history.verdict
    version = final_columns(artifact_uri=artifact_uri, manifest=manifest, metrics=metrics, verdict=verdict)
    if verdict is not None and verdict.outcome is Outcome.NOT_USABLE:
        # kept and published as evidence; the state keeps anybody from taking it for a success
        unusable = JobFailed(
            "NOT_USABLE",
            "The tuned model is not usable: " + " ".join(verdict.reasons),
            field="verdict",
            hint="A lower learning rate is the usual remedy; the artifact and its verdict were kept.",
        )
        return _failed(run, unusable, artifact_uri=artifact_uri, version=version)
    run.move(JobState.SUCCEEDED, artifact_uri=artifact_uri, version=version)
    return run.ended(Ending.SUCCEEDED)


def _canceled(run: _Run) -> Ended:
    run.move(JobState.CANCELED)
    return told_again(run.folder, run.state, run.record)


def _stopped(run: _Run) -> Ended:
    how = "paused" if run.record.is_paused else "stopped"
    step = run.history.last_step
    error = TunesmithError(
        "PAUSED" if run.record.is_paused else "INTERRUPTED",
        f"The job was {how} after step {step.step}." if step else f"The job was {how} before its first step.",
        hint=f"Go on with `tunesmith job resume {run.folder.job_id}`.",
    )
    if run.record.state is JobState.ACCEPTED:  # paused before anything began: it keeps its place in the queue
        return run.ended(Ending.STOPPED, error)
    return _wait(run, Ending.STOPPED, error, retry_at=None)


def _failed(
    run: _Run,
    error: TunesmithError,
    *,
    is_said: bool = False,
    waits_for: frozenset[str] = frozenset(),
    **changes: Any,
) -> Ended:
    """A final failure, or a wait where somebody can mend the cause outside the job."""
    form, family = error.form(), type(error).__name__
    if error.code in WAITING_CODES | waits_for:
        resume = f"Then go on with `tunesmith job resume {run.folder.job_id}`."
        error.hint = f"{error.hint} {resume}" if error.hint else resume
        return _wait(run, Ending.WAITING, error, retry_at=_retry_at(run, error.code))
    if not is_said:
        run.say(FailureEvent(time=now(), error=form, family=family, retry=False))
    run.move(JobState.FAILED, failure=form, failure_family=family, **changes)
    return told_again(run.folder, run.state, run.record)


def _wait(run: _Run, ending: Ending, error: TunesmithError, *, retry_at: float | None) -> Ended:
    run.say(
        PhaseEvent(time=now(), phase="waiting", detail=error.message),
        phase="waiting", waiting_reason=error.message, failure=error.form(), failure_family=type(error).__name__,
        retry_at=retry_at,
    )  # fmt: skip
    # canceled since the last look: nobody else would see it once the lease is given back
    return _canceled(run) if run.record.state is JobState.CANCELING else run.ended(ending, error)


def _retry_at(run: _Run, code: str) -> float | None:
    """When a job of the queue tries again by itself: 5 s after its first wait in a row, doubling up to 5 min."""
    if run.record.is_foreground or code not in RETRIED_CODES:
        return None
    waits = 0
    recent = run.state.jobs.events(run.lease.job_id, kinds=("phase", "step", "finished"), newest=True, limit=100)
    for each in reversed(recent):
        if not isinstance(each.event, PhaseEvent):
            break  # it got somewhere since
        waits += each.event.phase == "waiting"
    seconds = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(waits, 10))
    return time.time() + seconds * random.uniform(0.8, 1.2)  # many that met one full disk do not come back as one


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
    result = job_result(run.state.jobs, run.folder).model_copy(update={"failure": full.form()})
    return Ended(ending=Ending.WAITING, result=result, error=full)
