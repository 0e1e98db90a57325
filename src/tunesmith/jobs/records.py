"""A job's folder and its record: `$TUNESMITH_HOME/jobs/<job_id>/`.

The record is written whole and atomically; a state changes through `move` alone, which checks the table of allowed
moves. A lock held by the operating system keeps two supervisors off one job. Events are the worker's (`events.py`).
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tunesmith.errors import MachineCannot, TunesmithError, UsageFault
from tunesmith.files import fsync_folder, fsync_tree, write_json
from tunesmith.jobs.home import Home
from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import Preparation
from tunesmith.spec.jobs import FINAL_STATES, MOVES, JobFile, JobRecord, JobState
from tunesmith.spec.plan import Plan

Model = TypeVar("Model", bound=Spec)
JOB_ID = re.compile(r"job-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFolder:
    path: Path

    @property
    def job_id(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def preparation(self) -> Path:
        return self.path / "preparation.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def worker_log(self) -> Path:
        return self.path / "logs" / "worker.log"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_job_id() -> str:
    return f"job-{secrets.token_hex(6)}"


def create_job(home: Home, *, record: JobRecord, job_file: JobFile, preparation: Preparation, plan: Plan) -> JobFolder:
    """Write the job's folder whole under a temporary name, then give it its own."""
    folder = JobFolder(path=home.jobs / record.job_id)
    making = JobFolder(path=home.jobs / f".new-{record.job_id}")
    making.path.mkdir(mode=0o700)
    making.worker_log.parent.mkdir(mode=0o700)
    write_json(making.record, record.as_json())
    write_json(making.job_file, job_file.as_json())
    write_json(making.preparation, preparation.as_json())
    write_json(making.plan, plan.as_json())
    fsync_tree(making.path)
    making.path.rename(folder.path)
    fsync_folder(home.jobs)
    return folder


def find_job(home: Home, job_id: str) -> JobFolder:
    """The folder of a job by its id. Raises UsageFault for an unknown one."""
    folder = JobFolder(path=home.jobs / job_id) if JOB_ID.fullmatch(job_id) else None
    if folder is None or not folder.record.exists():
        raise UsageFault(
            "UNKNOWN_JOB",
            f"There is no job {job_id!r} in {home.jobs}.",
            field="JOB",
            hint="`tunesmith job list` shows the jobs of this machine.",
        )
    return folder


def read_records(home: Home) -> tuple[list[JobRecord], list[TunesmithError]]:
    """The records of every job of this home, the newest first, and the faults of those that cannot be read."""
    records: list[JobRecord] = []
    faults: list[TunesmithError] = []
    for path in home.jobs.iterdir():
        if JOB_ID.fullmatch(path.name):
            try:
                records.append(read_record(JobFolder(path=path)))
            except TunesmithError as error:
                faults.append(error)
    return sorted(records, key=lambda record: record.created_at, reverse=True), faults


def read_record(folder: JobFolder) -> JobRecord:
    return _read(folder.record, JobRecord)


def read_job_file(folder: JobFolder) -> JobFile:
    return _read(folder.job_file, JobFile)


def read_preparation(folder: JobFolder) -> Preparation:
    return _read(folder.preparation, Preparation)


def read_plan(folder: JobFolder) -> Plan:
    return _read(folder.plan, Plan)


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        raise TunesmithError(
            "JOB_FOLDER_BROKEN",
            f"{path} cannot be read: {str(error).splitlines()[0]}.",
            hint="The job's other files are untouched; a job file can be run by hand with `python -m tunesmith.train`.",
        ) from error


def update(folder: JobFolder, record: JobRecord, **changes: Any) -> JobRecord:
    """Write the record with some fields changed; not its state, which only `move` changes."""
    assert "state" not in changes, "a state changes through move()"
    changed = JobRecord.model_validate(record.model_dump() | changes)
    write_json(folder.record, changed.as_json())
    return changed


def move(folder: JobFolder, record: JobRecord, state: JobState, **changes: Any) -> JobRecord:
    """Change the state along the table of moves. Raises TunesmithError for a move that the table does not hold."""
    if state not in MOVES[record.state]:
        raise TunesmithError(
            "FORBIDDEN_MOVE", f"Job {record.job_id} cannot go from {record.state} to {state}.", field="state"
        )
    if state in FINAL_STATES:
        changes = {"finished_at": now(), "worker_pid": None, "worker_started_at": None} | changes
    changed = JobRecord.model_validate(record.model_dump() | changes | {"state": state})
    write_json(folder.record, changed.as_json())
    return changed


@contextmanager
def supervising(folder: JobFolder) -> Generator[None]:
    """Hold the job's lock. The system frees it when this process dies. Raises MachineCannot if another one holds it."""
    handle = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineCannot(
                "JOB_BUSY",
                f"Another tunesmith process is already looking after {folder.job_id}.",
                field="JOB",
                hint=f"Watch it with `tunesmith job show {folder.job_id}`, or stop that process first.",
            ) from error
        yield
    finally:
        os.close(handle)


def last_lines(log: Path, *, lines: int, maximum_bytes: int = 1 << 20) -> list[str]:
    """The end of a log file: at most so many lines, of its last megabyte; empty without a file."""
    try:
        with log.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - maximum_bytes))
            text = handle.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]
