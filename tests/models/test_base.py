"""Loading: frozen, whole, and refused where transformers would fill in random values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.conftest import MakeModel
from tunesmith.errors import InputRefused
from tunesmith.models import attention
from tunesmith.models.base import load_base
from tunesmith.models.inspect import inspect_model
from tunesmith.models.tensor_file import read_header

CPU = torch.device("cpu")


def test_the_model_is_frozen_silent_and_ours(load: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model, facts = load("gpt2")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training, "GPT-2's own dropout stays off"
    assert model.config._attn_implementation == attention.NAME
    assert sum(parameter.numel() for parameter in model.parameters()) == facts.parameters
    assert capfd.readouterr().out == ""


def test_the_dtype_is_the_one_asked_for(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("llama", dtype=torch.bfloat16), "m")
    stored = load_file(Path(facts.path) / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    for dtype in (torch.float32, torch.bfloat16):
        weight: Any = load_base(facts, dtype=dtype, device=CPU).get_submodule("model.layers.0.mlp.up_proj").weight
        assert weight.dtype == dtype and torch.equal(weight, stored.to(dtype))


def altered(folder: Path, to: Path, **changes: torch.Tensor | None) -> Path:
    shutil.copytree(folder, to)
    tensors: dict[str, Any] = load_file(to / "model.safetensors") | changes
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    read_header(to / "model.safetensors")
    return to


def test_missing_tensors_are_refused_and_never_made_up(make_model: MakeModel, tmp_path: Path) -> None:
    folder = altered(make_model("llama"), tmp_path / "m", **{"model.norm.weight": None})
    with pytest.raises(InputRefused) as refusal:
        load_base(inspect_model(folder, "m"), dtype=torch.float32, device=CPU)
    assert refusal.value.code == "MISSING_TENSORS" and "model.norm.weight" in refusal.value.message


def test_tensors_without_a_place_in_the_body_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    """A bias that config.json switches off would be left out without a word."""
    biases = {f"model.layers.{layer}.self_attn.q_proj.bias": torch.ones(48) for layer in range(2)}
    folder = altered(make_model("llama"), tmp_path / "m", **biases)
    with pytest.raises(InputRefused) as refusal:
        load_base(inspect_model(folder, "m"), dtype=torch.float32, device=CPU)
    assert refusal.value.code == "UNEXPECTED_TENSORS" and "q_proj.bias" in refusal.value.message


def test_wrong_shapes_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = altered(make_model("llama"), tmp_path / "m", **{"model.norm.weight": torch.ones(47)})
    with pytest.raises(InputRefused) as refusal:
        load_base(inspect_model(folder, "m"), dtype=torch.float32, device=CPU)
    assert refusal.value.code == "SHAPE_MISMATCH" and "model.norm.weight" in refusal.value.message


@pytest.mark.parametrize(
    ("key", "value", "code"), [("rms_norm_eps", "x", "BROKEN_CONFIG"), ("hidden_act", "nope", "MODEL_UNLOADABLE")]
)
def test_a_config_that_transformers_refuses_is_the_users_fault(
    make_model: MakeModel, tmp_path: Path, key: str, value: str, code: str
) -> None:
    folder = Path(shutil.copytree(make_model("llama"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefused) as refusal:
        load_base(inspect_model(folder, "m"), dtype=torch.float32, device=CPU)
    assert refusal.value.code == code and value in refusal.value.message and refusal.value.hint


def test_a_folder_that_changed_since_its_inspection_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_model("llama"), tmp_path / "m"))
    facts = inspect_model(folder, "m")
    load_base(facts, dtype=torch.float32, device=CPU)
    changed = altered(make_model("llama"), tmp_path / "other", **{"model.norm.weight": torch.ones(48)})
    shutil.copy(changed / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(InputRefused) as refusal:
        load_base(facts, dtype=torch.float32, device=CPU)
    assert refusal.value.code == "SOURCE_CHANGED"
