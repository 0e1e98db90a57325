"""Ids equal AutoTokenizer's, without its import; and what a folder may lack or break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.data.families import BUNDLED, CHATML, CONTROL, FAMILIES, write_folder
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.data.tokenizer import TextTokenizer, load_tokenizer
from tunesmith.errors import InputRefused

TEXTS = [
    "hello",
    "  two spaces before and after  ",
    " [INST] x [/INST] y",
    "lines\n\n\tand tabs\r\n",
    "<|user|>\nhi<|end|>\n<|assistant|>\n",
    "<s>[INST] é☃ 😀 日本[/INST]</s>\n",
    "x<|endoftext|> y ▁ z",
    "",
]


def require_equal(folder: Path) -> TextTokenizer:
    from transformers import AutoTokenizer

    ours = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.template.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.size == len(theirs)
    assert ours.chat_template == theirs.chat_template
    return ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", ["gpt2", "phi3-mini", "mistral-spm-v1", "mistral-spm-v3"])
def test_ids_of_real_tokenizers_are_autotokenizers(shared_data: Path, name: str) -> None:
    require_equal(shared_data / "tokenizers" / name)


@pytest.mark.slow  # transformers imports torch here
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_families_are_autotokenizers(family: Callable[[str], Path], name: str) -> None:
    require_equal(family(name))


@pytest.mark.slow
def test_ids_of_the_bundled_model_are_autotokenizers() -> None:
    assert require_equal(MODEL_FOLDER).chat_template is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "model_type", "kind", "changes"),
    [
        ("LlamaTokenizer", None, "prepend", {}),
        ("LlamaTokenizerFast", "llama", "prepend", {}),
        ("LlamaTokenizer", "llama", "prepend", {"legacy": True}),
        ("LlamaTokenizer", "llama", "metaspace", {"add_prefix_space": False}),
        ("LlamaTokenizer", "llama", "bytes", {}),
        ("LlamaTokenizer", "mistral", "prepend", {}),
        ("LlamaTokenizer", "phi3", "prepend", {}),
        ("GPT2Tokenizer", "gpt2", "bytes", {}),
        ("GPT2TokenizerFast", "phi", "bytes", {}),
        ("PreTrainedTokenizerFast", "llama", "bytes", {}),
        ("PreTrainedTokenizerFast", "mistral", "metaspace", {}),
        ("TokenizersBackend", "qwen3", "bytes", {}),
        (None, "llama", "bytes", {}),
    ],
)
def test_ids_follow_the_class_that_transformers_takes(
    tmp_path: Path, declared: str | None, model_type: str | None, kind: str, changes: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path, kind=kind, control=("<s>", "</s>"), template=CHATML)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | changes
    config.pop("tokenizer_class")
    path.write_text(json.dumps(config if declared is None else config | {"tokenizer_class": declared}))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    require_equal(folder)


def test_loading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from pathlib import Path; from tunesmith.data.prepare import prepare;"
        "from tunesmith.data.render import load_renderer; load_renderer(Path(sys.argv[1]), 'auto');"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(MODEL_FOLDER)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_control_pieces_of_a_unigram_model_stay_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=None)
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0]] + [[sign, -5.0] for sign in "▁abcdefs<>/|"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = ("<unk>", "<s>", "</s>")
    document = {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": name, "special": True} | flags for n, name in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    ids = load_tokenizer(folder).encode_contents(["a</s>b<s>"])[0]
    assert not {1, 2} & set(ids)
    plain = Tokenizer.from_str(json.dumps(document | {"added_tokens": []}))
    assert {1, 2} & set(plain.encode("a</s>b<s>").ids)  # without our care the lattice finds them


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", b"{", "TOKENIZER_UNREADABLE"),
        ("tokenizer.json", b"[]", "TOKENIZER_UNREADABLE"),
        ("tokenizer.json", b"{}", "TOKENIZER_UNREADABLE"),
        ("tokenizer.json", b'{"model": {"type": "Nothing"}}', "TOKENIZER_UNREADABLE"),
        ("tokenizer_config.json", b"\xff\xfe", "TOKENIZER_UNREADABLE"),
        ("tokenizer_config.json", b'{"chat_template": "' + b"x" * 300_000 + b'"}', "TEMPLATE_TOO_LARGE"),
        ("tokenizer.json", None, "TOKENIZER_MISSING"),
    ],
)
def test_broken_tokenizer_files_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, code: str
) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=BUNDLED)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(InputRefused) as refused:
        load_tokenizer(folder)
    assert refused.value.code == code


def test_digest_changes_with_each_file_that_touches_tokens(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=BUNDLED)
    digests = [load_tokenizer(folder).digest]
    (folder / "chat_template.jinja").write_text(CHATML)
    digests.append(load_tokenizer(folder).digest)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5], "temperature": 1}')
    digests.append(load_tokenizer(folder).digest)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5], "temperature": 2}')
    assert load_tokenizer(folder).digest == digests[-1]  # a temperature touches no token
    assert len(set(digests)) == 3
    assert load_tokenizer(folder).stop_ids == (1, 5)
