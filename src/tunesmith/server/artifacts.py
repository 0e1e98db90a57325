"""The files of a model version on their way to a caller, from a folder or a store, held against their hashes.

In: a manifest of the catalog. Out: one file, or all of them as a zip that is made while it is sent. Files of a folder
are read once before, so that a damaged one is refused in words; one that changes later breaks the answer off before its
end: a client never holds a whole file that is wrong.
"""

from __future__ import annotations

import hashlib
import secrets
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from starlette.responses import Response, StreamingResponse

from tunesmith.catalog.locations import location_of_uri
from tunesmith.errors import Conflict, TunesmithError
from tunesmith.server.files import BINARY, CHUNK_BYTES, disposition, open_regular
from tunesmith.server.service import Call
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile
from tunesmith.storage.locations import is_bucket, local_path
from tunesmith.storage.objects import join_key, open_objects


def artifact_file(call: Call, artifact_uri: str, file: ManifestFile) -> Response:
    opening = _opened(call, artifact_uri, file)
    handle = opening.__enter__()  # a refusal comes before the answer begins
    if not is_bucket(artifact_uri):
        try:
            _check(handle, file)
        except TunesmithError:
            opening.__exit__(None, None, None)
            raise

    def chunks() -> Iterator[bytes]:
        try:
            yield from _verified(handle, file)
        finally:
            opening.__exit__(None, None, None)

    headers = {
        "Content-Disposition": disposition(file.path.rpartition("/")[2]),
        "Content-Length": str(file.size),
        "ETag": f'"{file.sha256}"',
    }
    return StreamingResponse(chunks(), headers=headers, media_type=BINARY)


def manifest_file(manifest: Manifest) -> Response:
    """As the catalog keeps it."""
    headers = {"Content-Disposition": disposition(MANIFEST_NAME)}
    return Response(manifest.model_dump_json(indent=2), headers=headers, media_type=BINARY)


def artifact_zip(call: Call, artifact_uri: str, manifest: Manifest, *, name: str) -> Response:
    """Stored, not compressed: weights do not get smaller, and time would be lost."""
    if not is_bucket(artifact_uri):  # what lies in a bucket is fetched file by file, and checked then
        for file in manifest.files:
            with _opened(call, artifact_uri, file) as handle:
                _check(handle, file)
    headers = {"Content-Disposition": disposition(f"{name}.zip")}
    return StreamingResponse(_zipped(call, artifact_uri, manifest), headers=headers, media_type="application/zip")


def _zipped(call: Call, artifact_uri: str, manifest: Manifest) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in manifest.files:
            entry = zipfile.ZipInfo(
                file.path
            )  # its time is that of the format's beginning: equal archives of equal files
            entry.external_attr = 0o644 << 16
            with (
                _opened(call, artifact_uri, file) as handle,
                archive.open(entry, "w", force_zip64=file.size >= zipfile.ZIP64_LIMIT) as target,
            ):
                for chunk in _verified(handle, file):
                    target.write(chunk)
                    yield from sink.taken()
            yield from sink.taken()
        archive.writestr(zipfile.ZipInfo(MANIFEST_NAME), manifest.model_dump_json(indent=2))
    yield from sink.taken()


class _Sink:
    """What zipfile writes, until the network has taken it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def taken(self) -> Iterator[bytes]:
        parts, self._parts = self._parts, []
        if parts:
            yield b"".join(parts)


@contextmanager
def _opened(call: Call, artifact_uri: str, file: ManifestFile) -> Generator[BufferedReader]:
    """The file, local or fetched to a temporary place. Its path is the manifest's, never the caller's."""
    if not is_bucket(artifact_uri):
        with open_regular(local_path(artifact_uri, field="artifact_uri") / file.path) as handle:
            yield handle
        return
    with call.database.read() as connection:
        location = location_of_uri(connection, artifact_uri)
    store, prefix = open_objects(location, call.service.environment, retry_seconds=20.0)
    fetched: Path = call.state.home.uploads / f"out-{secrets.token_hex(8)}"
    try:
        store.get_file(join_key(prefix, file.path), fetched, version_id=file.version_id, expected_sha256=file.sha256)
        with open_regular(fetched) as handle:
            yield handle
    finally:
        fetched.unlink(missing_ok=True)


def _check(handle: BufferedReader, file: ManifestFile) -> None:
    """Raises Conflict (ARTIFACT_DAMAGED); the handle is at its beginning again."""
    if hashlib.file_digest(handle, "sha256").hexdigest() != file.sha256:
        raise _damaged(file)
    handle.seek(0)


def _damaged(file: ManifestFile) -> Conflict:
    return Conflict(
        "ARTIFACT_DAMAGED", f"{file.path} is not the file that was published: its SHA-256 is another one.",
        field="path", hint="Restore it, or train the version again.",
    )  # fmt: skip


def _verified(handle: BufferedReader, file: ManifestFile) -> Iterator[bytes]:
    """The file's chunks; the last one only once the hash of all is right."""
    digest = hashlib.sha256()
    held = b""
    size = 0
    while chunk := handle.read(CHUNK_BYTES):
        if held:
            yield held
        digest.update(chunk)
        size += len(chunk)
        held = chunk
    if digest.hexdigest() != file.sha256 or size != file.size:
        raise _damaged(file)
    if held:
        yield held
