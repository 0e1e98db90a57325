"""The commands with the real workers and the bundled model: each a process of its own, as a user starts it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import open_state
from tunesmith.spec.jobs import JobRecord

pytestmark = pytest.mark.slow

NUM_ROWS = 32
OPTIONS = ["--validation-fraction", "0.3", "--learning-rate", "2e-3", "--json"]


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TUNESMITH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    """Exit code, the object on the last line, and what was said to people."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in out + err
    return process.returncode, json.loads(out.splitlines()[-1]), err


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:NUM_ROWS]))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> tuple[Path, Any, str]:
    """An uninterrupted run of two epochs: its home, its result, its words."""
    home = tmp_path_factory.mktemp("home")
    code, result, err = finish(start(home, "finetune", MODEL_NAME, str(rows), "--epochs", "2", *OPTIONS))
    assert code == 0, err
    return home, result, err


def adapter_of(result: Any) -> bytes:
    return (Path(result["artifact_uri"].removeprefix("file://")) / "adapter_model.safetensors").read_bytes()


def read_record(job: JobFolder) -> JobRecord:
    return open_state(Home(root=job.path.parents[1])).jobs.read(job.job_id)


def wait_for_step(home: Path, step: int) -> JobFolder:
    """The one job of this home, once it has trained so many steps."""

    def found() -> JobFolder | None:
        for path in (home / "jobs").glob("job-*"):
            events = path / "events.jsonl"
            if events.exists() and events.read_text().count('"learning_rate"') >= step:
                return JobFolder(path=path)
        return None

    job = until(found, f"step {step}")
    assert job is not None
    return job


def test_a_run_leaves_a_whole_artifact_and_its_evidence(finished: tuple[Path, Any, str]) -> None:
    _, result, _ = finished
    assert result["state"] == "SUCCEEDED" and result["failure"] is None
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
    assert result["rows"]["training"] + result["rows"]["validation"] + result["rows"]["dropped"] == NUM_ROWS
    assert result["epochs"][-1]["training"]["loss"] < result["base"]["training"]["loss"]
    assert result["verdict"]["outcome"] in ("improved", "no measurable improvement", "worse")
    folder = Path(result["artifact_uri"].removeprefix("file://"))
    manifest = json.loads((folder / "manifest.json").read_text())
    named = {file["path"]: file["sha256"] for file in manifest["files"]}
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == named
    expected = {
        "adapter_model.safetensors",
        "adapter_config.json",
        "ledger.jsonl",
        "verdict.json",
        "job.json",
        "README.md",
    }
    assert expected <= set(found)
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == NUM_ROWS


def test_a_killed_worker_is_restarted_and_the_adapter_is_the_same(
    finished: tuple[Path, Any, str], rows: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "finetune", MODEL_NAME, str(rows), "--epochs", "2", *OPTIONS)
    job = wait_for_step(tmp_path, 2)
    pid = read_record(job).worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    code, result, err = finish(process)
    assert code == 0, err
    assert "SIGKILL" in err
    assert adapter_of(result) == adapter_of(finished[1])


def test_ctrl_c_checkpoints_and_resume_finishes_with_the_same_adapter(
    finished: tuple[Path, Any, str], rows: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "finetune", MODEL_NAME, str(rows), "--epochs", "2", *OPTIONS)
    job = wait_for_step(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    code, result, err = finish(process)
    assert code == 130
    assert result["state"] == "IN_PROGRESS" and result["failure"]["code"] == "INTERRUPTED"
    assert f"tunesmith job resume {job.job_id}" in err
    assert read_record(job).phase == "waiting"
    code, result, err = finish(start(tmp_path, "job", "resume", job.job_id, "--json"))
    assert code == 0, err
    assert "goes on after step" in err
    assert adapter_of(result) == adapter_of(finished[1])


def test_a_killed_command_is_resumed_beside_its_living_worker(rows: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "finetune", MODEL_NAME, str(rows), "--epochs", "2", *OPTIONS)
    job = wait_for_step(tmp_path, 1)
    process.kill()
    process.communicate()
    pid = read_record(job).worker_pid
    code, result, err = finish(start(tmp_path, "job", "resume", job.job_id, "--json"))
    assert code == 0, err
    assert result["state"] == "SUCCEEDED"
    attempts = [json.loads(line) for line in job.events.read_text().splitlines() if '"attempt"' in line]
    assert [attempt["pid"] for attempt in attempts] == [pid]


def test_resuming_a_finished_job_repeats_its_result(finished: tuple[Path, Any, str]) -> None:
    home, result, _ = finished
    code, again, _ = finish(start(home, "job", "resume", result["job_id"], "--json"))
    assert (code, again) == (0, result)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--target-modules", "q_prj"], 2, "q_proj"),
        (["--lora-rank", "600"], 2, "600"),
        (["--sequence-length", "4096"], 2, "2048"),
        (["--sequence-length", "40"], 3, "line"),
    ],
)
def test_what_only_the_model_knows_is_refused_soon(
    rows: Path, tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    found, refusal, err = finish(start(tmp_path, "finetune", MODEL_NAME, str(rows), *options, "--json"))
    assert found == code, err
    told = refusal["error"]
    assert words in told["message"] + (told["hint"] or "").replace(",", "")
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_model_can_be_shown_and_a_dataset_previewed(rows: Path, tmp_path: Path) -> None:
    code, facts, _ = finish(start(tmp_path, "model", "show", MODEL_NAME, "--json"))
    assert code == 0 and facts["has_chat_template"] and facts["context_length"] >= 2048
    code, report, _ = finish(start(tmp_path, "dataset", "check", str(rows), "--model", MODEL_NAME, "--json"))
    assert code == 0 and report["rows"] == NUM_ROWS
    assert {"percentiles", "total", "to_learn", "histogram"} <= set(report["tokens"])
    learned = "".join(piece["text"] for piece in report["previews"][0]["pieces"] if piece["learned"])
    line = report["previews"][0]["line"]
    assert json.loads(rows.read_text().splitlines()[line - 1])["completion"] in learned
    long_row = json.dumps({"prompt": "word " * 3000, "completion": "yes"})
    (tmp_path / "long.jsonl").write_text(rows.read_text() + long_row + "\n")
    command = ["dataset", "check", str(tmp_path / "long.jsonl"), "--model", MODEL_NAME, "--json"]
    code, report, _ = finish(start(tmp_path, *command))
    assert code == 3 and [(error["line"], error["code"]) for error in report["errors"]] == [
        (NUM_ROWS + 1, "ROW_TOO_LONG")
    ]
    assert (
        report["tokens"]["percentiles"]["100"] > 3000
        and sum(rows for _, rows in report["tokens"]["histogram"]) == NUM_ROWS + 1
    )
