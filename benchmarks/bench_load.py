"""How fast weights get from the page cache to a GPU, beside how fast they are read from there at all.

    python -m benchmarks.bench_load [--gigabytes 8] [--folder FOLDER] [--output FOLDER]

A safetensors file of random bf16 matrices, read once so that it lies in the page cache. Then in turns, several times:
one reader and as many readers as the loader has, into memory of the host and no further; and the loader itself, to the
device. The best of each counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import save
from tunesmith.files import write_json
from tunesmith.models.tensor_file import read_header
from tunesmith.models.weights import PIECE_BYTES, READERS, read_tensors

ROUNDS = 3
SHAPE = (4096, 14_336)


def read_alone(path: Path, readers: int) -> None:
    """The whole file, into one buffer a reader, over and over."""
    size, handle = path.stat().st_size, os.open(path, os.O_RDONLY)

    def read(first: int) -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        for start in range(first * PIECE_BYTES, size, readers * PIECE_BYTES):
            left = buffer[: min(PIECE_BYTES, size - start)]
            while left:
                count = os.preadv(handle, [left], start)
                left, start = left[count:], start + count

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    os.close(handle)


def load(path: Path, device: torch.device) -> None:
    file = read_header(path)
    for _ in read_tensors(file, list(file.tensors), device=device):
        pass
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, help="A folder in place of benchmarks/results.")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        path = Path(name) / "model.safetensors"
        matrix = torch.randn(SHAPE, device=device).bfloat16().cpu()
        count = max(1, round(arguments.gigabytes * 1e9 / (matrix.numel() * 2)))
        save_file({f"m{number}": matrix.clone() for number in range(count)}, path)
        size = path.stat().st_size
        ways: dict[str, Callable[[], None]] = {
            "one reader": lambda: read_alone(path, 1),
            f"{READERS} readers": lambda: read_alone(path, READERS),
            "loader": lambda: load(path, device),
        }
        rates: dict[str, float] = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                rates[way] = max(rates[way], size / (time.perf_counter() - started))
    for way, rate in rates.items():
        print(f"{way:12}{rate / 1e9:7.2f} GB/s", flush=True)
    share = rates["loader"] / rates["one reader"], rates["loader"] / rates[f"{READERS} readers"]
    print(f"the loader reaches {share[0]:.2f} of one reader, {share[1]:.2f} of {READERS}")
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "bytes": size, "bytes_per_second": rates,
        "share_of_one_reader": share[0], "share_of_as_many_readers": share[1],
    }  # fmt: skip
    if arguments.output is not None:
        write_json(arguments.output / "bench-load.json", document)
    else:
        save("load", document, libraries=("torch", "safetensors"))


if __name__ == "__main__":
    main()
