"""Checkpoints: private, to resume. A folder per step with the optimiser's tensors and a JSON of everything else.

Written under a temporary name, fsynced, renamed; `state.json` holds the tensors' SHA-256, so a torn or flipped
file is told from a whole one and the one before is used. No pickle. What goes in is `RunState` and tensors.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from tunesmith.files import fsync_folder, fsync_tree, sha256_of, write_atomic, write_json
from tunesmith.spec.base import Spec
from tunesmith.spec.metrics import EpochMetrics

STATE_NAME, TENSORS_NAME = "state.json", "tensors.safetensors"
KEPT = 2  # the newest one, and the one before it should the newest be damaged


class RunState(Spec):
    """Where a run stands, between two steps. Positions are in steps of whole global batches, so the split of a
    step over micro-batches and processes may change at resume."""

    steps_done: int = 0
    updates: int = Field(default=0, description="Optimiser updates; fewer than steps where a step was skipped.")
    epochs: list[EpochMetrics] = Field(default_factory=list[EpochMetrics], description="Epoch 0 is the base.")
    best_epoch: int | None = None
    epochs_without_gain: int = 0
    skipped_steps: list[int] = Field(default_factory=list[int])
    told: list[str] = Field(default_factory=list[str], description="Codes of notices that are given once.")
    tokens: int = 0
    step_seconds: float = 0.0
    peak_memory_bytes: int = 0
    micro_batch_size: int | None = Field(default=None, description="As the ladder left it; None: as planned.")
    checkpointed_layers: int | None = Field(default=None, description="As the ladder left it; None: as planned.")
    evaluation_tokens: int | None = Field(default=None, description="Of one pass; None: as by default.")
    rungs: list[str] = Field(default_factory=list[str], description="What was given up for memory, as it was told.")
    versions: dict[str, str] = Field(default_factory=dict[str, str])
    threads: int = 1


class _StateFile(Spec):
    state: RunState
    tensors_sha256: str


def _step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def write_checkpoint(folder: Path, state: RunState, tensors: Mapping[str, Tensor]) -> Path:
    """Write one checkpoint below `folder`, then remove all but the newest `KEPT`. Raises OSError (ENOSPC, EIO)."""
    final = folder / f"step-{state.steps_done:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # To bytes first: the library's own file writer hides ENOSPC in an error of its own.
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        with ThreadPoolExecutor(1) as pool:  # a gigabyte for an 8B model: hashed while it is written
            digest = pool.submit(lambda: hashlib.sha256(content).hexdigest())
            write_atomic(temporary / TENSORS_NAME, content)
        write_json(temporary / STATE_NAME, _StateFile(state=state, tensors_sha256=digest.result()).as_json())
        fsync_tree(temporary)
        if final.exists():  # the same step again: after its evaluation, or after a resume
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(folder)
    for old in _step_folders(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> tuple[RunState, dict[str, Tensor], list[Path]] | None:
    """The newest whole checkpoint below `folder`, and the damaged ones that were passed over; None if there is none."""
    damaged: list[Path] = []
    for path in reversed(_step_folders(folder)):
        try:
            stored = _StateFile.model_validate_json((path / STATE_NAME).read_bytes())
            if sha256_of(path / TENSORS_NAME) != stored.tensors_sha256:
                raise ValueError("checksum")
            return stored.state, load_file(path / TENSORS_NAME), damaged
        except (OSError, ValueError, ValidationError):
            damaged.append(path)
    return None


def write_best(folder: Path, values_P: Tensor, *, epoch: int) -> None:
    """Keep the adapter of the best epoch so far. Older ones go once the new one is durable."""
    write_atomic(folder / f"best-{epoch:05d}.safetensors", save({"values": values_P.detach().cpu().contiguous()}))


def read_best(folder: Path, *, epoch: int) -> Tensor:
    return load_file(folder / f"best-{epoch:05d}.safetensors")["values"]


def remove_other_bests(folder: Path, *, epoch: int) -> None:
    """Called after the checkpoint that names `epoch` as the best is durable."""
    for path in folder.glob("best-*.safetensors"):
        if path.name != f"best-{epoch:05d}.safetensors":
            path.unlink(missing_ok=True)


def clean_temporary(folder: Path) -> None:
    """Remove what a killed writer left half-done."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
