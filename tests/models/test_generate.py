"""Greedy generation against transformers' own generate, prompt by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.models.conftest import EVERY_ARCHITECTURE
from tunesmith.models import generate
from tunesmith.models.adapter_file import save_adapter
from tunesmith.models.generate import greedy
from tunesmith.models.lora import disabled, inject, lora_modules
from tunesmith.spec.training import TrainingSettings

pytestmark = [
    pytest.mark.slow,  # models of every architecture, once ours and once transformers' own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
SETTINGS = TrainingSettings.model_validate({"lora_rank": 4, "lora_alpha": 8.0})
PROMPTS = [[7, 3, 9], [1], list(range(30, 50)), [200, 100], [5] * 11]


def judged(model: Any, prompt: list[int], *, max_new_tokens: int, end_ids: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return output[:-1] if output[-1] in end_ids else output


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_equals_transformers_with_and_without_the_adapter(name: str, load: Any, tmp_path: Path) -> None:
    model, facts = load(name)
    inject(model, settings=SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.1, generator=generator)
    save_adapter(tmp_path, model, settings=SETTINGS, base=facts)
    plain = AutoModelForCausalLM.from_pretrained(facts.path, attn_implementation="eager", dtype=torch.float32).eval()
    with disabled(model):
        base = greedy(model, PROMPTS, max_new_tokens=10, end_ids=[256])
    assert base == [judged(plain, prompt, max_new_tokens=10, end_ids=[256]) for prompt in PROMPTS]
    tuned = greedy(model, PROMPTS, max_new_tokens=10, end_ids=[256])
    peft = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert tuned == [judged(peft, prompt, max_new_tokens=10, end_ids=[256]) for prompt in PROMPTS]
    assert tuned != base


def test_rows_stop_at_their_own_end_token(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = load("llama")
    free = greedy(model, PROMPTS, max_new_tokens=12, end_ids=[])
    assert all(len(answer) == 12 for answer in free)
    ends = [free[0][4], free[3][1]]  # stops two rows early, in a batch that others keep open
    found = greedy(model, PROMPTS, max_new_tokens=12, end_ids=ends)
    for answer, whole in zip(found, free, strict=True):
        cut = next((place for place, token in enumerate(whole) if token in ends), 12)
        assert answer == whole[:cut]
    assert len({len(answer) for answer in found}) > 1
    monkeypatch.setattr(generate, "BATCH_TOKENS", 1)  # one prompt at a time
    assert greedy(model, PROMPTS, max_new_tokens=12, end_ids=ends) == found
    assert facts.name == "test/model"


def test_no_prompts_and_empty_prompts(load: Any) -> None:
    model, _ = load("llama")
    assert greedy(model, [], max_new_tokens=3, end_ids=[]) == []
    with pytest.raises(ValueError, match="at least one token"):
        greedy(model, [[1], []], max_new_tokens=3, end_ids=[])
