"""`version register`: the artifact of a version taken as an adapter from elsewhere, with what its training measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done
from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS

pytestmark = pytest.mark.slow  # trains, and starts the inspect worker
Tunesmith = Callable[..., Done]


def test_an_artifact_of_another_place_becomes_a_version(
    tunesmith: Tunesmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNESMITH_URL", "TUNESMITH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:24]))
    made = tunesmith("finetune", MODEL_NAME, str(rows), "--epochs", "1", "--version-set", "first", "--json")
    assert made.code == 0, made.err
    folder = made.json["artifact_uri"].removeprefix("file://")
    scores = tmp_path / "scores.json"
    scores.write_text(tunesmith("version", "metrics", "first:1", "--json").out)
    wanted = ["--metrics", str(scores), "--name", "A copy", "--tag", "a=b", "--results", str(tmp_path / "out")]
    done = tunesmith("version", "register", folder, "second", *wanted, "--json")
    assert done.code == 0, done.out + done.err
    version, lineage = done.json["version"], done.json["lineage"]
    assert (version["model_version"], version["state"], version["base_name"]) == ("second:1", "ACTIVE", MODEL_NAME)
    assert (version["name"], version["tags"]) == ("A copy", {"a": "b"})
    assert lineage["registration"]["matched_by"] == "hash"
    assert done.json["metrics"]["epochs"] == json.loads(scores.read_text())["epochs"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    shown = tunesmith("version", "show", "second:1").out
    assert "trained elsewhere" in shown and folder in shown
    plan = tunesmith("plan", MODEL_NAME, str(rows), "--from-version", "second:1", "--json")
    assert plan.code == 0, "training goes on from it"


def test_faults_name_the_option(tunesmith: Tunesmith, tmp_path: Path) -> None:
    bad = tmp_path / "scores.json"
    bad.write_text('{"epochs": [{"epoch": 1}]}')
    done = tunesmith("version", "register", str(tmp_path), "bot", "--metrics", str(bad), "--json")
    assert done.code == 2 and done.json["error"]["field"] == "metrics" and "training" in done.json["error"]["message"]
    done = tunesmith("version", "register", str(tmp_path), "bot", "--render", "aloud", "--json")
    assert done.code == 2 and done.json["error"]["field"] == "render"
    done = tunesmith("version", "register", str(tmp_path), "bot", "--base", MODEL_NAME, "--json")
    assert done.json["error"]["code"] == "ADAPTER_NOT_FOUND" and done.code == 3
