"""The flat loop of `examples/`: it learns, and what it writes is an adapter that peft itself loads."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.bundled import MODEL_FOLDER, TRAINING_ROWS

pytestmark = [
    pytest.mark.slow,
    # peft 0.21 asks transformers 5.23 for a property that the latter has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flat_loop.py"
NUM_ROWS = 16


def loss_of(model: torch.nn.Module, rows: list[dict[str, str]]) -> float:
    """Mean loss of whole rendered rows, prompt included, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    losses: list[float] = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_the_flat_loop_learns_and_peft_loads_its_adapter(tmp_path: Path) -> None:
    lines = TRAINING_ROWS.read_text(encoding="utf-8").splitlines(keepends=True)[:NUM_ROWS]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(lines), encoding="utf-8")
    fine_tune = runpy.run_path(str(EXAMPLE))["fine_tune"]

    losses = fine_tune(dataset, tmp_path / "adapter", epochs=1)

    assert len(losses) == 2
    assert losses[-1] < losses[0]
    base = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER).eval()
    rows = [json.loads(line) for line in lines]
    before = loss_of(base, rows)
    tuned = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert loss_of(tuned, rows) < before
