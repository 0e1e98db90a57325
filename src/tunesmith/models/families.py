"""Which family of the table a config.json belongs to, or why it is none that Tunesmith fine-tunes.

The table itself is `spec/families.py`. What is not in it is refused by name, with the reason where the config tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.spec.families import FAMILIES, Family

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
