"""Tensors of one safetensors file, read to a device: to a GPU by threads, through pinned memory.

In: a checked header (`tensor_file.py`) and names. Out: the tensors in the file's dtype. On a CPU the file is mapped and
nothing is copied before it is used; to a GPU each reader copies pieces of the file into pinned memory of its own and
on from there while it reads the next one, so neither disk, host nor bus waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.errors import InputRefused
from tunesmith.models.tensor_file import TensorFile, open_regular

READERS = 8
PIECE_BYTES = 16 << 20  # of pinned memory: two for each reader
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Piece(NamedTuple):
    """Bytes [first, first + len(into_B)) of a file, and the part of a tensor's bytes on the device that they fill."""

    first: int
    into_B: Tensor


def read_tensors(file: TensorFile, names: Sequence[str], *, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by name, in the file's order. Raises InputRefused where the file ends early."""
    if not names:
        return
    if device.type != "cuda" or any(file.tensors[name].dtype not in DTYPES for name in names):
        with safe_open(file.path, framework="pt", device=str(device)) as tensors:
            for name in names:
                yield name, tensors.get_tensor(name)
        return
    data = file.size - max(entry.end for entry in file.tensors.values())
    found: dict[str, Tensor] = {}
    pieces: list[Piece] = []
    for name in names:
        entry = file.tensors[name]
        found[name] = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device=device)
        into_B = found[name].view(-1).view(torch.uint8)
        pieces += [
            Piece(data + entry.start + first, into_B[first : first + PIECE_BYTES])
            for first in range(0, len(into_B), PIECE_BYTES)
        ]
    handle = open_regular(file.path)
    torch.cuda.current_stream(device).synchronize()  # the readers' streams know nothing of who had this memory before
    try:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda start: _read(handle, file.path, pieces[start::READERS], device), range(READERS)))
    finally:
        os.close(handle)
    yield from found.items()


def _read(handle: int, path: Path, pieces: Sequence[Piece], device: torch.device) -> None:
    """One reader's share, on a stream of its own; returns when all of it is on the device."""
    if not pieces:
        return
    largest = max(len(piece.into_B) for piece in pieces)
    pinned_2B = torch.empty(2, largest, dtype=torch.uint8, pin_memory=True)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        copied = [torch.cuda.Event(), torch.cuda.Event()]
        for number, piece in enumerate(pieces):
            count, turn = len(piece.into_B), number % 2
            copied[turn].synchronize()  # the piece before the last has left this half
            _fill(handle, path, pinned_2B[turn, :count].numpy().data, piece.first)
            piece.into_B.copy_(pinned_2B[turn, :count], non_blocking=True)
            copied[turn].record()
        torch.cuda.current_stream().synchronize()


def _fill(handle: int, path: Path, into: memoryview, first: int) -> None:
    while into:
        count = os.preadv(handle, [into], first)
        if count == 0:
            raise InputRefused(
                "SOURCE_CHANGED", f"{path.name} ends before its header says.", field=path.name, hint="Try again."
            )
        into, first = into[count:], first + count
