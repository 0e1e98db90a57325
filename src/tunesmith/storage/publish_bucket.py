"""Publishing an artifact to a bucket: every object verified in a version of its own, the manifest last.

In: an artifact folder with its manifest, and a location. Out: the manifest with the version id of each file, as it
lies in the bucket. A killed publish is simply done again: whole objects stay, and nobody sees them without a manifest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tunesmith.errors import InputRefused, TunesmithError
from tunesmith.files import json_bytes, sha256_of
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile
from tunesmith.storage.location_check import PROBE, versioning_off
from tunesmith.storage.objects import (
    Location,
    ObjectStore,
    Stopped,
    join_key,
    object_damaged,
    open_objects,
    source_damaged,
)

PUBLISH_RETRY_SECONDS = 130.0  # promised: at least two minutes
MAXIMUM_MANIFEST_BYTES = 16 << 20

# File name, bytes done, bytes in all.
FileProgress = Callable[[str, int, int], None]


def publish_to_bucket(
    artifact: Path,
    manifest: Manifest,
    location: Location,
    *,
    environment: Mapping[str, str],
    stop: threading.Event | None = None,
    progress: FileProgress | None = None,
    retry_seconds: float = PUBLISH_RETRY_SECONDS,
) -> Manifest:
    """Raises what an `ObjectStore` raises, InputRefused (RESULTS_NOT_EMPTY, VERSIONING_OFF), Stopped after `stop`."""
    store, prefix = open_objects(location, environment, retry_seconds=retry_seconds, stop=stop, field="results")
    if (published := _published(store, prefix, manifest)) is not None:
        return published
    files: list[ManifestFile] = []
    for file in manifest.files:
        if stop is not None and stop.is_set():
            raise Stopped
        version_id = _bring(store, join_key(prefix, file.path), artifact / file.path, file, progress)
        if version_id is None:
            raise versioning_off(store.uri(prefix), None)
        files.append(file.model_copy(update={"version_id": version_id}))
    if stop is not None and stop.is_set():
        raise Stopped
    whole = manifest.model_copy(update={"files": files})
    content = json_bytes(whole.as_json())
    key = join_key(prefix, MANIFEST_NAME)
    version_id = store.put_bytes(key, content)
    if store.get_bytes(key, version_id=version_id, maximum_bytes=MAXIMUM_MANIFEST_BYTES) != content:
        store.delete(key, version_id)
        raise object_damaged(store.uri(key))
    return whole


def check_prefix(store: ObjectStore, prefix: str) -> None:
    """Refuse a prefix that holds something, or that lies in another artifact. Raises InputRefused."""
    steps = prefix.split("/") if prefix else []
    for above in ("/".join(steps[:count]) for count in range(len(steps))):
        if _has(store, join_key(above, MANIFEST_NAME)):
            raise InputRefused(
                "RESULTS_IN_ARTIFACT",
                f"The results location {store.uri(prefix)} lies inside the artifact {store.uri(above)} of another job.",
                field="results",
                hint="Choose a prefix of its own.",
            )
    found = store.list(f"{prefix}/" if prefix else "", limit=100)
    # a check that was killed leaves its probe: that is no result
    keys = [each.key for each in found.objects if not each.key.rpartition("/")[2].startswith(PROBE)]
    if keys or (prefix and _has(store, prefix)):
        raise _not_empty(store, prefix, keys[0] if keys else prefix)


def _published(store: ObjectStore, prefix: str, manifest: Manifest) -> Manifest | None:
    """The manifest that is there already, of this very artifact and with every byte of it; None where there is none."""
    key = join_key(prefix, MANIFEST_NAME)
    try:
        content = store.get_bytes(key, maximum_bytes=MAXIMUM_MANIFEST_BYTES)
    except InputRefused as error:
        if error.code != "OBJECT_NOT_FOUND":
            raise
        return None
    try:
        published = Manifest.model_validate(json.loads(content))
    except ValueError as error:
        raise _not_empty(store, prefix, key) from error
    unpinned = [file.model_copy(update={"version_id": None}) for file in published.files]
    if published.model_copy(update={"files": unpinned}) != manifest:
        raise _not_empty(store, prefix, key)
    for file in published.files:
        if not store.verify(join_key(prefix, file.path), file.sha256, version_id=file.version_id):
            raise object_damaged(store.uri(join_key(prefix, file.path)))
    return published


def _bring(store: ObjectStore, key: str, path: Path, file: ManifestFile, progress: FileProgress | None) -> str | None:
    """Put one file, unless a killed publish did so and it is whole."""
    try:
        found = store.head(key)
    except InputRefused as error:
        if error.code != "OBJECT_NOT_FOUND":
            raise
    else:
        noted = (found.size, found.sha256)
        if noted == (file.size, file.sha256) and store.verify(key, file.sha256, version_id=found.version_id):
            return found.version_id
    if path.stat().st_size != file.size or sha256_of(path) != file.sha256:
        raise source_damaged(path)
    told = partial(progress, file.path) if progress is not None else None
    return store.put_file(key, path, sha256=file.sha256, progress=told)


def _has(store: ObjectStore, key: str) -> bool:
    try:
        store.head(key)
    except InputRefused as error:
        if error.code != "OBJECT_NOT_FOUND":
            raise
        return False
    return True


def _not_empty(store: ObjectStore, prefix: str, key: str) -> TunesmithError:
    return InputRefused(
        "RESULTS_NOT_EMPTY",
        f"The results location {store.uri(prefix)} is not empty: it holds {store.uri(key)}. Nothing is overwritten.",
        field="results",
        hint="Name a new prefix, or an empty one.",
    )
