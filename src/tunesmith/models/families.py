"""The architectures that Tunesmith fine-tunes, and what is known of each without loading it.

A table, read by inspection: which class, how layers and linear modules are called in the files, which config keys
hold the sizes. Each row is proved in `tests/models` against transformers and PEFT. What is not in the table is
refused by name, with the reason where the config tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import InputRefused, MachineCannot

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Names in the files of one `model_type`; sizes are config keys."""

    model_type: str
    architecture: str
    linear: tuple[str, ...] = _ATTENTION + _GATED_MLP
    prefix: str = "model."
    layers: str = "layers"
    embedding: str = "embed_tokens"
    is_transposed: bool = False  # Conv1D keeps (in, out)
    ties_by_default: bool = False
    head_dim: int | None = None  # where it is not hidden size / heads
    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"
    context_length: str = "max_position_embeddings"


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(model_type="llama", architecture="LlamaForCausalLM"),
        Family(model_type="mistral", architecture="MistralForCausalLM"),
        Family(model_type="qwen2", architecture="Qwen2ForCausalLM"),
        Family(model_type="qwen3", architecture="Qwen3ForCausalLM", head_dim=128),
        Family(model_type="gemma", architecture="GemmaForCausalLM", ties_by_default=True, head_dim=256),
        Family(model_type="gemma2", architecture="Gemma2ForCausalLM", ties_by_default=True, head_dim=256),
        Family(model_type="gemma3_text", architecture="Gemma3ForCausalLM", ties_by_default=True, head_dim=256),
        Family(
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            linear=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        ),
        Family(
            model_type="gpt2",
            architecture="GPT2LMHeadModel",
            linear=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
            prefix="transformer.",
            layers="h",
            embedding="wte",
            is_transposed=True,
            ties_by_default=True,
            hidden_size="n_embd",
            num_layers="n_layer",
            num_heads="n_head",
            intermediate_size="n_inner",
            context_length="n_positions",
        ),
        Family(model_type="granite", architecture="GraniteForCausalLM"),
        Family(model_type="smollm3", architecture="SmolLM3ForCausalLM", ties_by_default=True),
        Family(model_type="olmo2", architecture="Olmo2ForCausalLM"),
        Family(
            model_type="starcoder2",
            architecture="Starcoder2ForCausalLM",
            linear=(*_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
            ties_by_default=True,
        ),
        Family(model_type="cohere2", architecture="Cohere2ForCausalLM", ties_by_default=True),
    )
}
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.

    Raises InputRefused for what is no causal language model, MachineCannot for one that is not built yet, each with
    what stands in the way.
    """
    model_type = config.get("model_type")
    shown = str(model_type)[:60]
    supported = f"Supported: {', '.join(sorted(FAMILIES))}."
    architectures = config.get("architectures") or []
    named = [str(name)[:80] for name in architectures] if isinstance(architectures, list) else []
    if config.get("is_encoder_decoder"):
        raise _not_causal(f"{shown} is an encoder-decoder; Tunesmith fine-tunes causal language models.", supported)
    if any(config.get(key) for key in _EXPERT_KEYS):
        raise _refused(
            f"{shown} is a mixture of experts: its experts are stacked tensors, not linear modules, and adapters on "
            "them are not built yet.",
            supported,
        )
    if any(key in config for key in ("vision_config", "audio_config", "text_config")):
        raise _refused(f"{shown} takes more than text; only text models are supported.", supported)
    if not isinstance(model_type, str) or (model_type not in FAMILIES and not any(map(_sounds_causal, named))):
        raise _not_causal(
            f"config.json names no causal language model: its model_type is {shown!r}, its architectures are "
            f"{', '.join(named) or 'absent'}.",
            supported,
        )
    if model_type not in FAMILIES:
        raise _refused(
            f"The architecture {shown!r} ({', '.join(named) or 'no architectures'}) is not supported yet.", supported
        )
    family = FAMILIES[model_type]
    if named and named != [family.architecture]:
        raise _not_causal(
            f"config.json names {', '.join(named)}; of {model_type} only {family.architecture}, the causal language "
            "model, can be fine-tuned.",
            supported,
        )
    if config.get("use_bidirectional_attention") or config.get("add_cross_attention"):
        raise _not_causal(
            f"This {model_type} is not a causal language model (bidirectional or cross attention).", supported
        )
    return family


def _sounds_causal(architecture: str) -> bool:
    """transformers' names for causal language models end so; the older ones in LMHeadModel."""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def _not_causal(message: str, hint: str) -> InputRefused:
    return InputRefused("NOT_A_CAUSAL_MODEL", message, field="model", hint=hint)


def _refused(message: str, hint: str) -> MachineCannot:
    return MachineCannot("ARCHITECTURE_NOT_SUPPORTED", message, field="model", hint=hint)
