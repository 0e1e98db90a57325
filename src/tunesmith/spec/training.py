"""The settings of a fine-tuning run: one definition for job files, CLI, API and forms.

`TrainingSettings` is what a user asks for, with `auto` where the plan shall choose. The worker gets the same
model with nothing left `auto` (`require_resolved`). Names equal the options of `tunesmith finetune`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith.errors import TunesmithError
from tunesmith.spec.base import Spec

AUTO: Literal["auto"] = "auto"
ALL_LINEAR: Literal["all-linear"] = "all-linear"
FULL_RATE_WARMUP_SHARE = 0.03
FINAL_RATE_SHARE = 0.1
MAXIMUM_LORA_RANK = 1024
MAXIMUM_SAMPLED_ROWS = 2000
SAMPLED_ROWS_WITHOUT_VALIDATION = 500

RESOLVED_BY_PLAN = (
    "sequence_length",
    "render",
    "global_batch_size",
    "micro_batch_size",
    "precision",
    "base_precision",
    "strategy",
    "path",
    "compile_layers",
    "checkpointed_layers",
)

AutoCount = Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)]


class TrainingSettings(Spec):
    """How to train. Default adapter: LoRA with r=32, alpha=16, dropout=0.05 on all linear modules but the head."""

    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the rows held out for validation; 0 for none."
    )
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training rows; whole.")
    learning_rate: float = Field(2e-4, ge=1e-12, le=1, description="Peak rate of AdamW.")
    learning_rate_schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="Shape of the decay after warm-up, down to 10% of the peak."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    max_gradient_norm: float = Field(1.0, gt=0, le=1e6, description="Gradients are scaled down to this norm.")
    lora_rank: int = Field(32, ge=1, le=MAXIMUM_LORA_RANK, description="Inner dimension of the adapter.")
    lora_alpha: float = Field(16.0, gt=0, le=1e6, description="The adapter's output is scaled by alpha / rank.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Share of adapter inputs set to zero in training.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        ALL_LINEAR, description="Linear modules that get an adapter, by the last part of their name."
    )
    adapter: Literal["lora", "rslora", "dora"] = Field("lora", description="Kind of adapter.")
    sequence_length: Literal["auto"] | Annotated[int, Field(ge=2, le=10_000_000)] = Field(
        AUTO, description="Tokens of a packed row; auto: the longest row, at most the model's context."
    )
    too_long: Literal["refuse", "drop", "cut"] = Field(
        "refuse", description="What happens to a row longer than the sequence length."
    )
    duplicates: Literal["keep", "drop"] = Field("keep", description="What happens to equal training rows.")
    render: Literal["auto", "chat", "plain"] = Field(
        AUTO,
        description="chat: the model's own template; plain: prompt, completion, end token; auto: chat if it has one.",
    )
    global_batch_size: AutoCount = Field(AUTO, description="Dataset rows of one optimiser step.")
    micro_batch_size: AutoCount = Field(AUTO, description="Packed rows of one forward pass.")
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="Of the split, the order, the adapter's start and the dropout."
    )
    early_stopping: Literal["off"] | Annotated[int, Field(ge=1, le=1000)] = Field(
        "off", description="Stop after this many epochs without a better validation loss."
    )
    precision: Literal["auto", "float32", "bf16"] = Field(AUTO, description="Of the computation; a CPU uses float32.")
    base_precision: Literal["auto", "float32", "bf16", "fp8", "int8", "nf4"] = Field(
        AUTO, description="Of the frozen base weights; auto: as the computation."
    )
    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = Field(
        AUTO, description="How the work is spread over devices."
    )

    path: Literal["auto", "fast", "generic"] = Field(
        AUTO,
        description="Code that computes the layers: our own decoder for the Llama family on a GPU, or any model's.",
    )
    compile_layers: Literal["auto", "on", "off"] = Field(
        AUTO, description="Whether torch compiles the layers of the generic path on a GPU; auto: where it pays."
    )
    checkpointed_layers: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000)] = Field(
        AUTO,
        description="Layers that keep only their input and are computed twice, for less memory; auto: as few as fit.",
    )

    @model_validator(mode="after")
    def _targets_are_names(self) -> Self:
        if self.target_modules != ALL_LINEAR:
            if not self.target_modules:
                raise ValueError("target_modules: name at least one module, or all-linear")
            if len(set(self.target_modules)) != len(self.target_modules):
                raise ValueError("target_modules: a name stands twice")
        return self

    def require_resolved(self) -> None:
        """Raises TunesmithError if a field that the plan must choose is still `auto` (a fault of ours)."""
        for name in RESOLVED_BY_PLAN:
            if getattr(self, name) == AUTO:
                raise TunesmithError("UNRESOLVED", f"The job file leaves {name} open.", field=name)


def scaling(settings: TrainingSettings) -> float:
    """The factor on the adapter's output: alpha / rank, for rsLoRA alpha / sqrt(rank)."""
    root = settings.lora_rank**0.5 if settings.adapter == "rslora" else settings.lora_rank
    return settings.lora_alpha / root


def learning_rate_at(settings: TrainingSettings, *, step: int, steps: int) -> float:
    """Rate of `step` (from 1) of `steps`: linear warm-up over 3 % of the steps, then decay to 10 % of the peak.

    The first step's rate is above 0. Cosine: SGDR (Loshchilov and Hutter 2017), eq. 5, without restarts.
    """
    warmup = max(1, math.ceil(FULL_RATE_WARMUP_SHARE * steps))
    if step <= warmup:
        return settings.learning_rate * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if settings.learning_rate_schedule == "cosine" else 1 - progress
    return settings.learning_rate * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * shape)


def sampled_rows(*, training: int, validation: int) -> int:
    """Training rows on which an epoch's training metrics are measured: as many as validation rows, at most 2,000."""
    wanted = min(validation, MAXIMUM_SAMPLED_ROWS) if validation else SAMPLED_ROWS_WITHOUT_VALIDATION
    return min(wanted, training)
