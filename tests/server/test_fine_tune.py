"""The Fine Tune form against the spec: every option has its field, and each field reaches the submission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import ROWS, UPLOAD, URL
from tests.server.test_console import OWN, browser
from tests.server.test_version_pages import user
from tunesmith.errors import UsageFault
from tunesmith.server import inputs
from tunesmith.server.pages import fields
from tunesmith.server.service import SIMULTANEOUS_INSPECTIONS, Service
from tunesmith.spec.api import JobSubmission
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

__all__ = ["browser", "user"]
CHANGED: dict[str, tuple[str, Any]] = {  # field of the form -> what is typed, what the submission holds
    "validation_percent": ("12,5", 0.125),
    "epochs": ("7", 7),
    "learning_rate": ("1e-3", 1e-3),
    "learning_rate_schedule": ("linear", "linear"),
    "weight_decay": ("0.1", 0.1),
    "max_gradient_norm": ("2", 2.0),
    "lora_rank": ("8", 8),
    "lora_alpha": ("4", 4.0),
    "lora_dropout": ("0", 0.0),
    "target_modules": ("q_proj, v_proj", ("q_proj", "v_proj")),
    "adapter": ("rslora", "rslora"),
    "sequence_length": ("256", 256),
    "too_long": ("cut", "cut"),
    "duplicates": ("drop", "drop"),
    "render": ("plain", "plain"),
    "global_batch_size": ("4", 4),
    "micro_batch_size": ("2", 2),
    "seed": ("9", 9),
    "early_stopping": ("2", 2),
    "precision": ("float32", "float32"),
    "base_precision": ("float32", "float32"),
    "strategy": ("single", "single"),
    "path": ("generic", "generic"),
    "compile_layers": ("off", "off"),
    "checkpointed_layers": ("1", 1),
}
ASKED: dict[str, tuple[str, Any]] = {
    "validation_dataset": ("ds-1111111111111111", "ds-1111111111111111"),
    "test_dataset": ("ds-2222222222222222", "ds-2222222222222222"),
    "columns": ("prompt=question, completion=answer", {"prompt": "question", "completion": "answer"}),
    "from_version": ("bot:1", "bot:1"),
    "results": ("shelf:out/1", "shelf:out/1"),
    "name": ("a name", "a name"),
    "description": ("two\nlines", "two\nlines"),
    "version_set": ("bot", "bot"),
    "shape": ("big", "big"),
    "replicas": ("2", 2),
    "network": ("lan", "lan"),
    "log": ("team", "team"),
    "priority": ("-5", -5),
    "run_limit_seconds": ("3600", 3600),
}
BASE = {"model": "tunesmith/demo", "dataset": "ds-0000000000000000"}


def test_the_tables_above_name_every_option() -> None:
    settings = {"validation_fraction" if name == fields.PERCENT else name for name in CHANGED}
    assert settings == set(TrainingSettings.model_fields)
    assert {*ASKED, "model", "dataset"} == set(JobSubmission.model_fields) - set(TrainingSettings.model_fields)


@pytest.mark.parametrize("name", [*CHANGED, *ASKED])
def test_a_field_reaches_the_submission_and_comes_back_into_a_form(name: str) -> None:
    typed, meant = (CHANGED | ASKED)[name]
    submission = fields.submission_of(BASE | {name: typed})
    assert getattr(submission, "validation_fraction" if name == fields.PERCENT else name) == meant
    if name not in fields.QUEUE:
        assert fields.submission_of(fields.values_of(*submission.parts())).parts() == submission.parts()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("epochs", "2.5", "Epochs is '2.5'"),
        ("learning_rate", "fast", "Learning rate is 'fast'"),
        ("validation_percent", "100", "percentage from 0 and below 100"),
        ("validation_percent", "20%", "percentage from 0 and below 100"),
        ("validation_percent", "nan", "percentage from 0 and below 100"),
        ("lora_rank", "0", "LoRA rank is '0'"),
        ("priority", "101", "whole number from -100 to 100"),
        ("columns", "nonsense", "not of the form"),
        ("colour", "red", "no field of this form"),
    ],
)
def test_a_wrong_value_is_told_in_the_forms_words(name: str, text: str, told: str) -> None:
    with pytest.raises(UsageFault) as caught:
        fields.submission_of(BASE | {name: text})
    assert told in caught.value.message and "--" not in caught.value.message.replace("---", "")
    assert caught.value.field == name


def test_every_setting_stands_once_in_the_form() -> None:
    advanced = [each.name for _, group in fields.advanced_fields({}) for each in group]
    assert len(set(advanced)) == len(advanced)
    assert {*advanced, *fields.MAIN, "validation_fraction"} == set(TrainingSettings.model_fields)
    rank = fields.setting_field("lora_rank", {"lora_rank": "5"})
    assert (rank.kind, rank.value, rank.default, rank.low, rank.high) == ("number", "5", "32", "1", "1024")
    assert fields.setting_field("adapter", {}).choices == ("lora", "rslora", "dora")


def test_every_field_of_a_request_stands_in_the_form(client: TestClient) -> None:
    text = (Path(fields.__file__).parents[1] / "templates" / "fine_tune" / "form.html").read_text()
    looped = {"validation_dataset", "test_dataset"}  # a loop writes them
    for name in {*FinetuneRequest.model_fields, *fields.QUEUE} - {"dataset", "results"} - looped:
        assert f'name="{name}"' in text, name
    assert all(f'("{name}",' in text for name in looped)


@pytest.mark.slow
def test_a_located_datasets_file_is_read_from_its_folder(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "shelf" / "week 3"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(ROWS)
    client.post("/api/locations", json={"name": "shelf", "uri": (tmp_path / "shelf").as_uri()})
    made = client.post("/api/datasets", json={"location": "shelf", "path": "week 3/rows.jsonl"}).json()
    planned = client.post("/api/plan", json={"model": "tunesmith/demo", "dataset": made["dataset_id"]})
    assert planned.json()["preparation"]["counts"]["training"] == 18
    assert planned.json()["reports"][0]["rows"] == 20


@pytest.mark.slow
def test_a_plan_for_another_learning_rate_asks_no_worker(client: TestClient, tmp_path: Path) -> None:
    made = client.post("/api/datasets", content=ROWS, headers=UPLOAD).json()
    asked = {"model": "tunesmith/demo", "dataset": made["dataset_id"]}
    answers = tmp_path / "home" / "cache" / "inspections"
    first = client.post("/api/plan", json=asked).json()
    kept = len(list(answers.glob("*.json")))
    second = client.post("/api/plan", json=asked | {"learning_rate": 0.5, "epochs": 9, "weight_decay": 0.1}).json()
    assert len(list(answers.glob("*.json"))) == kept
    assert second["plan"]["settings"]["learning_rate"] == 0.5 and second["plan"]["steps"] > first["plan"]["steps"]
    client.post("/api/plan", json=asked | {"validation_fraction": 0.5})
    assert len(list(answers.glob("*.json"))) == kept + 1


def test_a_plan_that_had_to_wait_is_asked_for_again_by_the_page(
    user: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = user.post("/api/datasets", content=ROWS, headers={**UPLOAD, "Origin": URL}).json()
    monkeypatch.setattr(inputs, "INSPECTION_PATIENCE_SECONDS", 0.01)
    asked = {"model": "tunesmith/demo", "dataset": made["dataset_id"]}
    again = 'hx-post="/fine-tune/plan" hx-trigger="load delay:3s"'
    for _ in range(SIMULTANEOUS_INSPECTIONS):
        assert service.inspections.acquire(timeout=1)
    answer = user.post("/fine-tune/plan", data=asked, headers=OWN)
    assert "BUSY" in answer.text and again in answer.text
    for _ in range(SIMULTANEOUS_INSPECTIONS):
        service.inspections.release()
    wrong = user.post("/fine-tune/plan", data={**asked, "epochs": "2.5"}, headers=OWN)
    assert "Epochs" in wrong.text and again not in wrong.text
