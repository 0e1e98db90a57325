"""The Llama skeleton in plain torch: what a CPU, and a GPU's fast path, train without importing transformers.

That import takes 1.7 seconds and more.

In comes an inspected folder; out comes a module whose parts are called as transformers calls them
(`model.layers.0.self_attn.q_proj`, ...): adapters, files and the packed attention work on it as on transformers' own.
It computes packed batches only. `for_generation` builds transformers' model around the very same modules, for whoever
generates.

Supported: Llama, Mistral, Qwen2, Qwen3 without sliding windows, rope of the kinds `default`, `linear` and `llama3`;
`why_not` names what else a config asks for, and transformers' own module is taken.

Dimensions: T tokens, D hidden size, H and G query and key-value heads, E head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tunesmith.models import attention
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.paths import SKELETON_MODEL_TYPES

ROPE_KINDS = ("default", "linear", "llama3")
_DEFAULTS: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu"}


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why a model of this config.json is not built here; None if it is."""
    kind = config.get("model_type")
    if kind not in SKELETON_MODEL_TYPES:
        return f"{kind} is not one of {', '.join(SKELETON_MODEL_TYPES)}"
    # Mistral's config has a window unless it says null; Qwen's has none unless it says so
    has_window = (
        config.get("sliding_window", 4096) is not None if kind == "mistral" else config.get("use_sliding_window")
    )
    if has_window:
        return "it has a sliding window"
    if (rope := _rope(config)["rope_type"]) not in ROPE_KINDS:
        return f"rope of the kind {rope}"
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        return "its MLP is no plain SwiGLU"
    if config.get("attention_bias") and kind == "qwen2":
        return "attention_bias is no setting of qwen2"
    if any(config.get(key) for key in ("partial_rotary_factor", "quantization_config", "attention_dropout")):
        return "config.json asks for more than the skeleton has"
    return None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings of old and new config files, with rope_type and rope_theta."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    given["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    given.setdefault("rope_theta", config.get("rope_theta", _DEFAULTS["rope_theta"]))
    return given


def frequencies(config: Mapping[str, Any], *, head_dim: int) -> Tensor:
    """(E / 2,) float32. Llama 3's scaling: wavelengths beyond the old context are stretched, short ones are not, and
    between the two the factor moves linearly (Grattafiori et al. 2024, section 3.2; parameters of its config.json)."""
    rope = _rope(config)
    plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    if rope["rope_type"] != "llama3":
        return plain
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    share = ((old / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / rope["factor"] + share * plain


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x.float() * rstd).to(x.dtype)


class Rotary(nn.Module):
    inv_freq: Tensor

    def __init__(self, config: Mapping[str, Any], head_dim: int) -> None:
        super().__init__()
        self.rope_type: str = _rope(config)["rope_type"]
        self.attention_scaling = 1.0
        self.register_buffer("inv_freq", frequencies(config, head_dim=head_dim), persistent=False)

    def forward(self, positions_1T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions_1T[..., None].float() * self.inv_freq
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Attention(nn.Module):
    is_causal = True

    def __init__(self, facts: ModelFacts, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        size, self.head_dim = facts.hidden_size, facts.head_dim
        queries, keys = facts.num_attention_heads * self.head_dim, facts.num_key_value_heads * self.head_dim
        has_bias = bool(config.get("attention_bias"))
        inner_bias = has_bias or config["model_type"] == "qwen2"
        self.scaling = self.head_dim**-0.5
        self.sliding_window = None
        self.q_proj = nn.Linear(size, queries, bias=inner_bias)
        self.k_proj = nn.Linear(size, keys, bias=inner_bias)
        self.v_proj = nn.Linear(size, keys, bias=inner_bias)
        self.o_proj = nn.Linear(queries, size, bias=has_bias)
        if config["model_type"] == "qwen3":
            self.q_norm, self.k_norm = Norm(self.head_dim, eps), Norm(self.head_dim, eps)
        else:
            self.q_norm = self.k_norm = None

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(shape), self.k_proj(x).view(shape), self.v_proj(x).view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out, _ = attention.attention_forward(
            self, _turned(q, angles), _turned(k, angles), v, None, scaling=self.scaling
        )
        return self.o_proj(out.reshape(*x.shape[:-1], -1))


def _turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * angles[0] + torch.cat([-second, first], -1) * angles[1]


class Mlp(nn.Module):
    def __init__(self, facts: ModelFacts) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(facts.hidden_size, facts.intermediate_size, bias=False)
        self.up_proj = nn.Linear(facts.hidden_size, facts.intermediate_size, bias=False)
        self.down_proj = nn.Linear(facts.intermediate_size, facts.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, facts: ModelFacts, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(facts, config, eps)
        self.mlp = Mlp(facts)
        self.input_layernorm = Norm(facts.hidden_size, eps)
        self.post_attention_layernorm = Norm(facts.hidden_size, eps)

    def forward(self, h: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), angles)
        return h + self.mlp(self.post_attention_layernorm(h))


class Body(nn.Module):
    def __init__(self, facts: ModelFacts, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(facts.vocabulary_size, facts.hidden_size)
        self.layers = nn.ModuleList(Layer(facts, config, eps) for _ in range(facts.num_layers))
        self.norm = Norm(facts.hidden_size, eps)
        self.rotary_emb = Rotary(config, facts.head_dim)

    def forward(self, input_ids: Tensor, position_ids: Tensor, **_: Any) -> Any:
        """Called as transformers' body is, inside of `attention.packed`: mask and cache options have no use here."""
        h = self.embed_tokens(input_ids)
        angles = self.rotary_emb(position_ids, h.dtype)
        for layer in self.layers:
            h = layer(h, angles)
        return SimpleNamespace(last_hidden_state=self.norm(h))


class Skeleton(nn.Module):
    """`config` holds what of config.json is read from a model elsewhere."""

    base_model_prefix = "model"

    def __init__(self, facts: ModelFacts, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(
            model_type=config["model_type"], hidden_act="silu", mlp_bias=False, sliding_window=None,
            hidden_size=facts.hidden_size, intermediate_size=facts.intermediate_size,
            num_attention_heads=facts.num_attention_heads, num_key_value_heads=facts.num_key_value_heads,
        )  # fmt: skip
        self.model = Body(facts, config, float(config.get("rms_norm_eps", _DEFAULTS["rms_norm_eps"])))
        self.lm_head = nn.Linear(facts.hidden_size, facts.vocabulary_size, bias=False)
        if facts.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.folder = facts.path
        self._generating: nn.Module | None = None

    @property
    def base_model(self) -> nn.Module:
        return self.model

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def build(facts: ModelFacts, config: Mapping[str, Any]) -> Skeleton:
    """The module without values (on the meta device) but for its angles."""
    with torch.device("meta"):
        model = Skeleton(facts, config)
    model.model.rotary_emb = Rotary(config, facts.head_dim)
    return model


def for_generation(model: nn.Module) -> nn.Module:
    """A model that generates: transformers' own, around a skeleton's very modules; any other model as it is."""
    if not isinstance(model, Skeleton):
        return model
    if model._generating is None:
        model.__dict__["_generating"] = _around(model)  # no submodule: its parts are the skeleton's
    generating = model.__dict__["_generating"]
    for name, value in model.__dict__.items():
        if name.startswith("tunesmith_"):
            generating.__dict__[name] = value
    return generating


def _around(skeleton: Skeleton) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM  # heavy: only for generation

    attention.register()
    config = AutoConfig.from_pretrained(skeleton.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    body = cast(Any, made).model
    body.rotary_emb = type(body.rotary_emb)(config=config)
    for name, module in skeleton.named_modules():
        if isinstance(module, Norm):
            made.get_submodule(name).weight = module.weight
        elif (not any(True for _ in module.children()) and not isinstance(module, Rotary)) or hasattr(module, "lora_A"):
            parent, _, last = name.rpartition(".")
            if parent.endswith(".base") or last == "base":
                continue
            setattr(made.get_submodule(parent), last, module)
    made.eval()
    made.config.use_cache = False
    return made
