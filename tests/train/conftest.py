"""A two-layer base model with a byte tokenizer, made once, and job files for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.models.inspect import inspect_model
from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.training import TrainingSettings
from tunesmith.versions import numeric_versions

SPECIALS = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_byte_tokenizer(folder: Path, *, chat_template: str | None = TEMPLATE) -> int:
    """One token a byte and four special tokens; returns the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "model_max_length": 512,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-base")
    vocabulary = save_byte_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=256,
        eos_token_id=257, pad_token_id=257, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def some_rows(count: int, *, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"count {index}:" + " x" * (index % 5), "completion": f"{index} then {index + 1}"}
        for index in range(start, start + count)
    ]


MakeJob = Callable[..., Path]


@pytest.fixture
def make_job(tiny_base: Path, tmp_path: Path) -> MakeJob:
    """Writes a dataset and a resolved job file; returns the job file's path."""

    def make(
        name: str = "job", *, rows: list[dict[str, str]] | None = None, validation: list[dict[str, str]] | None = None,
        test: list[dict[str, str]] | None = None, base: Path = tiny_base, threads: int = 1, **settings: object
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        datasets = []
        for role, content in (("training", rows or some_rows(24)), ("validation", validation), ("test", test)):
            if content is not None:
                path = tmp_path / f"{name}-{role}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in content))
                datasets.append(DatasetInput(role=role, path=str(path), name=path.name))  # type: ignore[arg-type]
        chosen = {
            "epochs": 2, "learning_rate": 5e-3, "lora_rank": 4, "lora_alpha": 8, "sequence_length": 64,
            "render": "chat", "global_batch_size": 8, "micro_batch_size": 4, "precision": "float32",
            "base_precision": "float32",
            "strategy": "single", "path": "generic", "compile_layers": "off", "checkpointed_layers": 0,
            "validation_fraction": 0.0 if validation else 0.25, **settings,
        }  # fmt: skip
        job = JobFile(
            job_id=name, model_version=f"{name}:1", name=name, created_at="2026-01-01T00:00:00.000Z",
            base=inspect_model(base, "tests/tiny"), datasets=datasets, cache_folder=str(tmp_path / "cache"),
            settings=TrainingSettings.model_validate(chosen), threads=threads, versions=numeric_versions(),
        )  # fmt: skip
        (folder / "job.json").write_text(job.model_dump_json())
        return folder / "job.json"

    return make
