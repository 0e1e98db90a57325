"""Small models with random weights, one folder per architecture, saved as a hub repository would hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.models.base import load_base
from tunesmith.models.inspect import inspect_model
from tunesmith.spec.models import ModelFacts

VOCABULARY = 320
END_TOKEN = "<|end|>"

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 256,
}
# Sliding windows of 7 are shorter than the documents of the tests.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 7, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 24},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 7,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"model_type": "phi3"},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "olmo2": {"model_type": "olmo2"},
    "starcoder2": {"model_type": "starcoder2", "use_bias": True},
    "cohere2": {
        "model_type": "cohere2",
        "sliding_window": 7,
        "logit_scale": 0.25,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
# Between them these five have tied and own heads, windows, softcaps, fused projections and Conv1D.
QUICK = ("llama", "mistral", "gemma2", "phi3", "gpt2")
EVERY_ARCHITECTURE = [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in ARCHITECTURES]
MakeModel = Callable[..., Path]


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: 256 bytes, then the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TOKEN])
    return tokenizer


def write_model(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """One architecture's folder: config, weights (not near zero, so that a wrong path shows), tokenizer."""
    settings = {**_COMMON, **ARCHITECTURES[name], **changes}
    shards = settings.pop("max_shard_size", "5GB")
    model_type = settings.pop("model_type")
    if model_type == "gpt2":
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        ):
            settings.pop(key)
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_TOKEN, "model_max_length": 128})
    )
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of these sizes are slower on two threads, and the machine may have other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """make_model("llama", ...) -> its folder; equal calls share one (do not write into it)."""
    made: dict[str, Path] = {}

    def make(name: str, **changes: Any) -> Path:
        key = repr((name, sorted(changes.items(), key=str)))
        if key not in made:
            made[key] = write_model(tmp_path_factory.mktemp(name), name, **changes)
        return made[key]

    return make


@pytest.fixture
def facts_of() -> Callable[[Path], ModelFacts]:
    return lambda folder: inspect_model(folder, "test/model")


@pytest.fixture
def load(make_model: MakeModel) -> Callable[..., Any]:
    """load("llama") -> (model, facts), freshly loaded in float32."""

    def make(name: str, **changes: Any) -> Any:
        facts = inspect_model(make_model(name, **changes), "test/model")
        return load_base(facts, dtype=torch.float32, device=torch.device("cpu")), facts

    return make
