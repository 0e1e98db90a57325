"""What a run needs at its peak: memory by parts, each with its arithmetic and its reason, and disk.

In: the facts of the base model and resolved settings. Out: `MemoryPart`s. Reads nothing and measures nothing; the
constants that were measured say where.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.spec.models import LinearModule, ModelFacts
from tunesmith.spec.plan import MemoryPart
from tunesmith.spec.training import ALL_LINEAR, TrainingSettings

VALUE_BYTES = {"float32": 4, "bf16": 2}
ADAPTER_VALUE_BYTES = 4  # the adapter is trained in float32 whatever the base
LOGIT_ROWS = 1024  # labelled positions whose logits exist at the same time
# Resident size of a worker with Python, torch and transformers loaded and no model: Linux x86-64, torch 2.13.
RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 600 << 20}
# Values kept for the backward pass per token and layer of a Llama block, in multiples of the hidden and the
# intermediate size: norms, residual streams, q/k/v, attention output (hidden); gate, up, their product (intermediate).
HIDDEN_MULTIPLE = 14
INTERMEDIATE_MULTIPLE = 5
TOKENIZER_BYTES_PER_WORD = 150  # Llama 3: 17 MB of JSON for 128,000 words
REPORTS_BYTES = 4 << 20
CHECKPOINT_COPIES = 4  # two rotating checkpoints of adapter and two moments each, best and last adapter, artifact


def targeted(facts: ModelFacts, settings: TrainingSettings) -> list[LinearModule]:
    """The linear modules that get an adapter."""
    if settings.target_modules == ALL_LINEAR:
        return list(facts.linear_modules)
    endings = tuple("." + name for name in settings.target_modules)
    return [module for module in facts.linear_modules if ("." + module.name).endswith(endings)]


def adapter_parameters(facts: ModelFacts, settings: TrainingSettings) -> int:
    """Trainable values: A is (rank, in) and B is (out, rank) for each targeted module."""
    return sum(settings.lora_rank * (module.in_features + module.out_features) for module in targeted(facts, settings))


def activation_bytes_per_token(facts: ModelFacts, settings: TrainingSettings) -> int:
    """Bytes kept between forward and backward for one token of a packed row."""
    block = HIDDEN_MULTIPLE * facts.hidden_size + INTERMEDIATE_MULTIPLE * facts.intermediate_size
    modules = targeted(facts, settings)
    # each adapter keeps its dropped-out input and the product with A
    adapter = sum(module.in_features + settings.lora_rank for module in modules)
    return (facts.num_layers * block + adapter) * VALUE_BYTES[settings.precision]


def memory_parts(facts: ModelFacts, settings: TrainingSettings, *, device: str) -> list[MemoryPart]:
    """Peak memory of the worker by parts; settings resolved."""
    assert isinstance(settings.sequence_length, int) and isinstance(settings.micro_batch_size, int)
    assert isinstance(settings.global_batch_size, int)
    value = VALUE_BYTES[settings.precision]
    trainable = adapter_parameters(facts, settings)
    packed_rows = min(settings.micro_batch_size, settings.global_batch_size)
    tokens = packed_rows * settings.sequence_length
    per_token = activation_bytes_per_token(facts, settings)
    rows = min(LOGIT_ROWS, tokens)
    return [
        MemoryPart(
            name="weights",
            bytes=facts.parameters * value,
            formula=f"{facts.parameters:,} values x {value} bytes",
            reason=f"the frozen base in {settings.precision}",
        ),
        MemoryPart(
            name="adapter",
            bytes=trainable * ADAPTER_VALUE_BYTES,
            formula=f"{trainable:,} values x {ADAPTER_VALUE_BYTES} bytes",
            reason=f"A and B at rank {settings.lora_rank} on {len(targeted(facts, settings))} modules, float32",
        ),
        MemoryPart(
            name="gradients",
            bytes=trainable * ADAPTER_VALUE_BYTES,
            formula=f"{trainable:,} values x {ADAPTER_VALUE_BYTES} bytes",
            reason="of the adapter only: the base is frozen",
        ),
        MemoryPart(
            name="optimizer",
            bytes=2 * trainable * ADAPTER_VALUE_BYTES,
            formula=f"2 x {trainable:,} values x {ADAPTER_VALUE_BYTES} bytes",
            reason="AdamW keeps two moments for each trained value",
        ),
        MemoryPart(
            name="activations",
            bytes=tokens * per_token,
            formula=f"{packed_rows} x {settings.sequence_length} tokens x {per_token:,} bytes",
            reason=f"kept for the backward pass of {facts.num_layers} layers",
        ),
        MemoryPart(
            name="logits",
            bytes=2 * rows * facts.vocabulary_size * 4,
            formula=f"2 x {rows} positions x {facts.vocabulary_size:,} values x 4 bytes",
            reason="one chunk of logits and its gradient; all of them never exist together",
        ),
        MemoryPart(
            name="workspace",
            bytes=RUNTIME_BYTES[device],
            formula="measured",
            reason="Python, torch and transformers themselves"
            if device == "cpu"
            else "CUDA context and the libraries' workspaces",
        ),
    ]


def disk_bytes(facts: ModelFacts, settings: TrainingSettings) -> int:
    """Checkpoints, artifact and its published copy; the token cache is there already when this is asked."""
    trainable = adapter_parameters(facts, settings) * ADAPTER_VALUE_BYTES
    return 3 * CHECKPOINT_COPIES * trainable + (64 << 20)


def artifact_bytes(facts: ModelFacts, settings: TrainingSettings) -> int:
    """The published folder: the adapter, the tokenizer's files and the reports."""
    return (
        adapter_parameters(facts, settings) * ADAPTER_VALUE_BYTES
        + facts.tokenizer_size * TOKENIZER_BYTES_PER_WORD
        + REPORTS_BYTES
    )


def largest(parts: Sequence[MemoryPart]) -> MemoryPart:
    return max(parts, key=lambda part: part.bytes)
