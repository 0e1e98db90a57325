"""Public datasets by the real command line: their first rows to SUCCEEDED, and what is said of the whole files.

The files lie beside the repository (`shared_data`); where they are absent these tests are skipped. What whole runs over
them gave stands in `docs/real-data.md`.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunesmith.bundled import MODEL_NAME

pytestmark = pytest.mark.slow

TRAINING_RECORDS = 64
VALIDATION_RECORDS = 12  # enough for a verdict; each is also answered twice
SEQUENCE_LENGTH = 512
PATIENCE_SECONDS = 240  # two cores and company; alone a run takes a tenth
FATES_TRAINED = ("trained", "cut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One public dataset: its files below the shared folder, and how it is read."""

    training: str
    validation: str | None = None
    options: list[str] = field(default_factory=list[str])


SOURCES = {
    "MTS-Dialog": Source(
        training="dialogue_summarisation/mts_dialog/MTS-Dialog-TrainingSet.csv",
        validation="dialogue_summarisation/mts_dialog/MTS-Dialog-ValidationSet.csv",
        options=["--columns", "prompt=dialogue,completion=section_text"],
    ),
    "wwdc25": Source(
        training="prompt_completion/wwdc25/train.jsonl", validation="prompt_completion/wwdc25/valid.jsonl"
    ),
    "gsm8k": Source(
        training="instruction/gsm8k/train.head3000.jsonl",
        validation="instruction/gsm8k/valid.next300.jsonl",
        options=["--columns", "prompt=question,completion=answer"],
    ),
    "tinker": Source(training="messages/tinker/conversations.jsonl", options=["--validation-fraction", "0.2"]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished command: the object on its last line, and what was said to people."""

    result: Any
    said: str

    @property
    def artifact(self) -> Path:
        return Path(self.result["artifact_uri"].removeprefix("file://"))

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.artifact / "ledger.jsonl").read_text().splitlines()]


Tunesmith = Callable[..., Run]


@pytest.fixture(scope="module")
def tunesmith(tmp_path_factory: pytest.TempPathFactory) -> Tunesmith:
    """`tunesmith("plan", ...)` as a process of its own; all of this module share a home."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "TUNESMITH_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def call(command: str, *arguments: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", command, MODEL_NAME, *arguments, "--json"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return Run(result=json.loads(done.stdout.splitlines()[-1]), said=done.stderr)

    return call


def first_records(source: Path, target: Path, *, records: int) -> Path:
    """The bytes of the first records: of a CSV with its header, whose fields hold line breaks."""
    num_lines = records
    if source.suffix == ".csv":
        with source.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for _ in range(records + 1):
                next(reader)
            num_lines = reader.line_num
    target.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:num_lines]))
    return target


@pytest.fixture(scope="module", params=SOURCES)
def trained(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory, tunesmith: Tunesmith
) -> tuple[Source, Run]:
    """One epoch over the first records of a dataset."""
    source = SOURCES[request.param]
    folder = tmp_path_factory.mktemp("data")
    training = shared_data / source.training
    options = list(source.options)
    if source.validation is not None:
        held_out = shared_data / source.validation
        kept = first_records(held_out, folder / f"validation{held_out.suffix}", records=VALIDATION_RECORDS)
        options += ["--validation-dataset", str(kept)]
    dataset = first_records(training, folder / f"rows{training.suffix}", records=TRAINING_RECORDS)
    settings = ["--epochs", "1", "--learning-rate", "4e-3", "--too-long", "cut"]
    settings += ["--sequence-length", str(SEQUENCE_LENGTH), "--global-batch-size", "2"]
    return source, tunesmith("finetune", str(dataset), *options, *settings)


def test_the_first_rows_train_to_the_end_and_are_judged(trained: tuple[Source, Run]) -> None:
    _, run = trained
    result = run.result
    assert result["state"] == "SUCCEEDED" and result["failure"] is None
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1]
    # the bundled model never saw such text: one epoch at the demo's rate must lower its loss on rows not trained on
    assert result["verdict"]["outcome"] == "improved"
    assert result["verdict"]["measured_on"] == "validation"
    assert result["verdict"]["rows"] == result["rows"]["validation"]
    assert result["epochs"][0]["training"]["loss"] < result["base"]["training"]["loss"]
    assert json.loads((run.artifact / "verdict.json").read_text())["outcome"] == "improved"


def test_every_row_is_accounted_for(trained: tuple[Source, Run]) -> None:
    source, run = trained
    rows, ledger = run.result["rows"], run.ledger
    records = TRAINING_RECORDS + (VALIDATION_RECORDS if source.validation is not None else 0)
    assert len(ledger) == records == rows["training"] + rows["validation"] + rows["dropped"]
    fates = Counter(row["fate"] for row in ledger)
    assert fates["trained"] + fates["cut"] == rows["training"]
    assert fates["validation"] == rows["validation"]
    assert fates["dropped"] + fates["duplicate"] == rows["dropped"]
    assert sum(row["tokens_lost"] > 0 and row["fate"] != "dropped" for row in ledger) == rows["cut"]
    copies = [row for row in ledger if row["dataset"] == "training" and row["duplicate_of"] is not None]
    assert len(copies) == rows["duplicates"]


def test_cut_copied_and_leaked_rows_are_said(trained: tuple[Source, Run]) -> None:
    _, run = trained
    for dataset in ("training", "validation"):
        lost = [row["tokens_lost"] for row in run.ledger if row["dataset"] == dataset and row["fate"] != "dropped"]
        cut = sum(tokens > 0 for tokens in lost)
        words = f"of the {dataset} dataset cut to {SEQUENCE_LENGTH} tokens; {sum(lost):,} tokens are lost"
        assert (words in run.said) == (cut > 0)
    assert ("equal an earlier row" in run.said or "equals an earlier row" in run.said) == bool(
        run.result["rows"]["duplicates"]
    )
    leaked = sum(row["reason"] == "also in the training dataset" for row in run.ledger)
    assert ("also in the training dataset and dropped from validation" in run.said) == (leaked > 0)


def test_copies_and_leaks_of_the_whole_wwdc25_are_counted_and_said(shared_data: Path, tunesmith: Tunesmith) -> None:
    source = SOURCES["wwdc25"]
    assert source.validation is not None
    training, validation = shared_data / source.training, shared_data / source.validation
    plan = tunesmith("plan", str(training), "--validation-dataset", str(validation)).result
    assert plan["rows"] == {"training": 1800, "validation": 128, "cut": 0, "dropped": 16, "duplicates": 437}
    said = {notice["code"]: notice["message"] for notice in plan["notices"]}
    assert "437 rows equal an earlier row and are kept" in said["DUPLICATE_ROWS"]
    assert "16 rows are also in the training dataset and dropped from validation" in said["LEAKED_ROWS"]


def test_the_copies_of_wwdc25_are_dropped_where_asked(shared_data: Path, tunesmith: Tunesmith) -> None:
    training = shared_data / SOURCES["wwdc25"].training
    plan = tunesmith("plan", str(training), "--validation-fraction", "0", "--duplicates", "drop").result
    assert plan["rows"] == {"training": 1363, "validation": 0, "cut": 0, "dropped": 437, "duplicates": 437}


def test_the_whole_mts_dialog_is_read_by_records_not_lines(shared_data: Path, tunesmith: Tunesmith) -> None:
    source = SOURCES["MTS-Dialog"]
    assert source.validation is not None
    training, validation = shared_data / source.training, shared_data / source.validation
    options = ["--validation-dataset", str(validation), "--too-long", "cut", *source.options]
    plan = tunesmith("plan", str(training), *options).result
    assert (plan["rows"]["training"], plan["rows"]["validation"], plan["rows"]["dropped"]) == (1201, 100, 0)
    assert any("CRLF line breaks inside fields" in notice["message"] for notice in plan["notices"])
