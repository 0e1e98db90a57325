"""Atomic writing: a file has its old content or its whole new one, whatever dies in between.

What comes in are paths that control or a worker chose itself, never user text. JSON is written with
sorted keys where bytes must be equal for equal runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Needed after a rename, before anybody is told of it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Names of archives that nothing here is written as: where a folder or a .zip was meant, one of these is a mistake.
OTHER_ARCHIVES = frozenset({".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar", ".jar"})


def is_other_archive(target: Path) -> bool:
    return target.suffix.lower() in OTHER_ARCHIVES


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other process and no other thread takes."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, fsync, rename, fsync the folder.

    Raises OSError as the system gives it (ENOSPC, EACCES); the old file is then untouched and the temporary one gone.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def json_bytes(value: Any, *, indent: int | None = 2) -> bytes:
    """Canonical JSON: sorted keys, UTF-8, one newline at the end, NaN refused."""
    return (json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json_bytes(value))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    write_atomic(path, b"".join(json_bytes(row, indent=None) for row in rows))


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_tree(folder: Path) -> None:
    """Make every file and name below `folder` durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(parent))
