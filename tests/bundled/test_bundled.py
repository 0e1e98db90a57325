"""The bundled base model and dataset: small, loadable without the network, and made by the script that is said to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLED = REPOSITORY / "src" / "tunesmith" / "bundled"
MODEL = BUNDLED / "model"
MODEL_FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SAMPLE = "Amanda: Look, I bought a red kite at the market!\nJerry: Nice! How much was it?\nAmanda: Only 12 coins."


def read_rows(name: str) -> list[dict[str, str]]:
    lines = (BUNDLED / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def speakers(row: dict[str, str]) -> frozenset[str]:
    lines = row["prompt"].split("\n")[1:]
    return frozenset(line.split(":")[0] for line in lines[: lines.index("---")])


def test_the_model_folder_holds_the_expected_files_and_stays_small():
    assert {path.name for path in MODEL.iterdir()} == MODEL_FILES
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*")) <= 12 * 1024 * 1024


def test_the_script_makes_byte_identical_rows_again(tmp_path: Path):
    script = REPOSITORY / "scripts" / "make_demo_model.py"
    subprocess.run([sys.executable, script, "--only", "data", "--out", tmp_path], check=True, timeout=60)
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / "data" / name).read_bytes() == (BUNDLED / "data" / name).read_bytes()


def test_rows_are_distinct_and_validation_is_unseen_in_training():
    training, validation = read_rows("train"), read_rows("validation")
    assert (len(training), len(validation)) == (400, 64)
    prompts = [row["prompt"] for row in training + validation]
    assert len(set(prompts)) == len(prompts)
    assert not {row["completion"] for row in training} & {row["completion"] for row in validation}
    assert not {speakers(row) for row in training} & {speakers(row) for row in validation}
    assert all(set(row) == {"prompt", "completion"} and row["completion"] for row in training + validation)


def test_every_sentence_of_the_bundled_rows_is_plain_text_with_one_full_stop():
    for row in read_rows("train") + read_rows("validation"):
        assert row["completion"].isprintable()
        assert row["completion"].endswith(".")
        assert row["completion"].count(". ") == 0


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True, dtype="float32").eval()


@pytest.mark.slow
def test_the_chat_template_begins_once_and_keeps_contents_as_they_are(tokenizer):
    contents = ["  be brief\n", "Two  spaces,\ttab, {{ braces }} and \u00fc\u4e2d\U0001f600 \n", " an answer", "{}"]
    roles = ("system", "user", "assistant", "tool")
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|begin|>" + "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens.count(tokenizer.bos_token_id) == 1 and tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text + "<|assistant|>"
    assert tokenizer.decode(tokenizer.encode(contents[1])) == contents[1]
    assert len(tokenizer) == 3072


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["Hello!", f"Who is talking?\n\n{SAMPLE}", f"{SAMPLE}\n\nWhat did Amanda buy?"])
def test_the_base_model_answers_in_plain_text_and_stops(model, tokenizer, prompt: str):
    import torch

    message = [{"role": "user", "content": prompt}]
    tokens = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**tokens, max_new_tokens=80, do_sample=False)[0, tokens["input_ids"].shape[1] :].tolist()
    assert out[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    answer = tokenizer.decode(out[:-1])
    assert answer.strip() and answer.isprintable()


@pytest.mark.slow
def test_a_row_as_long_as_the_context_has_a_sensible_loss(model, tokenizer):
    import torch

    assert model.config.max_position_embeddings >= 2048
    conversations = "\n\n".join(row["prompt"].split("\n", 1)[1].split("\n---")[0] for row in read_rows("train"))
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(conversations)][:2048]])
    assert tokens.shape == (1, 2048)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    assert torch.isfinite(losses).all()
    # The last quarter is read as well as the first: no position is new to the model.
    assert losses[-512:].mean() < losses[:512].mean() + 0.3 < 2.5
