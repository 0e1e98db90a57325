"""A job's folder: `$TUNESMITH_HOME/jobs/<job_id>/`. Its record, state and events stand in the database (`store.py`).

Control writes job.json, the plan and the preparation once, before the first worker; events.jsonl, checkpoints and
artifact are the worker's. Folders that no job of the database names are nobody's, and are left alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tunesmith.errors import TunesmithError
from tunesmith.files import fsync_folder, fsync_tree, write_json
from tunesmith.jobs.home import Home
from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import Preparation
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.plan import Plan

Model = TypeVar("Model", bound=Spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFolder:
    path: Path

    @property
    def job_id(self) -> str:
        return self.path.name

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


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_job_id() -> str:
    return f"job-{secrets.token_hex(6)}"


def create_job(home: Home, *, job_file: JobFile, preparation: Preparation, plan: Plan) -> JobFolder:
    """Write the job's folder whole under a temporary name, then give it its own."""
    folder = JobFolder(path=home.jobs / job_file.job_id)
    making = JobFolder(path=home.jobs / f".new-{job_file.job_id}")
    shutil.rmtree(making.path, ignore_errors=True)  # of a process that was killed here
    making.path.mkdir(mode=0o700)
    making.worker_log.parent.mkdir(mode=0o700)
    write_json(making.job_file, job_file.as_json())
    write_json(making.preparation, preparation.as_json())
    write_json(making.plan, plan.as_json())
    fsync_tree(making.path)
    making.path.rename(folder.path)
    fsync_folder(home.jobs)
    return folder


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


def keep_end(log: Path, *, maximum_bytes: int) -> int:
    """Where a log outgrew that, keep the newer half of so many bytes; returns how many were dropped.

    Its writer appends all along: what it writes in the moment of the cut may be among them.
    """
    try:
        size = log.stat().st_size
        if size <= maximum_bytes:
            return 0
        with log.open("r+b") as handle:
            handle.seek(size - maximum_bytes // 2)
            handle.readline()  # the rest of a line
            kept = handle.read(maximum_bytes // 2)
            handle.truncate(0)
        dropped = size - len(kept)
        with log.open("ab") as handle:
            handle.write(f"[tunesmith: {dropped:,} older bytes of this log were dropped]\n".encode() + kept)
        return dropped
    except FileNotFoundError:
        return 0


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
