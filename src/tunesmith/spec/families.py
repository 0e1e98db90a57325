"""The architectures that Tunesmith fine-tunes, and what is known of each without loading it.

A table, read by inspection and by the model explorer: which class, how layers and linear modules are called in the
files, which config keys hold the sizes. Each row is proved in `tests/models` against transformers and PEFT; what is in
no row is not fine-tuned.
"""

from __future__ import annotations

from dataclasses import dataclass

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

# Inputs and outputs of each linear module of a layer, by the end of its name. `key` is that of keys and values.
LINEAR_SIZES: dict[str, tuple[str, str]] = {
    "self_attn.q_proj": ("hidden", "query"),
    "self_attn.k_proj": ("hidden", "key"),
    "self_attn.v_proj": ("hidden", "key"),
    "self_attn.o_proj": ("query", "hidden"),
    "self_attn.qkv_proj": ("hidden", "query and keys"),
    "mlp.gate_proj": ("hidden", "middle"),
    "mlp.up_proj": ("hidden", "middle"),
    "mlp.down_proj": ("middle", "hidden"),
    "mlp.gate_up_proj": ("hidden", "two middles"),
    "mlp.c_fc": ("hidden", "middle"),
    "mlp.c_proj": ("middle", "hidden"),
    "attn.c_attn": ("hidden", "query and keys"),
    "attn.c_proj": ("query", "hidden"),
}
