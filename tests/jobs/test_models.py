"""What is guessed of a model before anything is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.jobs.models import needs_transformers


@pytest.mark.parametrize(
    ("kind", "device", "path", "wanted"),
    [
        ("llama", "cpu", "auto", False),
        ("llama", "cpu", "generic", False),
        ("llama", "cuda", "auto", False),
        ("qwen3", "cuda", "fast", False),
        ("llama", "cuda", "generic", True),  # which runs transformers' own modules
        ("gemma2", "cpu", "auto", True),
        ("gemma2", "cuda", "auto", True),
    ],
)
def test_who_waits_for_transformers(tmp_path: Path, kind: str, device: str, path: str, wanted: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert needs_transformers(str(tmp_path), device=device, path=path) is wanted


def test_what_cannot_be_read_is_no_reason_to_import_it(tmp_path: Path) -> None:
    assert not needs_transformers(str(tmp_path / "none"), device="cpu", path="auto")
    (tmp_path / "config.json").write_text("[1]")
    assert not needs_transformers(str(tmp_path), device="cuda", path="auto")
