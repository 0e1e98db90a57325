"""Objects behind one interface: a folder that keeps versions itself, or a bucket of any S3-compatible service.

In: a location (or the URI of one) and the environment. Out: an `ObjectStore` and the prefix in it. Both stores pass one
suite of tests. What a store answers is never shown: its faults become errors in our words.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.files import fsync_folder
from tunesmith.storage.locations import BucketPlace, find_place

MAXIMUM_KEY_BYTES = 1024  # S3's own limit
MAXIMUM_PART_BYTES = 255  # of a name between two slashes: the limit of file systems
OWN_FOLDER = ".tunesmith"  # what a folder store keeps beside the objects
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# Bytes done, bytes in all. May raise: the transfer then ends, and nothing stands under its final name.
Progress = Callable[[int, int], None]


class Stopped(TunesmithError):
    """A transfer ended because its `stop` was set; nothing stands under a final name."""

    def __init__(self) -> None:
        super().__init__("INTERRUPTED", "The transfer was stopped.", hint="Do it again: what is whole is kept.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """version_id: None where the store keeps no versions of it. sha256: as noted when it was put; None for others'."""

    key: str
    size: int
    version_id: str | None
    etag: str | None
    modified_at: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page. folders: prefixes that end in a slash, of a listing by folder alone. next: None on the last page."""

    objects: list[ObjectInfo]
    folders: list[str]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    size: int
    sha256: str
    version_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where objects lie and who may reach them.

    uri: `file:///folder` or `s3://bucket/prefix`. endpoint_url, region: of the service; None: AWS_* variables decide.
    credentials: a reference, never a secret: `env:NAME` (variables NAME_ACCESS_KEY_ID, NAME_SECRET_ACCESS_KEY and, if
    there is one, NAME_SESSION_TOKEN), `profile:NAME`, `file:PATH` (of the form of ~/.aws/credentials); None: AWS_*.
    """

    uri: str
    endpoint_url: str | None = None
    region: str | None = None
    credentials: str | None = None


class ObjectStore(Protocol):
    """Raises in every call: MachineCannot (LOCATION_UNREACHABLE, CREDENTIALS_REFUSED, LOCATION_NOT_READABLE,
    LOCATION_NOT_WRITABLE, LOCATION_FULL, DISK_FULL) and InputRefused (BAD_KEY, BUCKET_NOT_FOUND, OBJECT_NOT_FOUND).
    """

    @property
    def identity(self) -> str:
        """Tells this store from every other one."""
        ...

    def uri(self, key: str) -> str: ...

    def put_file(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> str | None:
        """Put a file whole, read it back, and return its version id. Its SHA-256 is kept with it.

        Raises TunesmithError (ARTIFACT_DAMAGED) where the file itself does not have that hash, MachineCannot
        (OBJECT_DAMAGED) where the store does not give back what it got.
        """
        ...

    def put_bytes(self, key: str, content: bytes) -> str | None: ...

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
        """Write the object to a new file `path`. Its bytes are held against `expected_sha256`, else the hash it was
        put with. Raises MachineCannot (OBJECT_DAMAGED), InputRefused (OBJECT_TOO_LARGE).
        """
        ...

    def get_bytes(self, key: str, *, version_id: str | None = None, maximum_bytes: int) -> bytes: ...

    def verify(self, key: str, sha256: str, *, version_id: str | None, progress: Progress | None = None) -> bool:
        """Read the object back and compare."""
        ...

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo: ...

    def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000, by_folder: bool = False
    ) -> Listing:
        """A page of the keys that begin with `prefix`, in order; `after` is the `next` of the page before.

        Version ids and hashes are not in it: ask `head`.
        """
        ...

    def delete(self, key: str, version_id: str | None = None) -> None:
        """Delete one version for good; without a version id the object's versions stay, and only its name goes."""
        ...

    def versions(self, key: str) -> list[ObjectInfo]:
        """Newest first."""
        ...

    def keeps_versions(self) -> bool | None:
        """None: the store does not tell."""
        ...


def open_objects(
    location: Location | str,
    environment: Mapping[str, str],
    *,
    retry_seconds: float = 130.0,
    stop: threading.Event | None = None,
    field: str = "location",
) -> tuple[ObjectStore, str]:
    """The store, and the prefix (without a slash at its end; empty: none). Touches no network and no disk.

    retry_seconds: for how long a call goes on trying a store that does not answer as it should. stop: once it is set,
    a call to a bucket raises Stopped instead of going on.
    """
    if isinstance(location, str):
        location = Location(uri=location)
    place = find_place(location.uri, field=field)
    if isinstance(place, BucketPlace):
        from tunesmith.storage.s3_store import open_bucket  # boto3 costs a quarter of a second

        return open_bucket(place.bucket, location, environment, retry_seconds=retry_seconds, stop=stop), place.key
    from tunesmith.storage.folder_store import FolderStore

    return FolderStore(place), ""


def join_key(prefix: str, key: str) -> str:
    return f"{prefix}/{key}" if prefix else key


def check_key(key: str, *, field: str = "key") -> str:
    """A key that means the same in a bucket and in a folder, and never leaves its prefix. Raises InputRefused."""
    parts = key.split("/")
    fault = None
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        sizes, fault = [], "it is no text"
    if fault is None:
        if "" in parts:
            fault = "it begins or ends with a slash, or holds two in a row" if key else "it is empty"
        elif "." in parts or ".." in parts:
            fault = "it holds a step . or .."
        elif OWN_FOLDER in parts:
            fault = f"{OWN_FOLDER} is a name of Tunesmith's own"
        elif "\\" in key or CONTROL.search(key):
            fault = "it holds a backslash or a control character"
        elif max(sizes) > MAXIMUM_PART_BYTES or sum(sizes) + len(sizes) > MAXIMUM_KEY_BYTES:
            fault = f"a name has at most {MAXIMUM_PART_BYTES} bytes, a path {MAXIMUM_KEY_BYTES}"
    if fault is not None:
        raise InputRefused(
            "BAD_KEY",
            f"{key[:200]!r} is no path below a location: {fault}.",
            field=field,
            hint="Write a relative path such as data/rows.jsonl.",
        )
    return key


@contextmanager
def new_file(path: Path) -> Generator[BinaryIO]:
    """A file to fill that gets its name when it is whole and durable. Raises MachineCannot (DISK_FULL, DISK_FAULT)."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with temporary.open("w+b") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise disk_fault(error) from error
    finally:
        temporary.unlink(missing_ok=True)


def disk_fault(error: OSError) -> MachineCannot:
    if error.errno in FULL:
        return MachineCannot(
            "DISK_FULL", "The disk of this machine is full.", hint="Free some space under TUNESMITH_HOME."
        )
    return MachineCannot(
        "DISK_FAULT",
        f"A file under TUNESMITH_HOME could not be written: {error.strerror or error}.",
        hint="Check the disk and who may write there.",
    )


def object_not_found(uri: str, version_id: str | None = None) -> InputRefused:
    version = f" in version {version_id}" if version_id else ""
    return InputRefused(
        "OBJECT_NOT_FOUND", f"There is no object {uri}{version}.", hint="Check the path; upper and lower case count."
    )


def object_too_large(uri: str, size: int, maximum_bytes: int) -> InputRefused:
    return InputRefused("OBJECT_TOO_LARGE", f"{uri} has {size:,} bytes; at most {maximum_bytes:,} are taken here.")


def object_damaged(uri: str) -> MachineCannot:
    return MachineCannot(
        "OBJECT_DAMAGED",
        f"The store does not give back {uri} as it was put: its SHA-256 is another one.",
        hint="Tell who runs the store; nothing of it was used.",
    )


def source_damaged(path: Path) -> TunesmithError:
    return TunesmithError(
        "ARTIFACT_DAMAGED",
        f"{path} does not have the SHA-256 that was noted when it was made.",
        hint="The disk or its memory is at fault: check it, then resume the job.",
    )
