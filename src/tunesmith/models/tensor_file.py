"""safetensors files with no library in between: a strict header reader, and a writer whose bytes depend on values
alone.

The reader looks at a header before anything maps the file: length, JSON, types, shapes, ranges. It needs no torch, so
inspection stays fast. The writer sorts names and metadata (the Rust writer's metadata order is random).
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from tunesmith.errors import InputRefused
from tunesmith.files import write_atomic

MAXIMUM_HEADER_BYTES = 16 * 1024 * 1024
MAXIMUM_TENSORS = 20_000
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file; [start, end) counts from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def values(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    path: Path
    size: int
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def open_regular(path: Path) -> int:
    """A descriptor of a regular file; never waits on a FIFO. Raises InputRefused for anything else or unreadable."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputRefused(
            "UNREADABLE_FILE",
            f"{path.name} cannot be read: {error.strerror}.",
            field=path.name,
            hint="Check its permissions and its disk.",
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputRefused(
            "NOT_A_FILE",
            f"{path.name} is not a regular file.",
            field=path.name,
            hint="Copy the real file to its place.",
        )
    return handle


def read_header(path: Path) -> TensorFile:
    """The checked header of one file. Raises InputRefused naming the tensor and the offset at fault."""
    with os.fdopen(open_regular(path), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        start = handle.read(_LENGTH.size)
        if start.startswith(b"version "):
            raise _broken(
                path,
                "is a Git LFS pointer, not the weights",
                code="LFS_POINTER",
                hint="Fetch the real file, for example with git lfs pull.",
            )
        if len(start) < _LENGTH.size:
            raise _broken(path, f"is {'empty' if size == 0 else f'only {size} bytes long'}")
        (length,) = _LENGTH.unpack(start)
        if length > min(MAXIMUM_HEADER_BYTES, size - _LENGTH.size):
            raise _broken(
                path,
                f"says that its header has {length} bytes; the file has {size} and the limit is {MAXIMUM_HEADER_BYTES}",
            )
        raw = handle.read(length)
    header = _header_object(path, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in cast(dict[str, Any], metadata).values()
    ):
        raise _broken(path, "has metadata that is not an object of strings")
    if len(header) > MAXIMUM_TENSORS:
        raise _broken(path, f"holds {len(header)} tensors; the limit is {MAXIMUM_TENSORS}")
    tensors = {name: _entry(path, name, value) for name, value in header.items()}
    _require_contiguous(path, tensors, size - _LENGTH.size - length)
    return TensorFile(path=path, size=size, tensors=tensors, metadata=cast(dict[str, str], metadata))


def write_tensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str]
) -> None:
    """Write (dtype, shape, little-endian bytes) by name, atomically. Equal values give equal bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in sorted(tensors):
        dtype, shape, raw = tensors[name]
        assert len(raw) == prod(shape) * DTYPE_BYTES[dtype], name
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    write_atomic(path, b"".join([_LENGTH.pack(len(text)), text, *(tensors[name][2] for name in sorted(tensors))]))


def _header_object(path: Path, raw: bytes) -> dict[str, Any]:
    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _broken(path, "names a tensor twice in its header")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=without_twins)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"has a header that is not JSON ({str(error)[:100]})") from error
    if not isinstance(header, dict):
        raise _broken(path, "has a header that is not an object")
    return cast(dict[str, Any], header)


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    shown = name[:200]
    if not isinstance(value, dict) or set(cast(dict[str, Any], value)) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"tensor {shown!r} lacks one of dtype, shape and data_offsets, or has more")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _broken(path, f"tensor {shown!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _broken(path, f"tensor {shown!r} has a shape or offsets that are not lists of whole numbers")
    entry = TensorEntry(dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])
    if entry.end - entry.start != entry.values * DTYPE_BYTES[dtype]:
        raise _broken(
            path,
            f"tensor {shown!r} at offset {entry.start} has {entry.end - entry.start} bytes, "
            f"but {dtype} {list(entry.shape)} needs {entry.values * DTYPE_BYTES[dtype]}",
        )
    return entry


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in cast(list[Any], value))


def _require_contiguous(path: Path, tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    expected = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != expected:
            fault = "overlaps the one before" if entry.start < expected else "leaves a gap"
            raise _broken(path, f"tensor {name[:200]!r} at offset {entry.start} {fault} (expected {expected})")
        expected = entry.end
    if expected > data_bytes:
        last = max(tensors.items(), key=lambda item: item[1].end)[0]
        raise _broken(
            path,
            f"is cut: tensor {last[:200]!r} ends at offset {expected}, the data at {data_bytes}",
        )
    if expected < data_bytes:
        raise _broken(path, f"has {data_bytes - expected} bytes after its last tensor (offset {expected})")


def _broken(
    path: Path, fault: str, *, code: str = "BROKEN_SAFETENSORS", hint: str = "Copy or download the file again."
) -> InputRefused:
    return InputRefused(code, f"{path.name} {fault}.", field=path.name, hint=hint)
