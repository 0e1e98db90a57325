"""Our adapter file with PEFT as the judge, both ways, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.models.conftest import EVERY_ARCHITECTURE
from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.models.adapter_file import load_adapter, save_adapter
from tunesmith.models.adapter_form import CONFIG_NAME, WEIGHTS_NAME
from tunesmith.models.lora import adapter_parameters, inject, lora_modules
from tunesmith.spec.training import TrainingSettings

pytestmark = [
    pytest.mark.slow,  # models of every architecture, once ours and once transformers' own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WITH_RSLORA = [
    *(pytest.param(*each.values, "lora", marks=each.marks) for each in EVERY_ARCHITECTURE),
    ("llama", "rslora"),
    ("gpt2", "rslora"),
]
TOKENS = torch.arange(40).view(2, 20) * 5 % 256


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"lora_rank": 4, "lora_alpha": 6.0, **changes})


def alive(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.2, generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # relative to the largest logit: single logits cancel to near zero
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def plain(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize(("name", "adapter"), WITH_RSLORA)
def test_ours_loads_in_peft_with_the_same_logits(name: str, adapter: str, load: Any, tmp_path: Path) -> None:
    model, facts = load(name)
    chosen = settings(adapter=adapter)
    inject(model, settings=chosen)
    alive(model)
    save_adapter(tmp_path, model, settings=chosen, base=facts)
    base = plain(facts.path)
    before = logits(base)
    judged = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert_same(logits(model), logits(judged))
    assert float((logits(judged) - before).abs().max() / before.abs().max()) > 1e-3, "the adapter plays a part"


@pytest.mark.parametrize(("name", "adapter"), WITH_RSLORA)
def test_pefts_loads_in_ours_with_the_same_logits(name: str, adapter: str, load: Any, tmp_path: Path) -> None:
    model, facts = load(name)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        use_rslora=adapter == "rslora",
        fan_in_fan_out=name == "gpt2",
        init_lora_weights=False,  # B away from zero
        task_type="CAUSAL_LM",
    )
    judged = get_peft_model(plain(facts.path), config).eval()
    judged.save_pretrained(tmp_path)
    load_adapter(tmp_path, model, base=facts)
    assert_same(logits(model), logits(judged))


def test_equal_adapters_give_equal_bytes_and_plain_float32(load: Any, tmp_path: Path) -> None:
    written = []
    for run in range(2):
        model, facts = load("llama")
        inject(model, settings=settings())
        alive(model)
        folder = tmp_path / str(run)
        folder.mkdir()
        save_adapter(folder, model, settings=settings(), base=facts)
        written.append([(folder / name).read_bytes() for name in (WEIGHTS_NAME, CONFIG_NAME)])
    assert written[0] == written[1]
    stored = load_file(tmp_path / "0" / WEIGHTS_NAME)
    assert len(stored) == 2 * 14
    assert all(
        value.dtype == torch.float32 and key.startswith("base_model.model.model.") for key, value in stored.items()
    )
    config = json.loads((tmp_path / "0" / CONFIG_NAME).read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert "/" not in config["base_model_name_or_path"].removeprefix("test/")


def test_targets_that_share_a_last_part_with_others_are_written_in_full(load: Any, tmp_path: Path) -> None:
    """GPT-2 has attn.c_proj and mlp.c_proj: `c_proj` alone would choose both in PEFT."""
    model, facts = load("gpt2")
    chosen = settings(target_modules=("mlp.c_proj",))
    inject(model, settings=chosen)
    alive(model)
    save_adapter(tmp_path, model, settings=chosen, base=facts)
    judged = PeftModel.from_pretrained(plain(facts.path), str(tmp_path)).eval()
    assert_same(logits(model), logits(judged))
    assert sum(name.endswith("lora_A.default") for name, _ in judged.named_modules()) == 2


def test_values_return_into_a_model_that_already_carries_the_adapter(load: Any, tmp_path: Path) -> None:
    model, facts = load("llama")
    inject(model, settings=settings())
    alive(model)
    save_adapter(tmp_path, model, settings=settings(), base=facts)
    kept = {name: value.detach().clone() for name, value in adapter_parameters(model).items()}
    identities = {name: id(value) for name, value in adapter_parameters(model).items()}
    alive(model, seed=9)
    load_adapter(tmp_path, model, base=facts)
    for name, value in adapter_parameters(model).items():
        assert torch.equal(value, kept[name]) and id(value) == identities[name]


@pytest.fixture
def saved(load: Any, tmp_path: Path) -> Path:
    model, facts = load("llama")
    inject(model, settings=settings())
    alive(model)
    save_adapter(tmp_path, model, settings=settings(), base=facts)
    return tmp_path


@pytest.mark.parametrize("other", ["mistral", "gpt2", "gemma"])
def test_an_adapter_of_another_architecture_is_refused(other: str, saved: Path, load: Any) -> None:
    model, _ = load(other)
    with pytest.raises(InputRefused) as refusal:
        load_adapter(saved, model)
    assert refusal.value.code == "ADAPTER_OF_ANOTHER_BASE"
    assert not lora_modules(model)


def test_an_adapter_of_other_weights_of_the_same_shape_is_refused(saved: Path, load: Any) -> None:
    model, facts = load("llama", seed=7)
    with pytest.raises(InputRefused, match="digest") as refusal:
        load_adapter(saved, model, base=facts)
    assert refusal.value.code == "ADAPTER_OF_ANOTHER_BASE"


def test_broken_adapters_are_refused(saved: Path, load: Any) -> None:
    model, _ = load("llama")
    config = json.loads((saved / CONFIG_NAME).read_text())
    weights = load_file(saved / WEIGHTS_NAME)
    first = sorted(weights)[0]
    raw = (saved / WEIGHTS_NAME).read_bytes()

    def changed(**values: Any) -> None:
        (saved / CONFIG_NAME).write_text(json.dumps({**config, **values}))

    cases: list[tuple[str, Any]] = [
        ("BROKEN_ADAPTER", lambda: changed(r=8)),
        ("BROKEN_ADAPTER", lambda: changed(r="4")),
        ("BROKEN_ADAPTER", lambda: changed(lora_alpha=-1)),
        ("BROKEN_ADAPTER", lambda: (saved / CONFIG_NAME).write_text("[]")),
        ("BROKEN_ADAPTER", lambda: (saved / CONFIG_NAME).write_text("{")),
        ("UNREADABLE_FILE", lambda: (saved / CONFIG_NAME).unlink()),
        ("BROKEN_ADAPTER", lambda: save_file({k: v for k, v in weights.items() if k != first}, saved / WEIGHTS_NAME)),
        ("BROKEN_ADAPTER", lambda: save_file({**weights, "surprise": torch.ones(1)}, saved / WEIGHTS_NAME)),
        ("BROKEN_ADAPTER", lambda: save_file({**weights, first: weights[first] / 0}, saved / WEIGHTS_NAME)),
        ("BROKEN_SAFETENSORS", lambda: (saved / WEIGHTS_NAME).write_bytes(raw[:-4])),
    ]
    for code, damage in cases:
        damage()
        with pytest.raises(InputRefused) as refusal:
            load_adapter(saved, model)
        assert refusal.value.code == code, refusal.value.message
        changed()
        (saved / WEIGHTS_NAME).write_bytes(raw)


@pytest.mark.parametrize(
    "option",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"rank_pattern": {"q": 8}},
        {"peft_type": "IA3"},
    ],
    ids=str,
)
def test_kinds_that_we_do_not_compute_are_refused_by_name(option: dict[str, Any], saved: Path, load: Any) -> None:
    model, _ = load("llama")
    config = json.loads((saved / CONFIG_NAME).read_text())
    (saved / CONFIG_NAME).write_text(json.dumps({**config, **option}))
    with pytest.raises(MachineCannot, match=next(iter(option))):
        load_adapter(saved, model)


def test_a_failed_write_leaves_the_old_file(saved: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / WEIGHTS_NAME).read_bytes()
    model, facts = load("llama")
    inject(model, settings=settings())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(saved, model, settings=settings(), base=facts)
    assert (saved / WEIGHTS_NAME).read_bytes() == before
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    shutil.rmtree(saved)
