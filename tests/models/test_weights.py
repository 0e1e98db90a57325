"""Reading a file's tensors: whole, in order, and never past its end. On a GPU: `tests/gpu`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.errors import InputRefused
from tunesmith.models.tensor_file import read_header
from tunesmith.models.weights import _fill, read_tensors

CPU = torch.device("cpu")


def test_tensors_come_in_the_file_s_order(tmp_path: Path) -> None:
    tensors = {name: torch.randn(3, 5) for name in ("b", "a", "c")}
    save_file(tensors, tmp_path / "model.safetensors")
    file = read_header(tmp_path / "model.safetensors")
    wanted = [name for name in file.tensors if name != "a"]
    found = dict(read_tensors(file, wanted, device=CPU))
    assert list(found) == wanted
    assert all(torch.equal(values, tensors[name]) for name, values in found.items())
    assert list(read_tensors(file, [], device=CPU)) == []


def test_a_piece_is_filled_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(100)))
    handle = os.open(path, os.O_RDONLY)
    try:
        into = torch.zeros(40, dtype=torch.uint8)
        _fill(handle, path, into.numpy().data, 60)
        assert into.tolist() == list(range(60, 100))
        with pytest.raises(InputRefused, match=r"model\.safetensors ends before its header says"):
            _fill(handle, path, into.numpy().data, 61)  # cut since its header was read
    finally:
        os.close(handle)
