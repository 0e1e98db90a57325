"""Runs the queue: takes up jobs that nobody looks after, starts accepted ones while devices are free.

In: the state and the environment. Out: jobs that move on, each supervised by a thread of its own
(`supervisor.run_job`). The loop looks twice a second, and at once after `wake`. Nothing that matters is kept in memory:
a service that is killed at any line is followed by another one, which finds the workers alive and follows them. `stop`
is such a death in good order.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from tunesmith.errors import Conflict, MachineCannot, TunesmithError
from tunesmith.jobs.accept import (
    Submission,
    check_submission,
    cloned,
    prepare_accepted,
    submission_notices,
    submit,
    submitted_before,
)
from tunesmith.jobs.launcher import is_running, signal_worker, train_command
from tunesmith.jobs.queue import Load, QueuedJob, QueuePlace, Slot, choose, in_order, places
from tunesmith.jobs.records import JobFolder, read_plan
from tunesmith.jobs.slots import Devices
from tunesmith.jobs.state import State
from tunesmith.jobs.store import Lease, LeaseLost, NumberedEvent, lease_is_held, this_process
from tunesmith.jobs.supervisor import Ended, Ending, StopWish, run_job
from tunesmith.jobs.wishes import cancel, pause, resume
from tunesmith.spec.artifacts import MANIFEST_NAME
from tunesmith.spec.jobs import FINAL_STATES, JobRecord, JobState
from tunesmith.spec.metrics import AnyEvent
from tunesmith.storage.tables import JOBS

__all__ = [
    "JobService", "Submission", "cancel", "check_submission", "cloned", "pause", "resume", "submission_notices",
    "submit", "submitted_before",
]  # fmt: skip

LOOK_SECONDS = 0.5
LOOK_PAUSE_SECONDS = 0.1  # at least, between two looks
PLACES_SECONDS = 1.0
LETTING_GO_SECONDS = 15.0
FOREGROUND_START_SECONDS = 60.0  # a command that submitted a job of its own takes it up within this time
LONGEST_WAIT_SECONDS = 400.0  # no back-off is longer: a later moment means that the clock was turned back
FIRST_FAULT_SECONDS, LONGEST_FAULT_SECONDS = 2.0, 300.0
MAXIMUM_FAULTS = 3

log = logging.getLogger(__name__)

Prepare = Callable[[Lease, JobRecord], JobRecord]


class Supervise(Protocol):
    """What `supervisor.run_job` is to the service."""

    def __call__(
        self,
        folder: JobFolder,
        *,
        state: State,
        environment: Mapping[str, str],
        on_event: Callable[[NumberedEvent | AnyEvent], None],
        wish: StopWish,
        command: Callable[[Path], list[str]],
        prepare: Prepare | None,
    ) -> Ended: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A job that this service looks after."""

    project: str
    slot: str | None
    thread: threading.Thread
    wish: StopWish


@dataclass(slots=True)
class _Fault:
    """How often looking after a job ended without an ending, and when to try again (monotonic)."""

    times: int = 0
    not_before: float = 0.0


class JobService:
    """The queue of one state folder. One at a time: whoever makes it holds the folder (`tunesmith serve`)."""

    def __init__(
        self,
        state: State,
        environment: Mapping[str, str],
        *,
        cpu_jobs: int = 1,
        devices: Devices | None = None,
        supervise: Supervise = run_job,
        command: Callable[[Path], list[str]] = train_command,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._devices = devices or Devices(environment, cpu_jobs=cpu_jobs)
        self._supervise = supervise
        self._command = command
        self._clock = clock
        self._owner = this_process()
        self._lock = threading.Lock()  # over the three below
        self._runs: dict[str, _Run] = {}
        self._faults: dict[str, _Fault] = {}
        self._last_start: dict[str, int] = {}
        self._places: tuple[float, dict[str, QueuePlace]] = (0.0, {})
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""

    # ---- from outside

    def start(self) -> None:
        self._last_start = self._starts_so_far()
        self._thread = threading.Thread(target=self._loop, name="tunesmith-queue", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and let go of every job. Workers run on; the next service follows them."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.wish.is_leaving = True
        end = time.monotonic() + LETTING_GO_SECONDS
        for run in runs:
            run.thread.join(timeout=max(0.0, end - time.monotonic()))

    def wake(self) -> None:
        """Something changed: look now, not in half a second."""
        self._places = (0.0, {})
        self._woken.set()

    def positions(self) -> dict[str, QueuePlace]:
        """The place of each queued job and why it waits; as it was within the last second."""
        read_at, found = self._places
        if time.monotonic() - read_at >= PLACES_SECONDS:
            order = self._order([*self._interrupted(), *self._accepted()])
            with self._lock:
                projects = {job_id: run.project for job_id, run in self._runs.items()}
            found = places(order, self._slots(), projects=projects)
            self._places = (time.monotonic(), found)
        return found

    def running(self) -> dict[str, str | None]:
        """The jobs that this service looks after, and the device of each (None: one that is only followed)."""
        with self._lock:
            return {job_id: run.slot for job_id, run in self._runs.items()}

    # ---- the loop

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
                self._said = ""
            except Exception as error:  # the edge of the queue: a full disk today must not end it for ever
                if str(error) != self._said:
                    self._said = str(error)
                    log.exception("the queue could not look at its jobs; it tries again")
            looked_at = time.monotonic()
            self._woken.wait(LOOK_SECONDS)
            # a hundred submissions a second wake it as often; a look reads the whole queue
            self._stopping.wait(max(0.0, looked_at + LOOK_PAUSE_SECONDS - time.monotonic()))
            self._woken.clear()

    def _look(self) -> None:
        waiting = self._interrupted(begin=True)
        slots = self._slots()
        if any(slot.has_room for slot in slots):
            for job, slot in choose(self._order([*waiting, *self._accepted()]), slots):
                self._begin(job.job_id, project=job.project, slot=slot)

    def _interrupted(self, *, begin: bool = False) -> list[QueuedJob]:
        """Started jobs that nobody looks after and that need a device to go on.

        begin: take up at once those that need none: with a living worker, or to be cancelled.
        """
        query = sa.select(JOBS).where(JOBS.c.state.in_((JobState.IN_PROGRESS, JobState.CANCELING)))
        with self._state.database.read() as connection:
            rows = connection.execute(query).all()
        waiting: list[QueuedJob] = []
        for row in rows:
            if not self._is_ours_to_take(row):
                continue
            pid: int | None = row.worker_pid
            if pid is not None and not is_running(pid, started_at=row.worker_started_at):
                pid = None
            if row.state == JobState.CANCELING or pid is not None:
                if begin:
                    used = self._devices.used_by(pid) if pid is not None else None
                    self._begin(row.job_id, project=row.project, slot=None, used=used)
            elif self._goes_on(row):
                waiting.append(self._queued(row))
        return waiting

    def _is_ours_to_take(self, row: sa.Row[Any]) -> bool:
        with self._lock:
            fault = self._faults.get(row.job_id)
            if row.job_id in self._runs or (fault is not None and fault.not_before > time.monotonic()):
                return False
        return not lease_is_held(row.lease_owner, row.lease_until, now=self._clock())

    def _goes_on(self, row: sa.Row[Any]) -> bool:
        """Whether an interrupted job goes on by itself: not while paused or waiting for a person."""
        if row.is_paused:
            return False
        if row.phase != "waiting":
            return True
        left = row.retry_at - self._clock() if row.retry_at is not None else None
        return left is not None and (left <= 0 or left > LONGEST_WAIT_SECONDS)

    def _queued(self, row: sa.Row[Any]) -> QueuedJob:
        return QueuedJob(
            job_id=row.job_id,
            project=row.project,
            priority=row.priority,
            sequence=row.sequence,
            has_run=True,
            needed_bytes=_needed_bytes(self._folder(row.job_id)),
        )

    def _accepted(self) -> list[QueuedJob]:
        recently = _iso(self._clock() - FOREGROUND_START_SECONDS)
        query = sa.select(JOBS.c.job_id, JOBS.c.project, JOBS.c.priority, JOBS.c.sequence).where(
            JOBS.c.state == JobState.ACCEPTED,
            sa.not_(JOBS.c.is_paused),
            sa.not_(JOBS.c.is_foreground) | (JOBS.c.created_at < recently),
        )
        with self._state.database.read() as connection:
            rows = connection.execute(query).all()
        moment = time.monotonic()
        with self._lock:
            taken = set(self._runs) | {job_id for job_id, fault in self._faults.items() if fault.not_before > moment}
        return [
            QueuedJob(job_id=row.job_id, project=row.project, priority=row.priority, sequence=row.sequence)
            for row in rows
            if row.job_id not in taken
        ]

    def _order(self, jobs: list[QueuedJob]) -> list[QueuedJob]:
        with self._lock:
            running = Counter(run.project for run in self._runs.values())
            load = Load(running=running, last_start=dict(self._last_start))
        return in_order(jobs, load=load)

    def _slots(self) -> list[Slot]:
        with self._lock:
            used = {job_id: run.slot for job_id, run in self._runs.items() if run.slot is not None}
        return self._devices.slots(used)

    def _folder(self, job_id: str) -> JobFolder:
        return JobFolder(path=self._state.home.jobs / job_id)

    # ---- one job

    def _begin(self, job_id: str, *, project: str, slot: Slot | None, used: str | None = None) -> None:
        wish = StopWish()
        thread = threading.Thread(
            target=self._look_after, args=(job_id, slot, wish), name=f"tunesmith-{job_id}", daemon=True
        )
        with self._lock:
            name = slot.name if slot is not None else used
            self._runs[job_id] = _Run(project=project, slot=name, thread=thread, wish=wish)
            if slot is not None:
                self._last_start[project] = max(self._last_start.values(), default=0) + 1
        thread.start()

    def _look_after(self, job_id: str, slot: Slot | None, wish: StopWish) -> None:
        try:
            environment = self._devices.environment(slot)
            ended = self._supervise(
                self._folder(job_id),
                state=self._state,
                environment=environment,
                on_event=_unheard,
                wish=wish,
                command=self._command,
                prepare=lambda lease, record: prepare_accepted(
                    lease, record, state=self._state, environment=environment, wish=wish
                ),
            )
            if ended.ending is Ending.STOPPED:
                self._go_on_unless_paused(job_id)
            if ended.ending is Ending.WAITING:
                # the record may not tell so, where the disk had no room for it
                self._hold_off(job_id)
            else:
                with self._lock:
                    self._faults.pop(job_id, None)
        except LeaseLost:
            log.info("%s is looked after by somebody else now", job_id)
        except Exception as error:  # noqa: BLE001  # the edge of one supervision: told, tried again, then failed
            self._after_fault(job_id, error)
        finally:
            with self._lock:
                del self._runs[job_id]
            self.wake()

    def _go_on_unless_paused(self, job_id: str) -> None:
        """Nobody here asks a worker to stop but by a pause. Another one's signal (a shutdown) is no wish to wait."""
        with self._state.database.write() as connection:
            connection.execute(
                JOBS.update()
                .where(JOBS.c.job_id == job_id, JOBS.c.state == JobState.IN_PROGRESS, JOBS.c.phase == "waiting")
                .where(sa.not_(JOBS.c.is_paused), JOBS.c.retry_at.is_(None), JOBS.c.lease_owner.is_(None))
                .values(retry_at=self._clock())
            )

    def _after_fault(self, job_id: str, error: Exception) -> None:
        """Again after a while; a fault of ours that comes back is the job's end, with that fault as its reason."""
        if isinstance(error, MachineCannot | Conflict) and error.code == "JOB_BUSY":
            return  # its owner came back
        times = self._hold_off(job_id)
        log.error("looking after %s ended in a fault (%d times)", job_id, times, exc_info=error)
        if times >= MAXIMUM_FAULTS and not isinstance(error, OSError):  # a disk or a database gets well again
            try:
                self._give_up(job_id, error)
            except Exception:  # the same edge: it stays as it is and is tried again
                log.exception("%s could not be failed", job_id)

    def _hold_off(self, job_id: str) -> int:
        """Leave the job alone for a while, longer each time; returns how often that was."""
        with self._lock:
            fault = self._faults.setdefault(job_id, _Fault())
            fault.times += 1
            seconds = min(LONGEST_FAULT_SECONDS, FIRST_FAULT_SECONDS * 2.0 ** min(fault.times - 1, 10))
            fault.not_before = time.monotonic() + seconds * random.uniform(1, 1.25)
            return fault.times

    def _give_up(self, job_id: str, error: Exception) -> None:
        if not isinstance(error, TunesmithError):
            error = TunesmithError(
                "INTERNAL",
                f"A fault of ours while looking after the job: {type(error).__name__}.",
                hint="The server's log holds the traceback; please report it.",
            )
        store = self._state.jobs
        lease, record = store.acquire(job_id, owner=self._owner)
        try:
            if record.worker_pid is not None and is_running(record.worker_pid, started_at=record.worker_started_at):
                signal_worker(record.worker_pid, 9, whole_group=True)
            if record.state not in FINAL_STATES:
                store.move(
                    job_id, JobState.FAILED, lease=lease, failure=error.form(), failure_family=type(error).__name__
                )
        finally:
            store.release(lease)

    def _starts_so_far(self) -> dict[str, int]:
        """By project, the submission number of its newest started job: near enough to the order of starts."""
        query = sa.select(JOBS.c.project, sa.func.max(JOBS.c.sequence)).where(JOBS.c.started_at.is_not(None))
        with self._state.database.read() as connection:
            rows = connection.execute(query.group_by(JOBS.c.project)).all()
        return {project: sequence for project, sequence in rows}  # noqa: C416  # dict(rows) has no type


def _needed_bytes(folder: JobFolder) -> int | None:
    """The plan's peak; None for a job that was not planned yet, or whose training is done."""
    if not folder.plan.is_file() or (folder.artifact / MANIFEST_NAME).is_file():
        return None
    try:
        return read_plan(folder).peak_memory_bytes
    except TunesmithError:
        return None  # whoever looks after the job says that its folder is broken


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _unheard(_event: NumberedEvent | AnyEvent) -> None:
    """Events stand in the database, where everybody reads them."""
