"""The shipped facts of well-known models against transformers' own classes, built without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from tunesmith.catalog.known import known_models
from tunesmith.spec.known_models import KnownModel

# What the sizes alone do not tell: options of a checkpoint's configuration that add values.
OPTIONS: dict[str, dict[str, Any]] = {"phimoe": {"attention_bias": True, "lm_head_bias": True}}
VISION = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 896, "vision_use_head": False,
}  # fmt: skip


def config_of(known: KnownModel) -> Any:
    sizes = {
        "hidden_size": known.hidden_size,
        "num_hidden_layers": known.num_layers,
        "num_attention_heads": known.num_attention_heads,
        "num_key_value_heads": known.num_key_value_heads,
        "head_dim": known.head_dim,
        "intermediate_size": known.intermediate_size,
        "vocab_size": known.vocabulary_size,
        "tie_word_embeddings": known.tied_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if known.model_type == "gpt2":
        sizes |= {"n_embd": known.hidden_size, "n_layer": known.num_layers, "n_head": known.num_attention_heads}
    if (experts := known.experts) is not None:
        is_local = known.model_type in ("mixtral", "phimoe", "gpt_oss")
        sizes |= {"num_local_experts" if is_local else "num_experts": experts.count}
        sizes |= {"num_experts_per_tok": experts.active, "moe_intermediate_size": experts.intermediate_size}
    if known.model_type == "gemma3":
        return CONFIG_MAPPING["gemma3"](text_config=sizes, vision_config=VISION)
    return CONFIG_MAPPING[known.model_type](**sizes | OPTIONS.get(known.model_type, {}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", known_models().models, ids=lambda known: known.name)
def test_parameters_and_modules_are_those_of_transformers(known: KnownModel) -> None:
    loader = AutoModelForImageTextToText if known.model_type == "gemma3" else AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config_of(known))
    assert type(model).__name__ == known.architecture
    assert sum(parameter.numel() for parameter in model.parameters()) == known.parameters
    sizes = known.sizes()
    if sizes is None:
        return
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nx, module.nf)
    assert {each.name: (each.in_features, each.out_features) for each in sizes.linear_modules} == found
