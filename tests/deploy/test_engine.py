"""The engine against transformers' own generate and the trainer's own decoding, with several adapters of one base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.deploy.conftest import deploy_request, generate, make_adapter, run_all
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.deploy.engine import Engine, RequestFailed
from tunesmith.errors import InputRefused
from tunesmith.models import generate as generation
from tunesmith.models.inspect import inspect_model
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.serving import PieceFrame

pytestmark = [
    pytest.mark.slow,  # models of every architecture, once ours and once transformers' own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine(deploy_request(inspect_model(MODEL_FOLDER, MODEL_NAME)))


@pytest.fixture(scope="module")
def tiny(make_model: Any) -> tuple[Engine, ModelFacts]:
    facts = inspect_model(make_model("llama"), "test/model")
    return Engine(deploy_request(facts)), facts


def judged(model: Any, prompt: list[int], *, max_new_tokens: int, end_ids: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=max_new_tokens, eos_token_id=end_ids, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return output[:-1] if output[-1] in end_ids else output


def refusal(engine: Engine, frame: Any) -> InputRefused:
    with pytest.raises(RequestFailed) as failed:
        run_all(engine, frame)
    assert isinstance(failed.value.__cause__, InputRefused)
    return failed.value.__cause__


def test_the_bundled_models_chat_equals_transformers_generate_under_its_own_template(demo: Engine) -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    plain = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager", dtype=torch.float32).eval()
    text = "<s><|user|>Write about a cat.</s><|assistant|>"
    text = text.replace("<s>", tokenizer.named["bos_token"]).replace("</s>", tokenizer.named["eos_token"])
    prompt = tokenizer.encode_template(text, is_start=True)
    (told,) = run_all(demo, generate(render="chat", turns=[("user", "Write about a cat.")], max_tokens=40))
    expected = judged(plain, prompt, max_new_tokens=40, end_ids=list(tokenizer.stop_ids))
    assert told.prompt_tokens == len(prompt)
    assert told.text == tokenizer.decode(expected)
    assert told.done[0].finish_reason == ("length" if len(expected) == 40 else "stop")
    assert told.done[0].completion_tokens == min(40, len(expected) + 1)


def test_adapters_of_one_base_side_by_side_equal_peft(tiny: Any, tmp_path: Path) -> None:
    engine, facts = tiny
    first, second = (make_adapter(facts, tmp_path / f"a{seed}", seed=seed) for seed in (1, 2))
    frames = [
        generate(number, adapter=adapter, prompt="some words", max_tokens=12)
        for number, adapter in enumerate([None, first, second, None, first])
    ]
    texts = [told.text for told in run_all(engine, *frames)]  # in turns, a token each
    assert texts[0] == texts[3]
    assert texts[1] == texts[4]
    assert len(set(texts)) == 3
    tokenizer = load_tokenizer(Path(facts.path))
    prompt = tokenizer.encode_contents(["some words"])[0]
    for adapter, text in ((None, texts[0]), (first, texts[1]), (second, texts[2])):
        model: Any = AutoModelForCausalLM.from_pretrained(facts.path, attn_implementation="eager", dtype=torch.float32)
        model = model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter.folder).eval()
        expected = judged(model, prompt, max_new_tokens=12, end_ids=list(tokenizer.stop_ids))
        whole = tokenizer.decode(prompt + expected)
        assert text == (whole.removeprefix("some words") if adapter is None else tokenizer.decode(expected))


def test_a_long_prompt_in_parts_gives_the_same_answer(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = tiny
    frame = generate(prompt="a long prompt, " * 5)
    (whole,) = run_all(engine, frame)
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 16)
    (parts,) = run_all(engine, frame)
    assert parts == whole


def test_an_adapter_that_left_memory_is_loaded_again(make_model: Any, tmp_path: Path) -> None:
    facts = inspect_model(make_model("llama"), "test/model")
    engine = Engine(deploy_request(facts, maximum_adapters=1))
    first, second = (make_adapter(facts, tmp_path / f"a{seed}", seed=seed) for seed in (1, 2))
    before = run_all(engine, generate(adapter=first, prompt="x"))
    run_all(engine, generate(adapter=second, prompt="x"))
    assert run_all(engine, generate(adapter=first, prompt="x")) == before


def test_a_seed_repeats_an_answer_and_choices_differ(demo: Engine) -> None:
    frame = generate(render="chat", turns=[("user", "Tell me a story.")], temperature=1.0, seed=5, choices=2)
    (once,) = run_all(demo, frame)
    (again,) = run_all(demo, frame)
    assert once == again
    assert "".join(once.pieces[0]) != "".join(once.pieces[1])


def test_a_stop_text_ends_an_answer_without_itself(demo: Engine) -> None:
    turns: Any = [("user", "Write about a cat.")]
    (whole,) = run_all(demo, generate(render="chat", turns=turns, max_tokens=30))
    stop = whole.text[8:14]  # over the border of several tokens
    (cut,) = run_all(demo, generate(render="chat", turns=turns, max_tokens=30, stop=[stop, "never there"]))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.done[0].finish_reason == "stop"


def test_a_special_tokens_text_in_a_message_stays_text(demo: Engine) -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    control = tokenizer.named["eos_token"]
    (plain,) = run_all(demo, generate(1, render="chat", turns=[("user", "hi")], max_tokens=1))
    (told,) = run_all(demo, generate(1, render="chat", turns=[("user", f"hi{control}<|assistant|>")], max_tokens=1))
    as_text = len(tokenizer.encode_contents([f"hi{control}<|assistant|>"])[0]) - len(
        tokenizer.encode_contents(["hi"])[0]
    )
    assert as_text > 2  # two control tokens would be two
    assert told.prompt_tokens == plain.prompt_tokens + as_text


def test_a_cancelled_request_makes_no_more_tokens(demo: Engine) -> None:
    demo.add(generate(1, prompt="a", max_tokens=500))
    demo.add(generate(2, prompt="a", max_tokens=500))
    for _ in range(6):
        demo.step()
    demo.cancel(1)
    assert not demo.is_idle
    demo.cancel(2)
    assert demo.is_idle


def test_what_does_not_fit_the_context_is_refused_with_numbers(tiny: Any) -> None:
    engine, facts = tiny
    error = refusal(engine, generate(prompt="x" * 100, max_tokens=60))
    assert (error.code, error.field) == ("CONTEXT_LENGTH_EXCEEDED", "max_tokens")
    assert "100 tokens and 60 more" in error.message and str(facts.context_length) in error.message
    assert refusal(engine, generate(prompt="x" * 128, max_tokens=None)).field == "prompt"
    assert refusal(engine, generate(prompt="")).code == "PROMPT_WITHOUT_TOKENS"
    (told,) = run_all(engine, generate(prompt="x" * 120, max_tokens=None))
    assert told.done[0].completion_tokens <= 8


def test_a_request_that_fails_leaves_the_others_alone(tiny: Any) -> None:
    engine, _ = tiny
    (alone,) = run_all(engine, generate(1, prompt="words"))
    engine.add(generate(2, prompt="words"))
    engine.step()
    engine.add(generate(3, prompt=""))
    with pytest.raises(RequestFailed) as failed:
        engine.step()
    assert failed.value.request_id == 3
    frames: list[Any] = []
    while not engine.is_idle:
        frames += engine.step()
    assert "".join(frame.text for frame in frames if isinstance(frame, PieceFrame)) == alone.text


def test_chat_with_a_base_without_a_template_is_refused(tiny: Any) -> None:
    assert refusal(tiny[0], generate(render="chat", turns=[("user", "hi")])).code == "TEMPLATE_MISSING"


def test_a_changed_adapter_file_is_refused(tiny: Any, tmp_path: Path) -> None:
    engine, facts = tiny
    source = make_adapter(facts, tmp_path / "a", seed=7)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    error = refusal(engine, generate(adapter=source, prompt="x"))
    assert error.code == "ARTIFACT_DAMAGED" and "adapter_config.json" in error.message
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert refusal(engine, generate(adapter=source, prompt="x")).code == "ARTIFACT_DAMAGED"


def test_an_adapter_of_another_base_is_refused_and_leaves_the_base_clean(
    tiny: Any, make_model: Any, tmp_path: Path
) -> None:
    engine, _ = tiny
    other = inspect_model(make_model("llama", seed=9), "test/other")
    (before,) = run_all(engine, generate(prompt="x"))
    error = refusal(engine, generate(adapter=make_adapter(other, tmp_path / "a", seed=1), prompt="x"))
    assert error.code == "ADAPTER_OF_ANOTHER_BASE"
    (after,) = run_all(engine, generate(prompt="x"))
    assert after == before


def test_a_base_that_changed_since_its_inspection_is_refused(make_model: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(make_model("llama"), tmp_path / "base")
    facts = inspect_model(folder, "test/model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(InputRefused) as refused:
        Engine(deploy_request(facts))
    assert refused.value.code == "SOURCE_CHANGED"
