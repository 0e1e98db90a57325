"""Which code computes a run: what the machine cannot do is told, and the run goes on by what it can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith.errors import MachineCannot
from tunesmith.models.lora import inject
from tunesmith.spec.bench import SHAPES, BenchRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.train import bench
from tunesmith.train import path as path_module
from tunesmith.train.bench import random_llama
from tunesmith.train.path import may_be_fast, set_up_path, why_generic
from tunesmith.train.step import StepOutcome

FAULT = "RuntimeError: Failed to find C compiler."


def settings(**changed: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"precision": "bf16", "lora_rank": 16, **changed})


def test_a_triton_that_fails_is_told_and_the_generic_path_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = random_llama(SHAPES["tiny"], name="tiny", dtype=torch.float32, device=torch.device("cpu"))
    inject(model, settings=settings())
    monkeypatch.setattr(path_module.util, "find_spec", lambda _: object())
    for fault, wanted in ((FAULT, "generic"), (None, "fast")):
        monkeypatch.setattr(path_module, "triton_fault", lambda _, fault=fault: fault)
        path = set_up_path(model, facts=facts, settings=settings(), device=torch.device("cuda"))
        assert path.name == wanted and path.triton_fault == fault
        assert (FAULT in path.reason) is (fault is not None)
        if fault is None:
            continue
        assert not path.is_compiled, "compiled layers need Triton, too"
        with pytest.raises(MachineCannot, match="C compiler"):
            set_up_path(model, facts=facts, settings=settings(path="fast"), device=torch.device("cuda"))


def test_what_is_known_before_the_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = random_llama(SHAPES["tiny"], name="tiny", dtype=torch.float32, device=torch.device("cpu"))
    monkeypatch.setattr(path_module.util, "find_spec", lambda _: object())
    cuda = torch.device("cuda")

    def refuse(_: torch.device) -> str | None:
        raise AssertionError("the GPU was asked")

    monkeypatch.setattr(path_module, "triton_fault", refuse)
    assert may_be_fast(facts, settings(), device=cuda)
    assert not may_be_fast(facts, settings(path="generic"), device=cuda)
    assert not may_be_fast(facts, settings(precision="float32"), device=cuda)
    assert not may_be_fast(facts, settings(), device=torch.device("cpu"))
    assert why_generic(facts, settings(path="generic"), device=cuda) == "as planned"
    assert "float32" in (why_generic(facts, settings(precision="float32"), device=cuda) or "")
    monkeypatch.setattr(path_module, "triton_fault", lambda _: FAULT)
    assert FAULT in (why_generic(facts, settings(), device=cuda) or "")


def outcome(*, was_idle: bool) -> StepOutcome:
    return StepOutcome(
        loss=1.0, gradient_norm=1.0, tokens=1, learned_tokens=1, seconds=0.1, was_idle=was_idle
    )  # fmt: skip


@pytest.mark.parametrize(
    ("idle", "device", "steps_left", "fault", "wanted"),
    [
        ([False, True, True, True], "cuda", 100, None, 4),
        ([True, True, False, True, True], "cuda", 100, None, None),  # the device is what is waited for
        ([True, True, True, True], "cuda", 20, None, None),  # too short a run
        ([True, True, True, True], "cuda", 100, "no memory", None),
        ([True, True, True, True], "cpu", 100, None, None),
    ],
)
def test_passes_are_replayed_where_the_device_waits_for_the_host(
    idle: list[bool], device: str, steps_left: int, fault: str | None, wanted: int | None
) -> None:
    replays = SimpleNamespace(is_on=False, fault=fault)
    decoder: Any = SimpleNamespace(device=torch.device(device), replays=replays)
    path = path_module.Path(torch.nn.Module(), name="fast", reason="as planned", decoder=decoder)
    changed = [path.observe(outcome(was_idle=each), steps_left=steps_left) for each in idle]
    assert [number for number, is_new in enumerate(changed, 1) if is_new] == ([] if wanted is None else [wanted])
    assert path.is_replayed is (wanted is not None) and path.replay_fault == fault
    if wanted is not None:
        assert not path.observe(outcome(was_idle=True), steps_left=steps_left), "it is told once"


@pytest.mark.slow
@pytest.mark.parametrize("with_replay", [True, False])
def test_a_measurement_looks_whether_to_replay_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, with_replay: bool
) -> None:
    observed: list[bool] = []
    monkeypatch.setattr(path_module.Path, "observe", lambda *_, **__: observed.append(True))
    request = BenchRequest(
        shape="tiny", device="cpu", precision="float32", threads=2, row_tokens=128, rows_per_forward=1,
        forwards_per_step=1, seconds=0.1, maximum_steps=6, with_roofline=False, with_evaluation=False,
        with_replay=with_replay,
    )  # fmt: skip
    assert not bench.run(request).is_replayed
    assert bool(observed) is with_replay
