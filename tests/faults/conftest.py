"""A two-layer model, a few rows, and a home with a server that is to be killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Killed
from tests.train.conftest import some_rows, tiny_base

__all__ = ["tiny_base"]

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Killed]:
    killed = Killed(root=tmp_path / "home")
    yield killed
    killed.end()


@pytest.fixture
def ask(tiny_base: Path, tmp_path: Path) -> Ask:
    """What is submitted: a run of a few steps, with a checkpoint after each of its epochs."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in some_rows(24)))

    def make(**changes: Any) -> dict[str, Any]:
        asked = {
            "model": str(tiny_base), "dataset": str(rows), "epochs": 3, "lora_rank": 2, "global_batch_size": 4,
            "validation_fraction": 0.25, "learning_rate": 5e-3,
        }  # fmt: skip
        return asked | changes

    return make
