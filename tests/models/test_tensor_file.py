"""The safetensors reader against broken headers, the writer against the library that everybody reads with."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import InputRefused
from tunesmith.models.tensor_file import read_header, write_tensors


def raw(header: Any, data: bytes = b"\0" * 16, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int = 0, end: int = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


GOOD = {"w": entry()}
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"\1\2\3", "3 bytes"),
    "huge length": (raw(GOOD, length=1 << 60), "limit"),
    "length past the end": (raw(GOOD, length=4_000), "limit"),
    "not json": (raw(b"{nope"), "not JSON"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "deep": (raw(b"[" * 100_000), "not JSON"),
    "array": (raw([1]), "not an object"),
    "twins": (raw(b'{"w": 1, "w": 2}'), "twice"),
    "unknown dtype": (raw({"w": entry(dtype="F31")}), "F31"),
    "number as dtype": (raw({"w": entry(dtype=3)}), "dtype"),
    "negative shape": (raw({"w": entry(shape=(-4,))}), "whole numbers"),
    "bool shape": (raw({"w": entry(shape=[True])}), "whole numbers"),
    "overflowing shape": (raw({"w": entry(shape=(1 << 62, 8))}), "needs"),
    "shape does not fill range": (raw({"w": entry(shape=(3,))}), "needs 12"),
    "extra key": (raw({"w": {**entry(), "x": 1}}), "lacks one of"),
    "missing key": (raw({"w": {"dtype": "F32"}}), "lacks one of"),
    "overlap": (raw({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24), "'b' at offset 8 overlaps"),
    "gap": (raw({"a": entry(0, 16), "b": entry(20, 36)}, b"\0" * 36), "'b' at offset 20 leaves a gap"),
    "cut": (raw(GOOD, b"\0" * 9), "is cut: tensor 'w' ends at offset 16, the data at 9"),
    "trailing bytes": (raw(GOOD, b"\0" * 20), "4 bytes after its last tensor"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, **GOOD}), "metadata"),
    "metadata as list": (raw({"__metadata__": [], **GOOD}), "metadata"),
    "too many": (raw({str(n): entry(0, 0, (0,)) for n in range(20_001)}, b""), "20001 tensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers_are_refused_with_what_is_wrong(case: str, tmp_path: Path) -> None:
    content, expected = BROKEN[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputRefused) as refusal:
        read_header(path)
    assert refusal.value.code == "BROKEN_SAFETENSORS"
    assert expected in refusal.value.message and "model.safetensors" in refusal.value.message
    assert len(refusal.value.message) < 700


def test_an_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n")
    with pytest.raises(InputRefused, match="LFS") as refusal:
        read_header(path)
    assert refusal.value.code == "LFS_POINTER"


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing"):
        with pytest.raises(InputRefused) as refusal:
            read_header(tmp_path / name)
        assert refusal.value.code in ("NOT_A_FILE", "UNREADABLE_FILE")


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.zeros(0, 5, dtype=torch.bfloat16), "c": torch.ones(2).half()}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "m.safetensors")
    assert {name: (e.dtype, e.shape) for name, e in found.tensors.items()} == {
        "a": ("F32", (3, 4)),
        "b": ("BF16", (0, 5)),
        "c": ("F16", (2,)),
    }
    assert found.metadata == {"format": "pt"}


def test_the_library_reads_what_we_write_and_order_plays_no_part(tmp_path: Path) -> None:
    values = {name: np.random.default_rng(0).normal(size=(3, 5)).astype("<f4") for name in ("z", "a", "ü")}
    packed = {name: ("F32", value.shape, value.tobytes()) for name, value in values.items()}
    metadata = {str(n): str(n) for n in range(20)}
    write_tensors(tmp_path / "one.safetensors", packed, metadata)
    write_tensors(tmp_path / "two.safetensors", dict(reversed(packed.items())), dict(reversed(list(metadata.items()))))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    for name, value in load_file(tmp_path / "one.safetensors").items():
        assert np.array_equal(value.numpy(), values[name])
    assert read_header(tmp_path / "one.safetensors").metadata == metadata
