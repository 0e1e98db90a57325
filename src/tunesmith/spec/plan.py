"""The plan of a run: every setting resolved, why, and what the run will cost. Made before anything starts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import Notice
from tunesmith.spec.training import TrainingSettings


class MemoryPart(Spec):
    name: str
    bytes: int
    formula: str = Field(description="The arithmetic with its numbers.")
    reason: str


class MemoryFit(Spec):
    """What fine-tuning a model needs at its peak on one device, with rows of one length, one row at a time."""

    device: Literal["cpu", "cuda"]
    device_name: str
    sequence_length: int
    precision: str
    peak_bytes: int
    free_bytes: int = Field(description="On the device now.")
    total_bytes: int
    verdict: Literal["fits", "tight", "does not fit"]
    reason: str
    parts: list[MemoryPart]


class Plan(Spec):
    settings: TrainingSettings = Field(description="Nothing left `auto`.")
    reasons: dict[str, str] = Field(description="Setting -> why it has its value; only settings that were `auto`.")
    device: Literal["cpu", "cuda"]
    device_name: str
    threads: int
    trainable_parameters: int
    steps_per_epoch: int
    steps: int
    tokens_per_epoch: int
    memory: list[MemoryPart]
    peak_memory_bytes: int
    free_memory_bytes: int
    disk_bytes: int = Field(description="Checkpoints, artifact and published copy.")
    seconds: float = Field(description="Of training and evaluation, without loading.")
    seconds_reason: str
    notices: list[Notice]
