"""The module of our own equals transformers': hidden states, loss, gradients, and generation around its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.conftest import MakeModel
from tests.models.test_decoder import batch, gradients, off, trained
from tunesmith.errors import InputRefused
from tunesmith.models.base import load_base
from tunesmith.models.decoder import Decoder
from tunesmith.models.generate import greedy
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import disabled, inject, set_dropout_position
from tunesmith.models.skeleton import Skeleton, for_generation, why_not
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.step import forward_scores

CPU = torch.device("cpu")
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {}),
    "llama, biases, rope of Llama 3, a head of its own": (
        "llama",
        {"attention_bias": True, "tie_word_embeddings": False, "rope_parameters": LLAMA_3},
    ),
    "llama, linear rope": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2, biases": ("qwen2", {"use_sliding_window": False}),
    "qwen3, norms of q and k": ("qwen3", {"head_dim": 32}),
}  # fmt: skip


def pair(make_model: MakeModel, case: str) -> tuple[nn.Module, nn.Module]:
    """(transformers' model, ours) of one folder."""
    name, changes = CASES[case]
    facts = inspect_model(make_model(name, **changes), "test/model")
    models = [load_base(facts, dtype=torch.float32, device=CPU, trains_only=ours) for ours in (False, True)]
    assert isinstance(models[1], Skeleton) and not isinstance(models[0], Skeleton)
    return models[0], models[1]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_those_of_transformers(make_model: MakeModel, case: str) -> None:
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for model in pair(make_model, case):
        inject(model, settings=TrainingSettings(lora_rank=4))
        trained(model)
        set_dropout_position(model, seed=1, step=2, offset=5)
        loss = forward_scores(model, batch([37, 20, 11, 30]), device=CPU).loss_sum
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    (wanted, expected), (loss, ours) = found
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert off(ours[name], gradient) < 2e-5, name


@pytest.mark.parametrize("case", CASES)
def test_generation_runs_around_its_parts_with_and_without_the_adapter(make_model: MakeModel, case: str) -> None:
    answers = []
    for model in pair(make_model, case):
        inject(model, settings=TrainingSettings(lora_rank=4))
        trained(model)
        speaking = for_generation(model)
        with disabled(model):
            base = greedy(speaking, [[5, 6, 7], [9, 10, 11, 12]], max_new_tokens=10, end_ids=[256])
        answers.append((base, greedy(speaking, [[5, 6, 7], [9, 10, 11, 12]], max_new_tokens=10, end_ids=[256])))
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_generation_sees_what_training_changes_later(make_model: MakeModel) -> None:
    _, model = pair(make_model, "llama, tied")
    inject(model, settings=TrainingSettings(lora_rank=4))
    before = greedy(for_generation(model), [[5, 6, 7]], max_new_tokens=10, end_ids=[256])
    trained(model)
    assert greedy(for_generation(model), [[5, 6, 7]], max_new_tokens=10, end_ids=[256]) != before


def test_the_decoder_attaches_to_it_as_well(make_model: MakeModel) -> None:
    given, found = batch([37, 20, 11]), []
    for model in pair(make_model, "qwen3, norms of q and k"):
        settings = TrainingSettings(lora_rank=4)
        inject(model, settings=settings)
        trained(model)
        loss = Decoder(model, settings=settings).train(given, seed=0, step=1, divisor=1)
        found.append((loss, gradients(model)))
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    for name, gradient in found[0][1].items():
        assert off(found[1][1][name], gradient) < 2e-5


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma2", {}, "gemma2 is not one of"),
        ("mistral", {}, "sliding window"),
        ("qwen2", {}, "sliding window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "kind dynamic"),
        ("llama", {"mlp_bias": True}, "SwiGLU"),
        ("llama", {"hidden_act": "gelu"}, "SwiGLU"),
    ],
)
def test_what_it_does_not_build_goes_to_transformers(
    make_model: MakeModel, name: str, changes: dict[str, Any], reason: str
) -> None:
    folder = make_model(name, **changes)
    said = why_not(json.loads((folder / "config.json").read_text()))
    assert said is not None and reason in said
    model = load_base(inspect_model(folder, "m"), dtype=torch.float32, device=CPU, trains_only=True)
    assert not isinstance(model, Skeleton)


def test_a_config_file_of_old_is_read(make_model: MakeModel, tmp_path: Path) -> None:
    """rope_theta and rope_scaling at the top, as files before transformers 5 have them."""
    folder = tmp_path / "old"
    folder.mkdir()
    for file in make_model("llama", rope_parameters=LLAMA_3).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(config))
    facts = inspect_model(folder, "m")
    theirs, ours = (load_base(facts, dtype=torch.float32, device=CPU, trains_only=flag) for flag in (False, True))
    assert torch.allclose(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq, rtol=1e-6)


def test_missing_and_misshapen_tensors_are_refused_by_name(make_model: MakeModel, facts_of: Callable[..., Any]) -> None:
    facts = facts_of(make_model("llama"))
    with pytest.raises(InputRefused) as caught:
        load_base(facts.model_copy(update={"num_layers": 3}), dtype=torch.float32, device=CPU, trains_only=True)
    assert caught.value.code == "MISSING_TENSORS" and "layers.2" in caught.value.message
    with pytest.raises(InputRefused) as caught:
        load_base(facts.model_copy(update={"num_layers": 1}), dtype=torch.float32, device=CPU, trains_only=True)
    assert caught.value.code == "UNEXPECTED_TENSORS"
    with pytest.raises(InputRefused) as caught:
        load_base(facts.model_copy(update={"intermediate_size": 96}), dtype=torch.float32, device=CPU, trains_only=True)
    assert caught.value.code == "SHAPE_MISMATCH"


@pytest.mark.slow
def test_training_with_it_imports_no_transformers(make_model: MakeModel) -> None:
    code = """
import sys, torch
from pathlib import Path
from tunesmith.models.base import load_base
from tunesmith.models.inspect import inspect_model
import tunesmith.train.loop
facts = inspect_model(Path(sys.argv[1]), "m")
load_base(facts, dtype=torch.float32, device=torch.device("cpu"), trains_only=True)
sys.exit(any(name == "transformers" for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code, str(make_model("llama"))], check=True)
