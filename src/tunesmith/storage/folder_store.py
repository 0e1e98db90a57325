"""A folder as an object store that keeps every version of every object.

`<root>/<key>` is the newest version, a plain file that any tool reads; all versions lie as hard links, read-only, under
`<root>/.tunesmith/versions/<key>/`, each named for its time and its SHA-256. A file that somebody put there by hand has
no version until a put replaces it: then it is kept as one. Links are never followed and never listed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.files import CHUNK_BYTES
from tunesmith.storage.objects import (
    FULL,
    OWN_FOLDER,
    Listing,
    ObjectInfo,
    Progress,
    Received,
    check_key,
    new_file,
    object_damaged,
    object_not_found,
    object_too_large,
    source_damaged,
)

VERSION = re.compile(r"(?P<time>\d{20})-(?P<sha256>[0-9a-f]{64})")
NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
STALE_SECONDS = 24 * 3600.0


class FolderStore:
    """`ObjectStore` over a folder. The folder itself may be a link; nothing below it may."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def identity(self) -> str:
        return self._root.as_uri()

    def uri(self, key: str) -> str:
        return (self._root / key).as_uri()

    def put_file(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> str | None:
        size = path.stat().st_size
        with path.open("rb") as source:
            chunks = iter(lambda: source.read(CHUNK_BYTES), b"")
            return self._put(key, chunks, size, sha256, progress, lambda: source_damaged(path))

    def put_bytes(self, key: str, content: bytes) -> str | None:
        sha256 = hashlib.sha256(content).hexdigest()
        return self._put(key, iter([content]), len(content), sha256, None, lambda: object_damaged(self.uri(key)))

    def get_file(
        self,
        key: str,
        path: Path,
        *,
        version_id: str | None = None,
        expected_sha256: str | None = None,
        maximum_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Received:
        with self._opened(key, version_id) as (source, info):
            if maximum_bytes is not None and info.size > maximum_bytes:
                raise object_too_large(self.uri(key), info.size, maximum_bytes)
            with new_file(path) as sink:
                sha256 = _hash(source, info.size, progress, sink)
                if sha256 != (expected_sha256 or info.sha256 or sha256):
                    raise object_damaged(self.uri(key))
        return Received(size=info.size, sha256=sha256, version_id=info.version_id)

    def get_bytes(self, key: str, *, version_id: str | None = None, maximum_bytes: int) -> bytes:
        with self._opened(key, version_id) as (source, info):
            if info.size > maximum_bytes:
                raise object_too_large(self.uri(key), info.size, maximum_bytes)
            content = source.read(maximum_bytes)
        if info.sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise object_damaged(self.uri(key))
        return content

    def verify(self, key: str, sha256: str, *, version_id: str | None, progress: Progress | None = None) -> bool:
        with self._opened(key, version_id) as (source, info):
            return _hash(source, info.size, progress) == sha256

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        with self._opened(key, version_id) as (_source, info):
            return info

    def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000, by_folder: bool = False
    ) -> Listing:
        objects: list[ObjectInfo] = []
        folders: list[str] = []
        last = None
        with self._faults("", writing=False):
            for key, status in self._walk(prefix, after, by_folder):
                if len(objects) + len(folders) == limit:
                    return Listing(objects=objects, folders=folders, next=last)
                last = key
                if status is None:
                    folders.append(key)
                else:
                    objects.append(_info(key, status, None))
        return Listing(objects=objects, folders=folders, next=None)

    def delete(self, key: str, version_id: str | None = None) -> None:
        *parents, name = check_key(key).split("/")
        with self._faults(key, writing=True):
            if version_id is None:
                with suppress(FileNotFoundError), self._folder(parents) as folder:
                    os.unlink(name, dir_fd=folder)
                    os.fsync(folder)
                return
            with self._versions_folder(key) as versions:
                if not VERSION.fullmatch(version_id) or not _is_file(version_id, versions):
                    raise object_not_found(self.uri(key), version_id)
                is_current = self._current_version(key) == version_id
                others = [other for other in _version_names(versions) if other != version_id]
                if is_current and others:
                    self._make_current(key, others[0], versions)
                elif is_current:
                    with self._folder(parents) as folder:
                        os.unlink(name, dir_fd=folder)
                        os.fsync(folder)
                os.unlink(version_id, dir_fd=versions)
                os.fsync(versions)
            if not others:
                with self._folder([OWN_FOLDER, "versions", *parents]) as above, suppress(OSError):
                    os.rmdir(name, dir_fd=above)

    def versions(self, key: str) -> list[ObjectInfo]:
        check_key(key)
        with self._faults(key, writing=False):
            try:
                with self._versions_folder(key) as versions:
                    return [
                        _info(key, os.stat(name, dir_fd=versions, follow_symlinks=False), name)
                        for name in _version_names(versions)
                    ]
            except FileNotFoundError:
                return []

    def keeps_versions(self) -> bool | None:
        return True

    def _put(
        self,
        key: str,
        chunks: Iterator[bytes],
        size: int,
        sha256: str,
        progress: Progress | None,
        damaged: Callable[[], Exception],
    ) -> str:
        *parents, name = check_key(key).split("/")
        with (
            self._faults(key, writing=True),
            self._folder([OWN_FOLDER, "new"], make=True) as new,
            self._folder(parents, make=True) as folder,
            self._versions_folder(key, make=True) as versions,
        ):
            _remove_stale(new)
            temporary = f"{os.getpid()}-{time.monotonic_ns()}"
            try:
                handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | NO_FOLLOW, 0o444, dir_fd=new)
                with os.fdopen(handle, "w+b") as file:
                    digest, done = hashlib.sha256(), 0
                    for chunk in chunks:
                        file.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        if progress is not None:
                            progress(done, size)
                    if digest.hexdigest() != sha256:
                        raise damaged()
                    file.flush()
                    os.fsync(file.fileno())
                    file.seek(0)
                    if _hash(file, done) != sha256:
                        raise object_damaged(self.uri(key))
                self._keep_foreign(key, name, folder, versions)
                version_id = f"{_next_time(versions):020d}-{sha256}"
                os.link(temporary, version_id, src_dir_fd=new, dst_dir_fd=versions, follow_symlinks=False)
                os.fsync(versions)
                os.rename(temporary, name, src_dir_fd=new, dst_dir_fd=folder)
                os.fsync(folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=new)
                raise
        return version_id

    def _keep_foreign(self, key: str, name: str, folder: int, versions: int) -> None:
        """What somebody put here by hand becomes a version before it is replaced."""
        try:
            with self._opened(key, None) as (source, info):
                if info.version_id is None:
                    kept = f"{os.fstat(source.fileno()).st_mtime_ns:020d}-{_hash(source, info.size)}"
                    with suppress(FileExistsError):
                        os.link(name, kept, src_dir_fd=folder, dst_dir_fd=versions, follow_symlinks=False)
        except InputRefused as error:
            if error.code != "OBJECT_NOT_FOUND":
                raise

    def _make_current(self, key: str, version_id: str, versions: int) -> None:
        *parents, name = key.split("/")
        temporary = f"{os.getpid()}-{time.monotonic_ns()}"
        with self._folder([OWN_FOLDER, "new"], make=True) as new, self._folder(parents) as folder:
            os.link(version_id, temporary, src_dir_fd=versions, dst_dir_fd=new, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=new, dst_dir_fd=folder)
            os.fsync(folder)

    def _current_version(self, key: str) -> str | None:
        try:
            return self.head(key).version_id
        except InputRefused as error:
            if error.code != "OBJECT_NOT_FOUND":
                raise
            return None

    @contextmanager
    def _opened(self, key: str, version_id: str | None) -> Generator[tuple[BinaryIO, ObjectInfo]]:
        """The open file and what is known of it: a regular one, with no other name than ours."""
        *parents, name = check_key(key).split("/")
        with self._faults(key, writing=False):
            try:
                if version_id is None:
                    with self._folder(parents) as folder:
                        handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW, dir_fd=folder)
                elif VERSION.fullmatch(version_id):
                    with self._versions_folder(key) as versions:
                        handle = os.open(version_id, os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW, dir_fd=versions)
                else:
                    raise object_not_found(self.uri(key), version_id)
            except FileNotFoundError as error:
                raise object_not_found(self.uri(key), version_id) from error
        with os.fdopen(handle, "rb") as source:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                raise object_not_found(self.uri(key))
            known = version_id or self._version_of(key, status)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > (1 if known is None else 2):
                raise InputRefused(
                    "BAD_KEY", f"{self.uri(key)} is no plain file of its own: links, pipes and devices are not read."
                )
            yield source, _info(key, status, known)

    def _version_of(self, key: str, status: os.stat_result) -> str | None:
        try:
            with self._versions_folder(key) as versions, os.scandir(versions) as entries:
                return next((entry.name for entry in entries if entry.inode() == status.st_ino), None)
        except FileNotFoundError:
            return None

    @contextmanager
    def _folder(self, parts: list[str], *, make: bool = False) -> Generator[int]:
        """An open folder below the root, reached step by step without following a link."""
        handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if make:
                    try:
                        os.mkdir(part, dir_fd=handle)
                        os.fsync(handle)
                    except FileExistsError:
                        pass
                step = os.open(part, os.O_RDONLY | os.O_DIRECTORY | NO_FOLLOW, dir_fd=handle)
                os.close(handle)
                handle = step
            yield handle
        finally:
            os.close(handle)

    def _versions_folder(self, key: str, *, make: bool = False):
        return self._folder([OWN_FOLDER, "versions", *key.split("/")], make=make)

    def _walk(self, prefix: str, after: str | None, by_folder: bool) -> Generator[tuple[str, os.stat_result | None]]:
        """Keys in the order of their bytes, as buckets list them; a folder (None) where it is not entered."""
        base = prefix.rpartition("/")[0]
        if base:
            check_key(base)
        try:
            with self._folder(base.split("/") if base else []) as folder, os.scandir(folder) as found:
                entries = list(found)
                statuses = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return
        above = f"{base}/" if base else ""
        named = [
            (above + name + ("/" if stat.S_ISDIR(status.st_mode) else ""), status) for name, status in statuses.items()
        ]
        for key, status in sorted(named, key=lambda item: os.fsencode(item[0])):
            is_folder = key.endswith("/")
            if not key.startswith(prefix) and not (is_folder and prefix.startswith(key)):
                continue
            if key == f"{OWN_FOLDER}/" or not (is_folder or stat.S_ISREG(status.st_mode)):
                continue
            is_past = after is not None and os.fsencode(key) <= os.fsencode(after)
            if not is_folder:
                if not is_past:
                    yield key, status
            elif by_folder:
                if not is_past:
                    yield key, None
            elif after is None or not is_past or after.startswith(key):
                yield from self._walk(key, after, by_folder)

    @contextmanager
    def _faults(self, key: str, *, writing: bool) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise MachineCannot(
                    "DISK_FULL",
                    f"The disk of the location {self.identity} is full; nothing was left there.",
                    hint="Free some space.",
                ) from error
            if key and error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
                raise InputRefused(
                    "BAD_KEY",
                    f"{self.uri(key)}: a step on the way is a link, or a file where a folder is meant.",
                    hint="Links are not followed. A folder cannot hold an object and a folder of one name.",
                ) from error
            if isinstance(error, FileNotFoundError):
                raise MachineCannot(
                    "LOCATION_UNREACHABLE",
                    f"The folder of the location {self.identity} is not there.",
                    hint="Make the folder, or mount what holds it.",
                ) from error
            raise MachineCannot(
                "LOCATION_NOT_WRITABLE" if writing else "LOCATION_NOT_READABLE",
                f"The location {self.identity} cannot be {'written' if writing else 'read'}: {error.strerror}.",
                hint="Check who may use that folder.",
            ) from error


def _hash(source: BinaryIO, size: int, progress: Progress | None = None, sink: BinaryIO | None = None) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        done += len(chunk)
        if sink is not None:
            sink.write(chunk)
        if progress is not None:
            progress(done, size)
    return digest.hexdigest()


def _info(key: str, status: os.stat_result, version_id: str | None) -> ObjectInfo:
    named = VERSION.fullmatch(version_id) if version_id else None
    return ObjectInfo(
        key=key,
        size=status.st_size,
        version_id=version_id,
        etag=f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}",
        modified_at=datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
        sha256=named["sha256"] if named else None,
    )


def _version_names(versions: int) -> list[str]:
    return sorted((name for name in os.listdir(versions) if VERSION.fullmatch(name)), reverse=True)


def _next_time(versions: int) -> int:
    """Later than every version that is there, even where the clock went back."""
    times = [int(name[:20]) + 1 for name in _version_names(versions)[:1]]
    return max([time.time_ns(), *times])


def _is_file(name: str, folder: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove_stale(new: int) -> None:
    """What killed puts left."""
    for name in os.listdir(new):
        with suppress(FileNotFoundError):
            if time.time() - os.stat(name, dir_fd=new, follow_symlinks=False).st_mtime > STALE_SECONDS:
                os.unlink(name, dir_fd=new)
