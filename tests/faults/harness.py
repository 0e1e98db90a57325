"""Kills a real `tunesmith serve` and its real workers, and looks at what is left.

`Killed` runs the server over one home, asks it over HTTP, and knows its processes by the folder they work in.
`broken_promises` says what does not hold of a home just now: an empty list is a survival.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from tunesmith.files import sha256_of
from tunesmith.jobs.home import open_home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State, open_state
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.jobs import FINAL_STATES, MOVES, JobRecord, JobState
from tunesmith.storage.tables import EVENTS, IDEMPOTENCY, JOBS, MODEL_VERSIONS

CLOCK = Path(__file__).with_name("clock")  # a folder that moves a server's wall clock
TRAINER, INSPECTOR = "tunesmith.train", "tunesmith.models.inspect"
PATIENCE_SECONDS = 180  # of waits that only a fault of ours would reach
VERSION_OF = {
    JobState.SUCCEEDED: VersionState.ACTIVE,
    JobState.FAILED: VersionState.FAILED,
    JobState.CANCELED: VersionState.CANCELED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    pid: int
    command: list[str]
    folder: Path  # that it works in

    @property
    def is_worker(self) -> bool:
        return TRAINER in self.command

    @property
    def job_id(self) -> str:
        """Of a worker."""
        return self.folder.name


@dataclass(slots=True)
class Killed:
    """One home, its `tunesmith serve`, everything that it accepted, and the bucket of its results if it has one."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    cpu_jobs: int = 2
    bucket: Bucket | None = None
    store_lies: bool = False  # it may give back other bytes than it got, to the check at a submission, too
    accepted: list[str] = field(default_factory=list[str])
    keys: set[str] = field(default_factory=set[str])  # of idempotency: one job each, however often it was asked for
    server: subprocess.Popen[str] | None = None
    client: httpx2.Client | None = None
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = open_state(open_home({"TUNESMITH_HOME": str(self.root)}))

    def begin_start(self) -> None:
        """Start the server; it may be killed before it serves."""
        assert self.server is None
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json", "--cpu-jobs", str(self.cpu_jobs)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                env={
                    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **self.environment,
                    "TUNESMITH_HOME": str(self.root),
                },
            )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it serves."""
        self.begin_start()
        assert self.server is not None and self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, f"the server did not start\n{self.told()}"
        token = (self.root / "token").read_text().strip()
        self.client = httpx2.Client(
            base_url=json.loads(line)["url"], headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )

    @property
    def log(self) -> Path:
        return self.root.parent / f"{self.root.name}-server.log"

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Raises httpx2.TransportError where the server is killed meanwhile."""
        assert self.client is not None
        return self.client.request(method, path, **options)

    def submit(self, *, key: str | None = None, **asked: Any) -> str:
        """Over HTTP; it counts as accepted once it was answered.

        A store that is caught lying is refused in its name; the refusal keeps nothing, and the same key is sent again.
        """
        headers = {"Idempotency-Key": key} if key is not None else {}
        answer = self.ask("POST", "/api/jobs", json=asked, headers=headers)
        while self.store_lies and answer.is_error and answer.json()["error"]["code"] == "OBJECT_DAMAGED":
            answer = self.ask("POST", "/api/jobs", json=asked, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        job_id: str = answer.json()["job_id"]
        if job_id not in self.accepted:
            self.accepted.append(job_id)
        if key is not None:
            self.keys.add(key)
        return job_id

    def wish(self, job_id: str, what: str) -> None:
        """Pause, resume or cancel; a job that ended meanwhile refuses, which is no fault."""
        answer = self.ask("POST", f"/api/jobs/{job_id}/{what}")
        assert answer.status_code in (200, 409), answer.text

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self._gone()

    def stop_server(self) -> None:
        """In good order."""
        assert self.server is not None
        self.server.terminate()
        self._gone()

    def _gone(self) -> None:
        assert self.server is not None and self.server.stdout is not None
        self.server.wait(timeout=PATIENCE_SECONDS)
        self.server.stdout.close()
        self.server = None
        if self.client is not None:
            self.client.close()
            self.client = None

    def processes(self) -> list[Process]:
        """The live workers and inspectors of this home."""
        return [each for each in _processes() if each.folder.is_relative_to(self.root)]

    def workers(self) -> list[Process]:
        return [each for each in self.processes() if each.is_worker]

    def records(self) -> list[JobRecord]:
        return self.state.jobs.records()

    def unfinished(self) -> list[JobRecord]:
        return [record for record in self.records() if record.state not in FINAL_STATES]

    def wait(self, until: Callable[[], bool], what: str, *, seconds: float = PATIENCE_SECONDS) -> float:
        """Returns how long it took."""
        start = time.monotonic()
        while not until():
            assert time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s\n{self.told()}"
            time.sleep(0.05)
        return time.monotonic() - start

    def told(self) -> str:
        """What a failing test should show."""
        told = [each for each in self.records() if each.state not in (JobState.SUCCEEDED, JobState.CANCELED)]
        lines = [f"{each.job_id} {each.state} {each.phase} {each.waiting_reason} {each.failure}" for each in told]
        logs = (self.log, self.root / "logs" / "server.log")
        return "\n".join([*lines, *(line for log in logs if log.exists() for line in _end_of(log))])

    def end(self) -> None:
        """Nothing of this home runs on."""
        if self.server is not None:
            self.kill_server()
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.state.database.close()


def _end_of(log: Path) -> list[str]:
    return [line[:3000] for line in log.read_text().splitlines() if '"message": "request"' not in line][-30:]


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Where results go, read past whatever trouble the server has with it."""

    name: str
    client: Any  # boto3's
    whole: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # manifests that were looked through

    def broken(self) -> Iterator[str]:
        """A manifest is there only where every byte of its artifact is, in the versions that it names."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        for found in (each for page in pages for each in page.get("Contents", ())):
            seen = (found["Key"], found["ETag"])
            if not found["Key"].endswith(f"/{MANIFEST_NAME}") or seen in self.whole:
                continue
            manifest = Manifest.model_validate_json(self._read(found["Key"]))
            prefix = found["Key"].removesuffix(MANIFEST_NAME)
            for file in manifest.files:
                if hashlib.sha256(self._read(prefix + file.path, file.version_id)).hexdigest() != file.sha256:
                    yield f"{prefix}{file.path} is not what the manifest says"
            self.whole.add(seen)

    def _read(self, key: str, version_id: str | None = None) -> bytes:
        version = {} if version_id is None else {"VersionId": version_id}
        return self.client.get_object(Bucket=self.name, Key=key, **version)["Body"].read()

    def holds(self, uri: str) -> bool:
        """Whether an artifact is there now; `broken` looks at its bytes."""
        key = f"{uri.removeprefix(f's3://{self.name}/')}/{MANIFEST_NAME}"
        return bool(self.client.list_objects_v2(Bucket=self.name, Prefix=key, MaxKeys=1).get("Contents"))


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
            works_in = (folder / "cwd").readlink()
        except OSError:
            continue
        if TRAINER in words or INSPECTOR in words:
            yield Process(pid=int(folder.name), command=words, folder=works_in)


def broken_promises(home: Killed) -> list[str]:
    """What does not hold, in words. The service may be dead or alive; what it is doing just now is no fault."""
    records = home.records()
    told = [f"{job_id} was accepted and is lost" for job_id in home.accepted if job_id not in _ids(records)]
    told += _of_keys(home)
    told += list(home.bucket.broken()) if home.bucket is not None else []
    with home.state.database.read() as connection:  # one moment for all of it
        for record in records:
            told += [f"{record.job_id}: {fault}" for fault in _of_events(connection, record.job_id)]
            told += [f"{record.job_id}: {fault}" for fault in _of_version(connection, home, record.job_id)]
    for record in records:
        told += [f"{record.job_id}: {fault}" for fault in _of_files(JobFolder(path=home.root / "jobs" / record.job_id))]
    told += _of_results(home)
    told += _of_processes(home)
    return told


def _ids(records: list[JobRecord]) -> set[str]:
    return {record.job_id for record in records}


def _of_keys(home: Killed) -> Iterator[str]:
    """What was asked for again after a broken connection was made once."""
    with home.state.database.read() as connection:
        made = connection.execute(sa.select(IDEMPOTENCY.c.key, IDEMPOTENCY.c.object_id)).all()
        jobs = set(connection.execute(sa.select(JOBS.c.job_id)).scalars())
    for key in home.keys - {row.key for row in made}:
        yield f"the key {key} of an accepted job is lost"
    for job_id in jobs - {row.object_id for row in made} - set(home.accepted):
        yield f"{job_id} is there and nobody asked for it"


def _of_events(connection: sa.Connection, job_id: str) -> Iterator[str]:
    """The log's numbers have no gap, and its state events are a way along the table to the job's one state."""
    rows = connection.execute(
        sa.select(EVENTS.c.number, EVENTS.c.kind, EVENTS.c.body)
        .where(EVENTS.c.job_id == job_id)
        .order_by(EVENTS.c.number)
    ).all()
    record = _record(connection, job_id)
    if [row.number for row in rows] != list(range(1, record.num_events + 1)):
        yield f"its events are numbered {[row.number for row in rows]}, and it counts {record.num_events}"
    moves = [json.loads(row.body) for row in rows if row.kind == "state"]
    if not moves or moves[0]["state"] != JobState.ACCEPTED or moves[0]["previous"] is not None:
        yield f"its log does not begin with its acceptance: {moves}"
        return
    for before, after in itertools.pairwise(moves):
        if after["previous"] != before["state"] or JobState(after["state"]) not in MOVES[JobState(before["state"])]:
            yield f"its log goes from {before} to {after}"
    if moves[-1]["state"] != record.state:
        yield f"it is {record.state} and its log ends in {moves[-1]['state']}"
    if record.state is JobState.FAILED and record.failure is None:
        yield "it failed without a reason"


def _of_version(connection: sa.Connection, home: Killed, job_id: str) -> Iterator[str]:
    """The model version moves with its job; an artifact is seen of a whole one only."""
    record = _record(connection, job_id)
    version = connection.execute(sa.select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.job_id == job_id)).one()
    expected = VERSION_OF.get(record.state, VersionState.CREATING)
    if version.state != expected:
        yield f"it is {record.state} and its model version {version.state}"
    if version.state == VersionState.ACTIVE:
        if home.bucket is not None and record.results_uri.startswith("s3://"):
            is_there = home.bucket.holds(record.results_uri)
        else:
            folder = home.root / "results" / record.model_version.replace(":", "/")
            is_there = (folder / MANIFEST_NAME).is_file()
        if not is_there:
            yield f"its model version is ACTIVE and {record.results_uri} has no manifest"
    elif version.artifact_uri is not None and (record.failure or {}).get("code") != "NOT_USABLE":
        yield f"its model version is {version.state} and shows an artifact"


def _record(connection: sa.Connection, job_id: str) -> JobRecord:
    from tunesmith.jobs.store import JobStore

    return JobStore(None).read(job_id, connection=connection)  # type: ignore[arg-type]  # with a connection it opens none


def _of_files(folder: JobFolder) -> Iterator[str]:
    """A file with a final name is whole."""
    for path in (folder.job_file, folder.plan, folder.preparation):
        with contextlib.suppress(FileNotFoundError):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                yield f"{path} is cut"
    for checkpoint in (folder.path / "checkpoints").glob("step-*"):
        with contextlib.suppress(FileNotFoundError):  # an old one is removed just now
            kept = json.loads((checkpoint / "state.json").read_bytes())
            if sha256_of(checkpoint / "tensors.safetensors") != kept["tensors_sha256"] and checkpoint.exists():
                yield f"{checkpoint} is not what its checksum says"


def _of_results(home: Killed) -> Iterator[str]:
    """Whatever lies under a final name of the results is a whole artifact."""
    for folder in (home.root / "results").glob("*/[0-9]*"):
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError) as error:
            yield f"{folder} has no manifest that can be read: {error}"
            continue
        named = {file.path for file in manifest.files} | {MANIFEST_NAME}
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if named != found:
            yield f"{folder} holds {sorted(found ^ named)} beside or short of its manifest"
        for file in manifest.files:
            if sha256_of(folder / file.path) != file.sha256:
                yield f"{folder / file.path} is not what the manifest says"


def _of_processes(home: Killed) -> Iterator[str]:
    """No job has two workers, and none that ended has one."""
    workers = home.workers()
    for job_id in {worker.job_id for worker in workers}:
        pids = [worker.pid for worker in workers if worker.job_id == job_id]
        if len(pids) > 1 and len(_still(pids)) > 1:
            yield f"{job_id} has {len(pids)} workers: {pids}"
    final = {record.job_id for record in home.records() if record.state in FINAL_STATES}
    for worker in workers:
        if worker.job_id in final and _still([worker.pid]):
            yield f"{worker.job_id} has ended and its worker {worker.pid} runs on"


def _still(pids: list[int], *, seconds: float = 2.0) -> list[int]:
    """Those that live on for a moment longer: one that was just killed takes a while to go."""
    end = time.monotonic() + seconds
    while pids and time.monotonic() < end:
        time.sleep(0.05)
        pids = [pid for pid in pids if _state_of(pid) not in ("", "Z", "X")]
    return pids


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@contextlib.contextmanager
def small_file_system(folder: Path, *, megabytes: int) -> Generator[Path | None]:
    """One of its own, small enough to fill; None where mounting is not permitted."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    try:
        yield folder if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take every free byte of the file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    if handle.write(b"x" * size) == 0:
                        break
                except OSError:
                    break
    return filler
