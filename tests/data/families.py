"""Model folders for the data tests: small tokenizers trained here, templates in the style of known families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.models import ModelFacts

SHARED = Path(__file__).parents[3] / "shared" / "data"

CONTROL = ("<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
TEXT = [
    "Amanda baked cookies and will bring some for Jerry tomorrow.",
    "Summarize this dialog:\nOlivia: Who are you voting for in this election?\r\nOliver: Liberals as always.",
    "user assistant system tool [INST] [/INST] <<SYS>> start_of_turn end_of_turn im_start im_end end",
    "0 1 2 3 4 5 6 7 8 9 é ü ß 日本 😀 \t\n  {} [] () <> | / \\ \" ' : ; , . ! ?",
]

# In our own words, in the style of the families: what matters is where each puts turns, spaces and end tokens.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set before = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must alternate between user and assistant') }}{% endif %}"
    "{% set content = before + message.content if loop.first else message.content %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' ~ message.role ~ '<|close|>\n\n' }}"
    "{{ (message.content | trim) ~ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|close|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role }}"
    "{% if message.content %}{{ '\n' + message.content }}{% endif %}{% for call in message.tool_calls or [] %}"
    '{{ \'\n<tool_call>\n{"name": "\' }}{{ call.function.name }}{{ \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = (
    "{% for message in messages %}{{ message.role.upper() + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
BUNDLED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# template, its control tokens (bos, end of text, others), on which kind of tokenizer
FAMILIES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "chatml": (CHATML, ("<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"), "bytes"),
    "llama2": (LLAMA2, ("<s>", "</s>"), "metaspace"),
    "llama3": (LLAMA3, ("<|begin|>", "<|endoftext|>", "<|start|>", "<|close|>", "<|eot|>"), "bytes"),
    "gemma": (GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "metaspace"),
    "mistral": (MISTRAL, ("<s>", "</s>"), "prepend"),
    "mistral-bytes": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "bytes"),
    "tools": (TOOLS, ("<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"), "bytes"),
    "thinking": (THINKING, ("<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"), "bytes"),
    "endless": (ENDLESS, ("<|begin|>", "<|endoftext|>"), "bytes"),
    "bundled": (BUNDLED, CONTROL, "bytes"),
}

FolderMaker = Callable[..., Path]


def trained_tokenizer(kind: str, control: tuple[str, ...]) -> Tokenizer:
    """A small BPE tokenizer: `bytes` as GPT-2, Llama 3 and Qwen, `metaspace` and `prepend` as sentencepiece ones."""
    special = [AddedToken(text, special=True, normalized=False) for text in control]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXT, trainer)
        return tokenizer
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    special += [AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in control]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}
    document["pre_tokenizer"] = metaspace if kind == "metaspace" else None
    document["normalizer"] = prepend if kind == "prepend" else None
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return Tokenizer.from_str(json.dumps(document))


def write_folder(
    folder: Path, *, kind: str, control: tuple[str, ...], template: str | None, eos: str | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    trained_tokenizer(kind, control).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": control[0],
        "eos_token": eos or control[1],
        "pad_token": control[1],
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def facts_of(folder: Path, *, context_length: int = 2048, vocabulary_size: int = 60_000) -> ModelFacts:
    """The facts that `prepare` reads; no weights are behind them."""
    return ModelFacts(
        name=folder.name,
        path=str(folder),
        digest="0" * 64,
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=1,
        weight_bytes=4,
        dtype="float32",
        context_length=context_length,
        hidden_size=8,
        num_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
        vocabulary_size=vocabulary_size,
        tokenizer_size=vocabulary_size,
        tied_embeddings=False,
        has_chat_template=False,
        end_token="",
        end_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
        licence=None,
        linear_modules=[],
    )


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def dataset(path: Path, role: str = "training", **columns: str) -> DatasetInput:
    return DatasetInput.model_validate({"role": role, "path": str(path), "name": path.name, "columns": columns})
