"""Does fine-tuning a model fit this machine: the plan's own arithmetic, before there is a dataset or even a weight.

In: the sizes of a model and a machine. Out: for each device and some row lengths the peak, what is free, and a verdict.
Settings are the defaults with one packed row at a time; a plan with a dataset takes more rows where they fit.
"""

from __future__ import annotations

from typing import Literal

from tunesmith.plan.machine import Machine
from tunesmith.plan.memory import memory_parts
from tunesmith.plan.resolve import USABLE_SHARE
from tunesmith.spec.models import ModelSizes
from tunesmith.spec.plan import MemoryFit
from tunesmith.spec.training import TrainingSettings

ROW_LENGTHS = (512, 2048, 8192, 32_768)


def memory_fits(sizes: ModelSizes, machine: Machine) -> list[MemoryFit]:
    """The device that a job would take first, then the CPU. GPUs of one kind are one entry: a job takes one of them."""
    lengths = [length for length in ROW_LENGTHS if length <= sizes.context_length] or [sizes.context_length]
    found: list[MemoryFit] = []
    if machine.device == "cuda":
        freest = {gpu.name: gpu for gpu in sorted(machine.gpus, key=lambda gpu: gpu.free_bytes)}
        for gpu in freest.values():
            found += [
                _fit(sizes, length, device="cuda", name=gpu.name, free=gpu.free_bytes, total=gpu.total_bytes)
                for length in lengths
            ]
    found += [
        _fit(
            sizes,
            length,
            device="cpu",
            name=machine.processor,
            free=machine.free_memory_bytes,
            total=machine.total_memory_bytes,
        )
        for length in lengths
    ]
    return found


def _fit(
    sizes: ModelSizes, length: int, *, device: Literal["cpu", "cuda"], name: str, free: int, total: int
) -> MemoryFit:
    precision: Literal["float32", "bf16"] = "float32" if device == "cpu" else "bf16"
    settings = TrainingSettings.model_validate(
        {"sequence_length": length, "micro_batch_size": 1, "global_batch_size": 1, "precision": precision}
    )
    parts = memory_parts(sizes, settings, device=device)
    peak = sum(part.bytes for part in parts)
    verdict: Literal["fits", "tight", "does not fit"]
    if peak <= USABLE_SHARE * free:
        verdict, reason = "fits", f"{_gigabytes(peak)} of the {_gigabytes(free)} that are free now"
    elif peak <= USABLE_SHARE * total:
        verdict = "tight"
        reason = f"{_gigabytes(peak)} would fit {_gigabytes(total)}, and {_gigabytes(free)} are free now"
    else:
        verdict, reason = "does not fit", f"{_gigabytes(peak)} are more than {_gigabytes(total)} hold"
    return MemoryFit(
        device=device,
        device_name=name,
        sequence_length=length,
        precision=precision,
        peak_bytes=peak,
        free_bytes=free,
        total_bytes=total,
        verdict=verdict,
        reason=reason,
        parts=parts,
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
