"""Downloads models from the hub: chosen and refused before a byte moves, then done by a process that may die.

In: what somebody wants. Out: a row that waits; and, by the service or a foreground command, the files in their place
and a registered base model. Bytes land in a folder beside the final one, which gets its name when every file has its
hash. A lock of the system says who is at work, so that what a killed server left is taken up by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.catalog import downloads as rows
from tunesmith.catalog.clock import now
from tunesmith.catalog.locations import find_location, location_of_uri
from tunesmith.catalog.models import register_model, require_free_name
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.files import fsync_folder, fsync_tree, sha256_of
from tunesmith.jobs.inputs import registered_folder
from tunesmith.jobs.inspection import inspect
from tunesmith.jobs.state import State
from tunesmith.spec.catalog import NewBaseModel
from tunesmith.spec.datasets import InspectRequest, Notice
from tunesmith.spec.explorer import missing_part
from tunesmith.spec.hub import UNSAFE, DownloadPlan, DownloadState, HubModelDetail, NewDownload, choose_files
from tunesmith.storage.hub import Hub
from tunesmith.storage.locations import is_bucket, local_path
from tunesmith.storage.objects import Stopped, join_key, open_objects

LOG = logging.getLogger("tunesmith.downloads")
AT_ONCE = 2
LOOK_SECONDS = 1.0
PROGRESS_SECONDS = 0.5
FREE_RESERVE_BYTES = 512 << 20
MAXIMUM_ATTEMPTS = 8
RETRY_SECONDS = 5.0  # doubling
LONGEST_RETRY_SECONDS = 300.0
# What may pass by itself; everything else needs somebody.
RETRIED = frozenset({"HUB_UNREACHABLE", "HUB_DAMAGED", "LOCATION_UNREACHABLE", "OUT_OF_MEMORY"})

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A download that was looked at: the commit, the files, the place."""

    new: NewDownload
    name: str
    detail: HubModelDetail


def look(new: NewDownload, *, state: State, environment: Mapping[str, str]) -> Wanted:
    """What a download would bring; refuses what could not be used. Writes nothing.

    Raises what `Hub.look` raises, InputRefused (HUB_NO_SAFETENSORS), MachineCannot (ARCHITECTURE_NOT_SUPPORTED,
    DISK_FULL), Unknown (UNKNOWN_LOCATION), Conflict (MODEL_NAME_TAKEN).
    """
    name = new.name or new.hub_id
    with state.database.read() as connection:
        require_free_name(connection, name)
        base = find_location(connection, new.location).uri if new.location is not None else None
    model, commit, files = Hub(environment).look(new.hub_id, new.revision)
    plan = choose_files(files, include=new.include, exclude=new.exclude)
    names = {file.path for file in plan.files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        has_unsafe = any(each.reason == UNSAFE and each.size > 1 << 20 for each in plan.left_out)
        raise InputRefused(
            "HUB_NO_SAFETENSORS",
            f"{new.hub_id} at {commit[:12]} gives no config.json with safetensors weights"
            + (": its weights are in a format that can run code when it is loaded." if has_unsafe else "."),
            field="hub_id",
            hint="Choose a model with safetensors; patterns may have left them out.",
        )
    if model.model_type is not None and (missing := missing_part(model.model_type, has_experts=False)) is not None:
        raise MachineCannot(
            "ARCHITECTURE_NOT_SUPPORTED", f"{new.hub_id} could not be used here: fine-tuning it lacks {missing}.",
            field="hub_id", hint="`tunesmith model search --label \"Ready to Fine Tune\"` lists what can be.",
        )  # fmt: skip
    below = f"{new.hub_id}/{commit[:12]}"
    target = f"{base.rstrip('/')}/{below}" if base is not None else (state.home.models / below).as_uri()
    free = None if is_bucket(target) else shutil.disk_usage(_existing(local_path(target, field="location"))).free
    _require_room(plan, free=free, target=target, state=state)
    return Wanted(
        new=new,
        name=name,
        detail=HubModelDetail(
            model=model,
            revision=commit,
            plan=plan,
            bytes=plan.bytes,
            free_bytes=free,
            target_uri=target,
            notices=_notices(plan),
        ),
    )


def _require_room(plan: DownloadPlan, *, free: int | None, target: str, state: State) -> None:
    """A bucket is filled file by file: the state folder's disk has to hold the largest."""
    needed = plan.bytes
    if free is None:
        needed, free = max(file.size for file in plan.files), shutil.disk_usage(state.home.root).free
    if free < needed + FREE_RESERVE_BYTES:
        raise MachineCannot(
            "DISK_FULL",
            f"The files have {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free where they would go ({target}).",
            field="location",
            hint="Free some space there, or choose another location.",
        )


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _notices(plan: DownloadPlan) -> list[Notice]:
    unsafe = [each.path for each in plan.left_out if each.reason == UNSAFE]
    if not unsafe:
        return []
    shown = ", ".join(unsafe[:5]) + (f" and {len(unsafe) - 5} more" if len(unsafe) > 5 else "")
    return [Notice(code="UNSAFE_FILES", message=f"Left out: {shown}; {UNSAFE}.")]


def accept(wanted: Wanted, *, state: State, actor: str) -> str:
    """The download's id; it waits for its turn. Raises Conflict."""
    return state.database.write_grouped(
        lambda connection: rows.add_download(
            connection, wanted.new, name=wanted.name, revision=wanted.detail.revision,
            target_uri=wanted.detail.target_uri, plan=wanted.detail.plan, actor=actor,
        )
    )  # fmt: skip


# ---- the work


def run_download(
    download_id: str,
    *,
    state: State,
    environment: Mapping[str, str],
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> bool:
    """Do it until it ends, or has to wait. False: another process is at it. Raises nothing but faults of ours."""
    with _at_work(state, download_id) as is_ours:
        if not is_ours:
            return False
        with state.database.write() as connection:
            work = rows.read_work(connection, download_id)
            if work.view.state is DownloadState.WAITING:
                rows.move_download(connection, download_id, DownloadState.RUNNING)
            elif work.view.state is not DownloadState.RUNNING:
                return True
        running = _Running(work, state=state, environment=environment, stop=stop, progress=progress)
        try:
            running.fetch_all()
            running.register()
        except Stopped:
            running.end_stopped()
        except TunesmithError as error:
            running.end_failed(error)
        return True


class _Running:
    """One download at work."""

    def __init__(
        self,
        work: rows.DownloadWork,
        *,
        state: State,
        environment: Mapping[str, str],
        stop: threading.Event | None,
        progress: Progress | None,
    ) -> None:
        self._work, self._view = work, work.view
        self._state, self._environment = state, environment
        self._stop, self._progress = stop, progress
        self._is_canceled = False
        self._before = 0  # bytes of the files that are whole
        self._noted_at = 0.0

    def fetch_all(self) -> None:
        hub = Hub(self._environment)
        if is_bucket(self._view.target_uri):
            self._fetch_to_bucket(hub)
        else:
            self._fetch_to_folder(hub)

    def _fetch_to_folder(self, hub: Hub) -> None:
        target = local_path(self._view.target_uri, field="location")
        part = target.with_name(target.name + ".part")
        folder = target if target.is_dir() else part  # whole already, by an earlier download
        _make_folder(folder)
        for file in self._work.plan.files:
            hub.fetch_file(self._view.hub_id, self._view.revision, file, folder / file.path, progress=self._told)
            self._before += file.size
        if folder is part:
            try:
                fsync_tree(part)
                part.rename(target)
                fsync_folder(target.parent)
            except OSError as error:
                raise MachineCannot(
                    "DISK_FAULT", f"{target} could not be made: {error.strerror}.", field="location"
                ) from error

    def _fetch_to_bucket(self, hub: Hub) -> None:
        """File by file through the state folder; one that lies there with its hash is not sent again."""
        with self._state.database.read() as connection:
            location = location_of_uri(connection, self._view.target_uri)
        store, prefix = open_objects(location, self._environment, stop=self._stop)
        staging = self._state.home.downloads / self._view.download_id
        _make_folder(staging)
        for file in self._work.plan.files:
            key = join_key(prefix, file.path)
            try:
                there = store.head(key)
                is_there = there.size == file.size and file.sha256 in (None, there.sha256) and there.sha256 is not None
            except InputRefused:
                is_there = False
            if not is_there:
                path = staging / file.path
                hub.fetch_file(self._view.hub_id, self._view.revision, file, path, progress=self._told)
                store.put_file(key, path, sha256=file.sha256 or sha256_of(path))
                path.unlink()
            self._before += file.size
            self._told(0)
        shutil.rmtree(staging, ignore_errors=True)

    def _told(self, done: int) -> None:
        """Called for every piece. Raises Stopped."""
        if self._stop is not None and self._stop.is_set():
            raise Stopped
        bytes_done = self._before + done
        if self._progress is not None:
            self._progress(bytes_done, self._view.bytes_total)
        if time.monotonic() - self._noted_at < PROGRESS_SECONDS and bytes_done < self._view.bytes_total:
            return
        self._noted_at = time.monotonic()
        download_id = self._view.download_id
        self._is_canceled = self._state.database.write_grouped(
            lambda connection: rows.note_progress(connection, download_id, bytes_done)
        )
        if self._is_canceled:
            raise Stopped

    def register(self) -> None:
        """Inspect, then one transaction makes it a base model and the download a success."""
        view = self._view
        is_local = not is_bucket(view.target_uri)
        path = str(local_path(view.target_uri, field="location")) if is_local else view.target_uri
        folder = registered_folder(view.name, path, state=self._state, environment=self._environment).path
        question = InspectRequest(model_name=view.name, model_path=str(folder))
        facts = inspect(question, home=self._state.home, environment=self._environment).facts
        assert facts is not None
        new = NewBaseModel(name=view.name, path=path, description=self._work.description, tags=self._work.tags)
        with self._state.database.write() as connection:
            register_model(
                connection, new, facts=facts, actor=view.submitted_by, hub_id=view.hub_id,
                revision=view.revision,
            )  # fmt: skip
            rows.move_download(
                connection, view.download_id, DownloadState.SUCCEEDED, bytes_done=view.bytes_total, finished_at=now()
            )

    def end_stopped(self) -> None:
        """Cancelled: what came is removed, then it is said. Else the server ends, and the next one goes on."""
        download_id = self._view.download_id
        if self._is_canceled:
            discard(self._view.target_uri, download_id, state=self._state)
        with self._state.database.write() as connection:
            if self._is_canceled:
                rows.move_download(connection, download_id, DownloadState.CANCELED, finished_at=now())
            else:
                rows.move_download(
                    connection, download_id, DownloadState.WAITING, waiting_reason="The server ended."
                )  # fmt: skip

    def end_failed(self, error: TunesmithError) -> None:
        attempts = self._work.attempts + 1
        is_retried = error.code in RETRIED and attempts < MAXIMUM_ATTEMPTS
        LOG.warning(
            "a download %s", "waits" if is_retried else "failed",
            extra={"fields": {"download_id": self._view.download_id, "code": error.code}},
        )  # fmt: skip
        with self._state.database.write() as connection:
            if is_retried:
                pause = min(RETRY_SECONDS * 2 ** (attempts - 1), LONGEST_RETRY_SECONDS)
                rows.move_download(
                    connection, self._view.download_id, DownloadState.WAITING, attempts=attempts,
                    waiting_reason=f"{error.message} It goes on in {pause:.0f} seconds.", retry_at=time.time() + pause,
                )  # fmt: skip
            else:
                rows.move_download(
                    connection, self._view.download_id, DownloadState.FAILED, failure=json.dumps(error.form()),
                    finished_at=now(),
                )  # fmt: skip


def discard(target_uri: str, download_id: str, *, state: State) -> None:
    """Remove what a cancelled download had received and did not finish."""
    shutil.rmtree(state.home.downloads / download_id, ignore_errors=True)
    if not is_bucket(target_uri):
        target = local_path(target_uri, field="location")
        shutil.rmtree(target.with_name(target.name + ".part"), ignore_errors=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineCannot(
            "LOCATION_NOT_WRITABLE", f"{path} cannot be made: {error.strerror}.", field="location",
            hint="Choose a location that the server may write.",
        ) from error  # fmt: skip


@contextmanager
def _at_work(state: State, download_id: str) -> Generator[bool]:
    """Whether this process is the one at it, for as long as the block lasts; the system ends it with the process."""
    state.home.downloads.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(state.home.downloads / f"{download_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


# ---- the service


class DownloadService:
    """Takes up what waits, two at a time, for as long as the server runs."""

    def __init__(self, state: State, environment: Mapping[str, str]) -> None:
        self._state, self._environment = state, environment
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._active: dict[str, threading.Thread] = {}
        self._thread = threading.Thread(target=self._look_on, name="tunesmith-downloads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something new waits: look now."""
        self._wake.set()

    def stop(self) -> None:
        """Those at work keep what they have, and wait for the next server."""
        self._stop.set()
        self._wake.set()
        for thread in (self._thread, *self._active.values()):
            if thread.is_alive():
                thread.join(timeout=15)

    def _look_on(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception:  # a database that is busy now answers later
                LOG.exception("downloads could not be looked at")
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()

    def _look(self) -> None:
        self._active = {name: thread for name, thread in self._active.items() if thread.is_alive()}
        with self._state.database.read() as connection:
            due = rows.due_downloads(connection, at=time.time())
        for download_id in due:
            if len(self._active) >= AT_ONCE or self._stop.is_set():
                return
            if download_id not in self._active:
                thread = threading.Thread(target=self._run, args=(download_id,), name=download_id, daemon=True)
                self._active[download_id] = thread
                thread.start()

    def _run(self, download_id: str) -> None:
        try:
            run_download(download_id, state=self._state, environment=self._environment, stop=self._stop)
        except Exception:  # the edge of a thread: recorded; the next look takes it up again
            LOG.exception("a download ended with a fault of ours")
            with contextlib.suppress(Exception), self._state.database.write() as connection:
                form = TunesmithError("INTERNAL", "A fault of ours; the server's log has the details.").form()
                rows.move_download(
                    connection, download_id, DownloadState.FAILED, failure=json.dumps(form), finished_at=now()
                )
