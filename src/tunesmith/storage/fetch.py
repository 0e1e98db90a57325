"""Objects brought to this machine: a dataset, or the files of a model, each in one pinned version.

In: a location, and a folder for what was fetched. Out: a local file that is never changed again, its version id and
its SHA-256. One version is fetched once; a copy that no longer has its hash is fetched anew. Only control does this: a
worker sees local paths and holds no credential.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tunesmith.errors import InputRefused, TunesmithError
from tunesmith.files import sha256_of, write_json
from tunesmith.spec.hub import MODEL_SUFFIXES
from tunesmith.storage.objects import (
    Location,
    ObjectInfo,
    ObjectStore,
    Progress,
    check_key,
    disk_fault,
    join_key,
    object_too_large,
    open_objects,
)

FETCH_RETRY_SECONDS = 8.0  # somebody waits for the refusal, which comes within 20
MAXIMUM_MODEL_FILES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    path: Path
    version_id: str | None
    sha256: str
    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFolder:
    path: Path
    files: list[FetchedFile]


def fetch(
    location: Location | str,
    folder: Path,
    *,
    environment: Mapping[str, str],
    path: str = "",
    version_id: str | None = None,
    expected_sha256: str | None = None,
    maximum_bytes: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    field: str = "dataset",
    retry_seconds: float = FETCH_RETRY_SECONDS,
) -> FetchedFile:
    """One object, in `version_id` or the newest version now. `path`: below the location.

    Raises what an `ObjectStore` raises, InputRefused (OBJECT_CHANGED) where it is not `expected_sha256` any more.
    """
    store, prefix = open_objects(location, environment, retry_seconds=retry_seconds, stop=stop, field=field)
    key = check_key("/".join(part for part in (prefix, path) if part), field=field)
    with _naming(field):
        info = store.head(key, version_id)
        fetched = _fetch(
            store,
            info,
            folder / _identity(store, info) / PurePosixPath(key).name,
            records=folder / "records",
            maximum_bytes=maximum_bytes,
            progress=progress,
        )
    if expected_sha256 is not None and fetched.sha256 != expected_sha256:
        raise InputRefused(
            "OBJECT_CHANGED",
            f"{store.uri(key)} is not the object that was chosen: its SHA-256 is another one.",
            field=field,
            hint="Choose it again, or put the old one back. In a versioned bucket a chosen version stays.",
        )
    return fetched


def fetch_model(
    location: Location | str,
    folder: Path,
    *,
    environment: Mapping[str, str],
    path: str = "",
    progress: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    retry_seconds: float = FETCH_RETRY_SECONDS,
) -> FetchedFolder:
    """The files of a model that lie right under a prefix, as one folder. Raises also InputRefused (MODEL_NOT_FOUND)."""
    store, prefix = open_objects(location, environment, retry_seconds=retry_seconds, stop=stop, field="model")
    prefix = "/".join(part for part in (prefix, check_key(path, field="model") if path else "") if part)
    with _naming("model"):
        listing = store.list(f"{prefix}/" if prefix else "", limit=MAXIMUM_MODEL_FILES, by_folder=True)
        keys = [found.key for found in listing.objects if PurePosixPath(found.key).suffix.lower() in MODEL_SUFFIXES]
        if listing.next is not None or join_key(prefix, "config.json") not in keys:
            found = "more than a model's files" if listing.next is not None else "no config.json"
            raise InputRefused(
                "MODEL_NOT_FOUND",
                f"MODEL {store.uri(prefix)}: under this prefix lies {found}.",
                field="model",
                hint="Name the prefix that holds config.json, the tokenizer and the safetensors.",
            )
        infos = [store.head(check_key(key, field="model")) for key in sorted(keys)]
        # the model's own name at the end: it is shown, and names the version set
        target = folder / _identity(store, *infos) / (PurePosixPath(prefix).name or "model")
        files: list[FetchedFile] = []
        for info in infos:
            if progress is not None:
                progress(f"fetching {store.uri(info.key)} ({info.size / 1e6:,.1f} MB)")
            files.append(_fetch(store, info, target / PurePosixPath(info.key).name, records=folder / "records"))
    return FetchedFolder(path=target, files=files)


def fetched_folder(home_cache: Path) -> Path:
    """Where fetched objects lie under a home's cache."""
    return home_cache / "objects"


def _fetch(
    store: ObjectStore,
    info: ObjectInfo,
    path: Path,
    *,
    records: Path,
    maximum_bytes: int | None = None,
    progress: Progress | None = None,
) -> FetchedFile:
    """The object as `path`, taken from an earlier fetch where that copy still has its hash."""
    record = records / f"{_identity(store, info)}.json"
    uri = store.uri(info.key)
    if maximum_bytes is not None and info.size > maximum_bytes:
        raise object_too_large(uri, info.size, maximum_bytes)
    try:
        known: str | None = json.loads(record.read_bytes())["sha256"]
        if path.stat().st_size == info.size and sha256_of(path) == known:
            return FetchedFile(path=path, version_id=info.version_id, sha256=known or "", uri=uri)
    except (OSError, ValueError, KeyError):
        pass  # never fetched, or half: anew
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.mkdir(parents=True, exist_ok=True)
        got = store.get_file(info.key, path, version_id=info.version_id, maximum_bytes=maximum_bytes, progress=progress)
        write_json(record, {"uri": uri, "version_id": got.version_id, "sha256": got.sha256, "size": got.size})
    except OSError as error:
        raise disk_fault(error) from error
    return FetchedFile(path=path, version_id=got.version_id, sha256=got.sha256, uri=uri)


@contextmanager
def _naming(field: str) -> Generator[None]:
    """A store knows of objects, not of the argument that named one."""
    try:
        yield
    except TunesmithError as error:
        error.field = error.field or field
        raise


def _identity(store: ObjectStore, *infos: ObjectInfo) -> str:
    """One name for these versions of these objects of this store. The ETag stands in where there are no versions."""
    told = [store.identity, *(f"{info.key}\n{info.version_id}\n{info.etag}" for info in infos)]
    return hashlib.sha256("\n\n".join(told).encode()).hexdigest()[:32]
