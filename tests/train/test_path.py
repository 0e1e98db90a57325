"""Which code computes a run: what the machine cannot do is told, and the run goes on by what it can."""

from __future__ import annotations

import pytest
import torch

from tunesmith.errors import MachineCannot
from tunesmith.models.lora import inject
from tunesmith.spec.bench import SHAPES
from tunesmith.spec.training import TrainingSettings
from tunesmith.train import path as path_module
from tunesmith.train.bench import random_llama
from tunesmith.train.path import may_be_fast, set_up_path, why_generic

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
