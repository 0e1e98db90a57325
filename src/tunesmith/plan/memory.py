"""What a run needs at its peak: memory by parts, each with its arithmetic and its reason, and disk.

In: the facts of the base model and resolved settings. Out: `MemoryPart`s. Reads nothing and measures nothing; the
constants that were measured say where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.spec.models import LinearModule, ModelFacts, ModelSizes
from tunesmith.spec.plan import MemoryPart
from tunesmith.spec.training import ALL_LINEAR, AUTO, TrainingSettings

VALUE_BYTES = {"float32": 4, "bf16": 2}
ADAPTER_VALUE_BYTES = 4  # the adapter is trained in float32 whatever the base
LOGIT_ROWS = 1024  # labelled positions whose logits exist at the same time on a CPU
# The same on a GPU, as values of logits, and the bytes that each costs while its chunk is computed. The fast path's
# gradient takes the logits' own place; the generic path's does, too, but for a head with a scale or a softcap, which
# needs the product, its float32 copy and the gradient.
LOGIT_VALUES = {"fast": 1 << 27, "generic": 1 << 26}
LOGIT_BYTES = {"fast": 2, "generic": 12}
# Resident size of a worker with Python, torch and transformers loaded and no model: Linux x86-64, torch 2.13.
RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 600 << 20}
# Values kept for the backward pass per token and layer of a Llama block, in multiples of the hidden and the
# intermediate size: norms, residual streams, q/k/v, attention output (hidden); gate, up, their product (intermediate).
HIDDEN_MULTIPLE = 14
INTERMEDIATE_MULTIPLE = 5
# The fast path widens each frozen weight by the adapters' inner columns, in steps of this many.
WIDE_COLUMNS = 64
SITES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
TOKENIZER_BYTES_PER_WORD = 150  # Llama 3: 17 MB of JSON for 128,000 words
REPORTS_BYTES = 4 << 20
CHECKPOINT_COPIES = 4  # two rotating checkpoints of adapter and two moments each, best and last adapter, artifact


def targeted(facts: ModelSizes, settings: TrainingSettings) -> list[LinearModule]:
    """The linear modules that get an adapter."""
    if settings.target_modules == ALL_LINEAR:
        return list(facts.linear_modules)
    endings = tuple("." + name for name in settings.target_modules)
    return [module for module in facts.linear_modules if ("." + module.name).endswith(endings)]


def adapter_parameters(facts: ModelSizes, settings: TrainingSettings) -> int:
    """Trainable values: A is (rank, in) and B is (out, rank) for each targeted module."""
    return sum(settings.lora_rank * (module.in_features + module.out_features) for module in targeted(facts, settings))


def activation_bytes_per_token(facts: ModelSizes, settings: TrainingSettings, *, device: str) -> int:
    """Bytes that one layer keeps between forward and backward for one token of a packed row.

    Counted from what each path saves: of an 8B Llama 3.0 MB a token over all layers on the fast path, as measured.
    """
    value = VALUE_BYTES[settings.precision]
    modules = targeted(facts, settings)
    ranks = settings.lora_rank * len(modules) / facts.num_layers
    heads = facts.num_attention_heads * facts.head_dim
    key_values = 2 * facts.num_key_value_heads * facts.head_dim
    if settings.path == "fast":
        # two residual streams; q, attention output; k and v; gate and up; each adapter's inner values
        return math.ceil((2 * facts.hidden_size + 2 * heads + key_values + 2 * facts.intermediate_size + ranks) * value)
    if settings.compile_layers == "on":
        # the same, and what the adapters' operations take in: both norms' outputs and the feed-forward product
        values = 4 * facts.hidden_size + 2 * heads + key_values + 3 * facts.intermediate_size + ranks
        return math.ceil(values * value)
    block = HIDDEN_MULTIPLE * facts.hidden_size + INTERMEDIATE_MULTIPLE * facts.intermediate_size
    # on a CPU each adapter keeps its dropped-out input besides
    kept = sum(module.in_features for module in modules) / facts.num_layers if device == "cpu" else 0
    return math.ceil((block + kept + ranks) * value)


def memory_parts(facts: ModelSizes, settings: TrainingSettings, *, device: str) -> list[MemoryPart]:
    """Peak memory of the worker by parts; settings resolved."""
    assert isinstance(settings.sequence_length, int) and isinstance(settings.micro_batch_size, int)
    assert isinstance(settings.global_batch_size, int)
    value = VALUE_BYTES[settings.precision]
    trainable = adapter_parameters(facts, settings)
    packed_rows = min(settings.micro_batch_size, settings.global_batch_size)
    tokens = packed_rows * settings.sequence_length
    parts = [
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
        _activations(facts, settings, tokens=tokens, packed_rows=packed_rows, device=device),
        _logits(facts, settings, tokens=tokens, device=device),
        MemoryPart(
            name="workspace",
            bytes=RUNTIME_BYTES[device],
            formula="measured",
            reason="Python, torch and transformers themselves"
            if device == "cpu"
            else "CUDA context and the libraries' workspaces",
        ),
    ]
    if device == "cuda":
        parts.append(_temporaries(facts, tokens=tokens, value=value))
    if settings.path == "fast":
        parts.append(_wide_weights(facts, settings, value=value))
    return parts


def _activations(
    facts: ModelSizes, settings: TrainingSettings, *, tokens: int, packed_rows: int, device: str
) -> MemoryPart:
    """Checkpointed layers keep their input alone; one of them at a time is there whole, in the backward pass."""
    per_token = activation_bytes_per_token(facts, settings, device=device)
    twice = 0 if settings.checkpointed_layers == AUTO else min(settings.checkpointed_layers, facts.num_layers)
    whole = max(1, facts.num_layers - twice)
    inputs = twice * facts.hidden_size * VALUE_BYTES[settings.precision]
    formula = f"{packed_rows} x {settings.sequence_length} tokens x {whole} layers x {per_token:,} bytes"
    return MemoryPart(
        name="activations",
        bytes=tokens * (whole * per_token + inputs),
        formula=formula + (f", and {inputs:,} bytes a token for the input of {twice}" if twice else ""),
        reason=f"kept for the backward pass of {facts.num_layers} layers"
        + (f", {twice} of which are computed twice instead" if twice else ""),
    )


def _logits(facts: ModelSizes, settings: TrainingSettings, *, tokens: int, device: str) -> MemoryPart:
    if device == "cpu":
        rows, each = min(LOGIT_ROWS, tokens), 2 * 4
        formula = f"2 x {rows} positions x {facts.vocabulary_size:,} values x 4 bytes"
    else:
        path = "fast" if settings.path == "fast" else "generic"
        rows, each = min(max(1, LOGIT_VALUES[path] // facts.vocabulary_size), tokens), LOGIT_BYTES[path]
        formula = f"{rows} positions x {facts.vocabulary_size:,} values x {each} bytes"
    return MemoryPart(
        name="logits",
        bytes=rows * facts.vocabulary_size * each,
        formula=formula,
        reason="one chunk of logits and its gradient; all of them never exist together",
    )


def _temporaries(facts: ModelSizes, *, tokens: int, value: int) -> MemoryPart:
    per_token = (4 * facts.intermediate_size + 4 * facts.hidden_size) * value
    return MemoryPart(
        name="temporaries",
        bytes=tokens * per_token,
        formula=f"{tokens:,} tokens x {per_token:,} bytes",
        reason="of the one layer whose gradient is being computed",
    )


def _wide_weights(facts: ModelSizes, settings: TrainingSettings, *, value: int) -> MemoryPart:
    """Columns that hold the adapters beside each frozen weight."""
    rank = max(16, 1 << (settings.lora_rank - 1).bit_length())
    values = 0
    for module in facts.linear_modules:
        last = module.name.rpartition(".")[2]
        together = next((len(names) for names in SITES if last in names), 1)
        values += module.out_features * (-(-together * rank // WIDE_COLUMNS) * WIDE_COLUMNS)
    return MemoryPart(
        name="wide weights",
        bytes=values * value,
        formula=f"{values:,} values x {value} bytes",
        reason="the adapter beside the base, for one product of both",
    )


def disk_bytes(facts: ModelSizes, settings: TrainingSettings) -> int:
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
