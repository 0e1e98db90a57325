"""Token cache: the rendered rows of one dataset file, kept on disk, keyed by all that touches tokens.

In: a stream of rendered rows. Out: a `TokenTable`, read through the page cache, so a dataset may be larger than
memory. A cache is a folder of three files (`tokens.bin`, `index.bin`, `meta.json`), written under a temporary name and
renamed when whole; two processes may build the same one, the first rename wins. Sizes and checksums are compared at
each opening, and a damaged cache is built anew. Old caches go first when all together pass CACHE_LIMIT_BYTES; a run
that still needs one has it open or builds it again. This file does not read datasets and does not render.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.render import RenderedRows
from tunesmith.files import CHUNK_BYTES, fsync_folder, fsync_tree, temporary_beside, write_json

FORMAT = 2
CACHE_LIMIT_BYTES = 32 * 1024**3
COLUMN_ROWS = 65_536
INDEX = np.dtype(
    [
        ("offset", "<u8"),
        ("hash", "<u8", (2,)),
        ("line", "<u4"),
        ("length", "<u4"),
        ("targets", "<u4"),
        ("cut_start", "<u4"),
        ("cut_length", "<u4"),
    ]
)


class TokenFile:
    """tokens.bin, read row by row. Not mapped: pages of a map once touched count as this process's memory."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, *, start: int, count: int) -> NDArray[np.uint32]:
        """`count` tokens from token `start`; read-only. The system's page cache keeps what is read often."""
        content = os.pread(self._descriptor, count * 4, start * 4)
        if len(content) != count * 4:
            raise OSError(errno.EIO, "tokens.bin ends before its last row; it was changed while it was read")
        return np.frombuffer(content, np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """Rows in file order. tokens: uint32 with render.LEARNED_BIT; index: INDEX records, a read-only map.

    facts: what the builder noted beside the tokens (JSON values). folder: where the three files lie.
    """

    tokens: TokenFile
    index: NDArray[Any]
    facts: dict[str, Any]
    folder: Path

    def __len__(self) -> int:
        return len(self.index)

    def column(self, name: str) -> NDArray[Any]:
        """One field of all rows, in memory. The file is read, not mapped: a map of all of it would stay resident."""
        parts: list[NDArray[Any]] = []
        with (self.folder / "index.bin").open("rb") as handle:
            while len(records := np.fromfile(handle, INDEX, COLUMN_ROWS)):
                parts.append(records[name].copy())
        return np.concatenate(parts) if parts else np.zeros(0, INDEX)[name]

    def stored_row(self, number: int) -> NDArray[np.uint32]:
        entry = self.index[number]
        return self.tokens.read(start=int(entry["offset"]), count=int(entry["length"]))


class TableWriter:
    """Writes one cache. Use as a context manager: leaving it without `commit` removes what was written."""

    def __init__(self, root: Path, key: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._folder = root / key
        self._temporary = temporary_beside(self._folder)
        self._temporary.mkdir()
        self._tokens = (self._temporary / "tokens.bin").open("wb")
        self._index = (self._temporary / "index.bin").open("wb")
        self._num_tokens = self._num_rows = self._tokens_crc = self._index_crc = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._index.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def append(self, rows: RenderedRows, *, lines: Iterable[int], hashes: Iterable[bytes]) -> None:
        count = len(rows.lengths)
        entries = np.zeros(count, INDEX)
        ends = np.cumsum(rows.lengths, dtype=np.uint64)
        entries["offset"] = self._num_tokens + ends - rows.lengths
        entries["hash"] = np.frombuffer(b"".join(hashes), "<u8").reshape(count, 2)
        entries["line"] = np.fromiter(lines, np.uint32, count)
        entries["length"], entries["targets"] = rows.lengths, rows.targets
        entries["cut_start"], entries["cut_length"] = rows.cut_starts, rows.cut_lengths
        content, records = rows.tokens.data.cast("B"), entries.tobytes()
        self._tokens.write(content)
        self._index.write(records)
        self._tokens_crc = zlib.crc32(content, self._tokens_crc)
        self._index_crc = zlib.crc32(records, self._index_crc)
        self._num_tokens += len(rows.tokens)
        self._num_rows += count

    def commit(self, facts: dict[str, Any]) -> None:
        """Make it whole and give it its name. A cache that another process put there meanwhile stays."""
        self._tokens.close()
        self._index.close()
        meta = {
            "format": FORMAT,
            "rows": self._num_rows,
            "tokens": self._num_tokens,
            "tokens_crc": self._tokens_crc,
            "index_crc": self._index_crc,
            "facts": facts,
        }
        write_json(self._temporary / "meta.json", meta)
        fsync_tree(self._temporary)
        try:
            self._temporary.rename(self._folder)
        except OSError:
            if not self._folder.is_dir():
                raise
        fsync_folder(self._folder.parent)
        evict(self._folder.parent, keep=self._folder, limit_bytes=CACHE_LIMIT_BYTES)


def open_table(root: Path, key: str) -> TokenTable | None:
    """The cache of `key`, or None if there is none. Raises ValueError (saying what) if it is damaged."""
    folder = root / key
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise ValueError("it has another format")
        for name, size, crc in (
            ("tokens.bin", meta["tokens"] * 4, meta["tokens_crc"]),
            ("index.bin", meta["rows"] * INDEX.itemsize, meta["index_crc"]),
        ):
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has not its {size} bytes")
            if _crc_of(folder / name) != crc:
                raise ValueError(f"{name} has another checksum")
        facts: dict[str, Any] = dict(meta["facts"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"meta.json or a file beside it cannot be read: {error}") from error
    with contextlib.suppress(OSError):  # a read-only cache is still a cache; only its age is lost
        os.utime(folder / "meta.json")
    return TokenTable(
        tokens=TokenFile(folder / "tokens.bin"),
        index=_mapped(folder / "index.bin"),
        facts=facts,
        folder=folder,
    )


def _mapped(path: Path) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, INDEX)
    return np.memmap(path, INDEX, mode="r").view(np.ndarray)  # a plain view: memmap's own indexing is 5 times slower


def discard(root: Path, key: str) -> None:
    """Remove a damaged cache: away from its name in one step, then from the disk."""
    trash = temporary_beside(root / key)
    with contextlib.suppress(FileNotFoundError):
        (root / key).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def evict(root: Path, *, keep: Path, limit_bytes: int) -> list[str]:
    """Remove the caches used longest ago until all fit in `limit_bytes`; `keep` stays. Returns the removed keys."""
    caches: list[tuple[float, int, Path]] = []
    for folder in root.iterdir():
        meta = folder / "meta.json"
        if not folder.name.startswith(".") and meta.is_file():
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in folder.iterdir())
                caches.append((meta.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in caches)
    removed: list[str] = []
    for _, size, folder in sorted(caches):
        if total <= limit_bytes:
            break
        if folder != keep:
            discard(root, folder.name)
            removed.append(folder.name)
            total -= size
    return removed


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as handle:  # read, not mapped: mapped pages would count as this process's memory
        while chunk := handle.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc
