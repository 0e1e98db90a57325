"""Small bases with adapters for the deploy worker, and a way to run an engine to the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.conftest import load, make_model, one_thread
from tunesmith.deploy.engine import Engine
from tunesmith.files import sha256_of
from tunesmith.models.adapter_file import save_adapter
from tunesmith.models.adapter_form import CONFIG_NAME, WEIGHTS_NAME
from tunesmith.models.base import load_base
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import inject, lora_modules
from tunesmith.spec.artifacts import ManifestFile
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.serving import (
    AdapterSource,
    ChatTurn,
    DeployRequest,
    DoneFrame,
    GenerateFrame,
    PieceFrame,
    Sampling,
    StartedFrame,
)
from tunesmith.spec.training import TrainingSettings

__all__ = ["load", "make_model", "one_thread"]

SETTINGS = TrainingSettings.model_validate({"lora_rank": 4, "lora_alpha": 8.0})


def make_adapter(base: ModelFacts, folder: Path, *, seed: int) -> AdapterSource:
    """An adapter with random weights, saved as training saves it."""
    folder.mkdir()
    model = load_base(base, dtype=torch.float32, device=torch.device("cpu"))
    inject(model, settings=SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.1, generator=generator)
    save_adapter(folder, model, settings=SETTINGS, base=base)
    return source_of(folder)


def source_of(folder: Path) -> AdapterSource:
    files = [
        ManifestFile(path=name, size=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in (CONFIG_NAME, WEIGHTS_NAME)
    ]
    digest = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    return AdapterSource(digest=digest, folder=str(folder), files=files)


def deploy_request(facts: ModelFacts, **changes: Any) -> DeployRequest:
    return DeployRequest(socket="-", base=facts, device="cpu", precision="float32", threads=1, **changes)


def generate(id: int = 1, *, adapter: AdapterSource | None = None, render: Any = "plain", prompt: str | None = None,
             turns: list[tuple[Any, str]] | None = None, **sampling: Any) -> GenerateFrame:  # fmt: skip
    messages = None if turns is None else [ChatTurn(role=role, content=text) for role, text in turns]
    chosen = Sampling.model_validate({"temperature": 0.0, "max_tokens": 12} | sampling)
    return GenerateFrame(id=id, adapter=adapter, render=render, prompt=prompt, messages=messages, sampling=chosen)


@dataclass
class Told:
    """What the engine said of one request."""

    prompt_tokens: int = 0
    pieces: dict[int, list[str]] = field(default_factory=dict)
    done: dict[int, DoneFrame] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.pieces.get(0, []))


def run_all(engine: Engine, *frames: GenerateFrame) -> list[Told]:
    told = {frame.id: Told() for frame in frames}
    for frame in frames:
        engine.add(frame)
    while not engine.is_idle:
        for each in engine.step():
            match each:
                case StartedFrame():
                    told[each.id].prompt_tokens = each.prompt_tokens
                case PieceFrame():
                    told[each.id].pieces.setdefault(each.choice, []).append(each.text)
                case DoneFrame():
                    told[each.id].done[each.choice] = each
                case _:
                    raise AssertionError(each)
    return list(told.values())


@pytest.fixture(scope="session")
def facts_of() -> Callable[[Path], ModelFacts]:
    return lambda folder: inspect_model(folder, "test/model")
