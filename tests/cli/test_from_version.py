"""`tunesmith finetune --from-version`, the whole way with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS
from tunesmith.catalog.versions import describe_version
from tunesmith.cli import app as edge
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import open_state

pytestmark = pytest.mark.slow


def finetune(capsys: pytest.CaptureFixture[str], rows: Path, *options: str, code: int = 0) -> dict[str, Any]:
    words = ["finetune", MODEL_NAME, str(rows), "--version-set", "bot", "--epochs", "1", *options, "--json"]
    assert edge.run(words) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_training_goes_on_where_the_version_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:64]))
    first = finetune(capsys, rows, "--lora-rank", "8")
    refused = finetune(capsys, rows, "--lora-rank", "16", "--from-version", "bot:1", code=3)
    assert refused["error"]["code"] == "PARENT_DIFFERS"
    assert finetune(capsys, rows, "--from-version", "bot@prod", code=2)["error"]["code"] == "UNKNOWN_ALIAS"
    second = finetune(capsys, rows, "--from-version", "bot:1", "--learning-rate", "1e-9")
    assert second["model_version"] == "bot:2"
    base, ended, went_on = (
        scores["validation"]["loss"] for scores in (first["base"], first["epochs"][-1], second["epochs"][-1])
    )
    assert base - ended > 0.05
    assert abs(went_on - ended) < 1e-4
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))
    with state.database.read() as connection:
        child = describe_version(connection, "bot:2", project="default")
        parent = describe_version(connection, "bot:1", project="default")
    assert child.version.parent == "bot:1" and parent.children == ["bot:2"]
    assert child.lineage is not None and child.lineage.parent == "bot:1"
    assert child.lineage.settings.lora_rank == 8
    assert (child.version.best_epoch, child.version.outcome) == (1, second["verdict"]["outcome"])
    assert [epoch.epoch for epoch in child.metrics.epochs] == [0, 1]
    state.database.close()
