"""Which of the two paths computes a run: the rule, for the plan and for the worker alike.

The fast path is a decoder of our own for the Llama skeleton, with hand-written kernels for a GPU; the generic one runs
transformers' own modules and takes every model. Both read and write the same adapters.
"""

from __future__ import annotations

from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

FAST_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SKELETON_MODEL_TYPES = FAST_MODEL_TYPES  # what `models.skeleton` builds, for a CPU, without transformers
FAST_ROPE_KINDS = ("default", "linear", "llama3", "yarn")
FAST_ADAPTERS = ("lora", "rslora")
FAST_LARGEST_RANK = 128
SIZE_MULTIPLE = 16  # of hidden and intermediate size: the smallest side of a matrix unit's tile
HEAD_SIZES = (32, 64, 128)


def why_not_fast(facts: ModelFacts, settings: TrainingSettings, *, device: str, has_triton: bool = True) -> str | None:
    """The reason why this run takes the generic path; None where it may take the fast one. Precision resolved."""
    if device != "cuda":
        return "the fast path is for GPUs"
    if not has_triton:
        return "Triton, which its kernels are written in, is not installed"
    if facts.model_type not in FAST_MODEL_TYPES:
        return f"the fast path computes {', '.join(FAST_MODEL_TYPES)}, not {facts.model_type}"
    if settings.precision != "bf16":
        return f"the fast path computes in bf16, not in {settings.precision}"
    if settings.adapter not in FAST_ADAPTERS:
        return f"the fast path has no {settings.adapter} adapters"
    if facts.rope_kind not in FAST_ROPE_KINDS:
        return f"the fast path does not know rope scaling of the kind {facts.rope_kind}"
    if facts.activation != "silu":
        return f"the fast path computes SwiGLU, not {facts.activation}"
    if settings.lora_rank > FAST_LARGEST_RANK:
        return f"the fast path takes ranks up to {FAST_LARGEST_RANK}, not {settings.lora_rank}"
    if facts.head_dim not in HEAD_SIZES:
        return f"the fast path takes heads of {', '.join(map(str, HEAD_SIZES))} values, not of {facts.head_dim}"
    if facts.hidden_size % SIZE_MULTIPLE or facts.intermediate_size % SIZE_MULTIPLE:
        return f"its sizes {facts.hidden_size} and {facts.intermediate_size} are no multiples of {SIZE_MULTIPLE}"
    return None
