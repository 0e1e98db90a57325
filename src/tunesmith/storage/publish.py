"""Publishing an artifact: whole under its final name, or not there at all.

In: an artifact folder with its manifest. Out: the same files under the target, each verified by SHA-256, manifest last.
A bucket has its own way (`publish_bucket.py`). A folder's way: temporary name beside the target, copy, fsync, verify,
rename. A target that is a mount point cannot be renamed onto: there the files are renamed one by one from a temporary
folder inside it, the manifest last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.files import CHUNK_BYTES, fsync_folder, fsync_tree, sha256_of
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest
from tunesmith.storage.location_check import PROBE, check_declared
from tunesmith.storage.locations import BucketPlace, find_place
from tunesmith.storage.objects import FULL, Location
from tunesmith.storage.publish_bucket import FileProgress, check_prefix, publish_to_bucket

# Faults that somebody mends outside the job: it waits, with its artifact, and is not failed.
WAITING_CODES = frozenset({
    "DISK_FULL", "DISK_FAULT", "RESULTS_NOT_WRITABLE", "RESULTS_NOT_EMPTY", "LOCATION_UNREACHABLE", "LOCATION_FULL",
    "LOCATION_NOT_WRITABLE", "LOCATION_NOT_READABLE", "CREDENTIALS_REFUSED", "BAD_CREDENTIALS_REFERENCE",
    "BUCKET_NOT_FOUND", "BUCKET_ELSEWHERE", "VERSIONING_OFF", "OBJECT_DAMAGED",
})  # fmt: skip


def read_manifest(folder: Path) -> Manifest:
    """Raises OSError or ValueError where there is none that can be read."""
    return Manifest.model_validate(json.loads((folder / MANIFEST_NAME).read_bytes()))


def check_results(results: Location | Path | str, environment: Mapping[str, str], *, field: str = "results") -> None:
    """Refuse a results location that publishing would fail on later, within 20 s. Leaves nothing behind.

    Raises what `check_target` or `check_declared` raises.
    """
    location = results if isinstance(results, Location) else Location(uri=str(results))
    place = find_place(location.uri, field=field)
    if isinstance(place, Path):
        check_target(place)
    else:
        check_declared(location, environment, field=field, also=check_prefix)


def check_target(target: Path) -> None:
    """Refuse a results folder that publishing would fail on later: not empty, or not writable. Leaves nothing behind.

    Raises InputRefused (RESULTS_NOT_EMPTY, RESULTS_IN_ARTIFACT) or MachineCannot (RESULTS_NOT_WRITABLE).
    """
    try:
        for ancestor in target.parents:
            if (ancestor / MANIFEST_NAME).is_file():
                raise InputRefused(
                    "RESULTS_IN_ARTIFACT",
                    f"The results location {target} lies inside the artifact {ancestor} of another job.",
                    field="results",
                    hint="Choose a folder of its own.",
                )
        if target.exists() or target.is_symlink():
            _require_empty_folder(target)
        existing = next(path for path in (target, *target.parents) if path.exists())
        probe = existing / f"{PROBE}{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _not_writable(target, error) from error


def _require_empty_folder(target: Path) -> None:
    if not target.is_dir():
        raise InputRefused(
            "RESULTS_NOT_FOLDER",
            f"The results location {target} is {'a file' if target.exists() else 'a link that leads nowhere'}.",
            field="results",
            hint="Name a folder.",
        )
    for probe in target.glob(f"{PROBE}*"):  # of a check that was killed
        with contextlib.suppress(OSError):
            probe.rmdir()
    names = [path.name for path in target.iterdir() if not _is_mount_furniture(path)]
    if names:
        found = f"it holds {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        raise InputRefused(
            "RESULTS_NOT_EMPTY",
            f"The results location {target} is not empty: {found}. Nothing is ever overwritten.",
            field="results",
            hint="Name a new folder, or an empty one.",
        )


def _is_mount_furniture(path: Path) -> bool:
    return path.name == "lost+found"  # every fresh ext file system has one


def publish(
    artifact: Path,
    results: Location | Path | str,
    *,
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    progress: FileProgress | None = None,
) -> Manifest:
    """Copy the artifact to `results`. Done before by a killed process: verified, and nothing else happens.

    Returns the manifest as it lies there: in a bucket each file has its version id. `stop`, `progress`: of a bucket.
    Raises MachineCannot (DISK_FULL, RESULTS_NOT_WRITABLE), InputRefused (RESULTS_NOT_EMPTY), TunesmithError
    (ARTIFACT_DAMAGED) where a copy's hash is not the manifest's; for a bucket also what an `ObjectStore` raises.
    """
    manifest = read_manifest(artifact)
    location = results if isinstance(results, Location) else Location(uri=str(results))
    place = find_place(location.uri, field="results")
    if isinstance(place, BucketPlace):
        return publish_to_bucket(
            artifact, manifest, location, environment=environment or {}, stop=stop, progress=progress
        )
    publish_to_folder(artifact, manifest, place)
    return manifest


def publish_to_folder(artifact: Path, manifest: Manifest, target: Path) -> None:
    try:
        if _is_published(artifact, target):
            _verify(target, manifest)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_mount():
            _publish_inside(artifact, target, manifest)
        else:
            _publish_beside(artifact, target, manifest)
    except OSError as error:
        if error.errno in FULL:
            raise MachineCannot(
                "DISK_FULL",
                f"The disk of the results location {target} is full; nothing was left there.",
                field="results",
                hint="Free some space; the training is done and kept.",
            ) from error
        raise _not_writable(target, error) from error


def _is_published(artifact: Path, target: Path) -> bool:
    try:
        return (target / MANIFEST_NAME).read_bytes() == (artifact / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False


def _publish_beside(artifact: Path, target: Path, manifest: Manifest) -> None:
    if target.exists() or target.is_symlink():
        _require_empty_folder(target)
    temporary = target.with_name(f".{target.name[:100]}.{manifest.job_id}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed publish of this same job
    try:
        _copy(artifact, temporary, manifest)
        os.rename(temporary, target)  # onto an empty folder, which POSIX allows
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def _publish_inside(artifact: Path, target: Path, manifest: Manifest) -> None:
    temporary = target / f".tunesmith-{manifest.job_id}.tmp"
    names = sorted({Path(file.path).parts[0] for file in manifest.files})
    ours = {temporary.name, *names}
    if strangers := [path.name for path in target.iterdir() if path.name not in ours and not _is_mount_furniture(path)]:
        raise InputRefused(
            "RESULTS_NOT_EMPTY", f"The results location {target} is not empty: it holds {strangers[0]!r}."
        )
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _copy(artifact, temporary, manifest)
        for name in (*names, MANIFEST_NAME):
            os.rename(temporary / name, target / name)
        fsync_folder(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(artifact: Path, folder: Path, manifest: Manifest) -> None:
    folder.mkdir()
    for path in (*(file.path for file in manifest.files), MANIFEST_NAME):
        copy = folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with (artifact / path).open("rb") as source, copy.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
    fsync_tree(folder)
    _verify(folder, manifest)


def _verify(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        if (folder / file.path).stat().st_size != file.size or sha256_of(folder / file.path) != file.sha256:
            raise TunesmithError(
                "ARTIFACT_DAMAGED",
                f"{file.path} in {folder} does not have the SHA-256 of the manifest.",
                hint="The disk or its memory is at fault: check it, then resume the job.",
            )


def _not_writable(target: Path, error: OSError) -> MachineCannot:
    return MachineCannot(
        "RESULTS_NOT_WRITABLE",
        f"The results location {target} cannot be written: {error.strerror or error}.",
        field="results",
        hint="Name a folder that you may write.",
    )
