"""The files of model versions: found for whoever reads them, and removed after a deletion.

Only what the manifest names is touched. Wherever an artifact lies, a folder or a bucket, it is reached through
`storage.objects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.locations import location_of_uri
from tunesmith.catalog.versions import find_version, read_manifest
from tunesmith.errors import InputRefused, Unknown
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState
from tunesmith.storage.database import Database
from tunesmith.storage.locations import find_place
from tunesmith.storage.objects import Location, ObjectStore, check_key, join_key, open_objects
from tunesmith.storage.tables import MODEL_VERSIONS

MAXIMUM_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The files of an ACTIVE version and how to reach them; outlives the transaction that found it."""

    model_version: str
    manifest: Manifest
    location: Location

    def open(self, environment: Mapping[str, str]) -> tuple[ObjectStore, str]:
        return open_objects(self.location, environment)

    def file(self, path: str) -> ManifestFile:
        """Raises Unknown (UNKNOWN_FILE) for what the manifest does not name."""
        for file in self.manifest.files:
            if file.path == path:
                return file
        raise Unknown(
            "UNKNOWN_FILE", f"{self.model_version} has no file {path[:200]!r}.", field="path",
            hint="Its manifest lists the files.",
        )  # fmt: skip


def find_artifact(connection: sa.Connection, name: str, *, project: str) -> Artifact:
    """Raises as `versions.read_manifest`."""
    version = find_version(connection, name, project=project)
    manifest = read_manifest(connection, version.model_version, project=project)
    assert version.artifact_uri is not None, "a version gets its manifest and its place together"
    location = location_of_uri(connection, version.artifact_uri)
    return Artifact(model_version=version.model_version, manifest=manifest, location=location)


# ---- removing


def unfinished_removals(connection: sa.Connection) -> list[tuple[str, str]]:
    """(project, model version) of those that were deleted and whose files are not all gone: after a kill, go on."""
    rows = connection.execute(
        sa.select(MODEL_VERSIONS.c.project, MODEL_VERSIONS.c.model_version).where(
            MODEL_VERSIONS.c.state == VersionState.DELETED, MODEL_VERSIONS.c.is_losing_bytes
        )
    )
    return [(row.project, row.model_version) for row in rows]


def finish_removals(database: Database, *, environment: Mapping[str, str]) -> list[str]:
    """Go on with every removal that was interrupted; returns the model versions. Raises as ObjectStore."""
    with database.read() as connection:
        unfinished = unfinished_removals(connection)
    for project, model_version in unfinished:
        remove_bytes(database, model_version, project=project, environment=environment)
    return [model_version for _, model_version in unfinished]


def remove_bytes(database: Database, model_version: str, *, project: str, environment: Mapping[str, str]) -> None:
    """Remove the files of a version that was deleted with them, the manifest first: what is left is no artifact.

    Killed, it goes on when it is called again; with nothing left to do it does nothing. Files that the manifest does
    not name stay. Raises as ObjectStore.
    """
    where = (MODEL_VERSIONS.c.project == project) & (MODEL_VERSIONS.c.model_version == model_version)
    with database.read() as connection:
        row = connection.execute(
            sa.select(MODEL_VERSIONS.c.artifact_uri, MODEL_VERSIONS.c.manifest).where(
                where, MODEL_VERSIONS.c.state == VersionState.DELETED, MODEL_VERSIONS.c.is_losing_bytes
            )
        ).one_or_none()
        if row is None:
            return
        location = location_of_uri(connection, row.artifact_uri)
    manifest = Manifest.model_validate_json(row.manifest) if row.manifest else None
    files = manifest.files if manifest is not None else []
    if manifest is not None:
        store, prefix = open_objects(location, environment)
        _remove_manifest(store, join_key(prefix, MANIFEST_NAME), manifest)
        for file in files:
            _remove(store, join_key(prefix, check_key(file.path)), file.version_id)
        _remove_empty_folders(location.uri, files)
    with database.write() as connection:
        connection.execute(MODEL_VERSIONS.update().where(where).values(is_losing_bytes=False))
        audit.record(connection, "system", "version.bytes", model_version, {"removed": len(files) + 1}, project=project)


def _remove_manifest(store: ObjectStore, key: str, manifest: Manifest) -> None:
    """That of this artifact, never one that somebody put in its place."""
    try:
        found = store.head(key)
        content = store.get_bytes(key, version_id=found.version_id, maximum_bytes=MAXIMUM_MANIFEST_BYTES)
        if f'"{manifest.job_id}"'.encode() in content:
            _remove(store, key, found.version_id)
    except InputRefused as error:
        if error.code != "OBJECT_NOT_FOUND":
            raise


def _remove(store: ObjectStore, key: str, version_id: str | None) -> None:
    """The version that was published; gone already is as good. Other versions of that name are not ours."""
    try:
        store.delete(key, version_id)
    except InputRefused as error:
        if error.code != "OBJECT_NOT_FOUND":
            raise


def _remove_empty_folders(uri: str, files: list[ManifestFile]) -> None:
    place = find_place(uri, field="artifact_uri")
    if not isinstance(place, Path):
        return
    parents = {parent for file in files for parent in (place / file.path).parents if parent.is_relative_to(place)}
    for folder in sorted({place, *parents}, key=lambda path: len(path.parts), reverse=True):
        try:
            folder.rmdir()
        except OSError:  # somebody else's files, or gone
            continue
