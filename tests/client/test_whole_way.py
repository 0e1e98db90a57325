"""The whole way against a real `tunesmith serve` on the bundled model: both clients and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.processes import free_port
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS
from tunesmith.client import AsyncClient, Client
from tunesmith.client.connection import running_server
from tunesmith.errors import InputRefused
from tunesmith.spec.jobs import JobState

pytestmark = pytest.mark.servers
QUICK = {"epochs": 1, "global_batch_size": 8, "lora_rank": 4, "sequence_length": 512, "too_long": "drop"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "home"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:40]))
    return path


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    return kept | {"TUNESMITH_HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server(home: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of its own on a free port."""
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", "serve", "--port", "0"],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield until(lambda: running_server(home) or has_ended(process), "it serves", told=log.read_text)
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0


def has_ended(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, f"the server ended with {process.returncode}"


@pytest.fixture
def here(server: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """This process finds the server by its state folder."""
    monkeypatch.setenv("TUNESMITH_HOME", environment["TUNESMITH_HOME"])
    for name in ("TUNESMITH_URL", "TUNESMITH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return server


def test_a_job_from_upload_to_export(here: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Client() as client:
        assert client.wire.endpoint.url == here and not client.wire.endpoint.is_in_process
        dataset = client.datasets.upload(rows)
        job = client.jobs.submit(MODEL_NAME, dataset.dataset_id, version_set="bot", **QUICK)
        result = job.watch(display="lines").result()
        told = capsys.readouterr().err
        assert "SUCCEEDED" in told and "0 (base)" in told and "step 1 of" in told
        assert result.model_version == "bot:1" and result.rows is not None and result.epochs
        numbers = [each.number for each in job.events()]
        assert numbers == list(range(1, job.refresh().view.num_events + 1))
        assert client.versions.get("bot:1").version.state == "ACTIVE"
        assert [each.epoch for each in client.versions.metrics("bot:1").epochs] == [0, 1]

        exported = client.versions.export("bot:1", tmp_path / "bot.zip")
        with zipfile.ZipFile(exported) as archive:
            assert archive.testzip() is None
            assert {"adapter_model.safetensors", "manifest.json"} <= {Path(name).name for name in archive.namelist()}
        card = client.versions.download("bot:1", "README.md", tmp_path / "README.md")
        assert card.stat().st_size > 0
        assert len(client.jobs.ledger(job.job_id)) == 40

        other = job.clone(learning_rate=1e-3).wait()
        assert other.state is JobState.SUCCEEDED and other.model_version == "bot:2"
        compared = client.versions.compare("bot:1", "bot:2")
        assert [each.name for each in compared.settings] == ["learning_rate"]
        assert compared.same_validation_rows and compared.scores
        client.version_sets.set_alias("bot", "prod", 2)
        assert client.versions.get("bot@prod").version.model_version == "bot:2"


def test_an_upload_that_the_server_refuses_is_not_sent_to_its_end(here: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as handle:
        handle.truncate(1 << 30)
    sent: list[int] = []
    with Client() as client, pytest.raises(InputRefused) as caught:
        client.datasets.upload(path, progress=lambda done, _all: sent.append(done))
    assert caught.value.code == "NOT_TEXT" and sent[-1] < 1 << 28


def test_the_async_client_does_it_too(here: str, rows: Path) -> None:
    async def use() -> None:
        async with AsyncClient() as client:
            job = await client.jobs.submit(MODEL_NAME, rows, version_set="async", **QUICK)
            phases = [each.event.kind async for each in job.events()]
            assert {"state", "phase", "step", "epoch"} <= set(phases)
            assert (await job.result()).model_version == "async:1"

    asyncio.run(use())


def test_the_command_line_does_it_too(here: str, rows: Path, environment: dict[str, str], tmp_path: Path) -> None:
    def tunesmith(*words: str, code: int = 0, **variables: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *words, "--json"],
            env=environment | variables, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    dataset = tunesmith("dataset", "upload", str(rows))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    result = tunesmith("job", "submit", MODEL_NAME, dataset["dataset_id"], "--version-set", "cli", *options, "--watch")
    assert result["state"] == "SUCCEEDED" and result["model_version"] == "cli:1"
    assert tunesmith("job", "watch", result["job_id"]) == result
    assert tunesmith("system", "show")["server"] == here
    assert tunesmith("version", "alias", "cli@prod", "1")["model_version"] == "cli:1"
    assert tunesmith("version", "show", "cli@prod")["version"]["aliases"] == ["prod"]
    assert tunesmith("version", "export", "cli:1")["bytes"] == (tmp_path / "cli-1.zip").stat().st_size
    assert tunesmith("version", "export", "cli:1", code=3)["error"]["code"] == "FILE_EXISTS"
    clone = tunesmith("job", "clone", result["job_id"], "--set", "epochs=1000")
    waits = tunesmith("job", "clone", result["job_id"], "--set", "epochs=3")["job_id"]
    until(lambda: tunesmith("job", "show", waits)["record"]["position"] == 1, "the other one takes the device")
    here_and_there = [tunesmith("job", "list", **variables)["jobs"] for variables in ({}, {"TUNESMITH_URL": here})]
    for [listed, *_] in here_and_there:
        assert (listed["job_id"], listed["position"]) == (waits, 1) and "used by" in listed["waiting_reason"]
    shown = tunesmith("job", "show", waits)["record"]
    assert shown["position"] == 1 and "used by" in shown["waiting_reason"]
    assert tunesmith("job", "cancel", waits)["state"] == "CANCELED"
    assert tunesmith("job", "cancel", clone["job_id"])["state"] == "CANCELED"

    token = (Path(environment["TUNESMITH_HOME"]) / "token").read_text().strip()
    remote = {"TUNESMITH_HOME": str(tmp_path / "other"), "TUNESMITH_URL": here, "TUNESMITH_TOKEN": token}
    listed = tunesmith("job", "list", "--limit", "1", **remote)["jobs"]
    assert [each["job_id"] for each in listed] == [waits]
    assert tunesmith("job", "show", result["job_id"], **remote)["state"] == "SUCCEEDED"
    assert tunesmith("job", "logs", result["job_id"], **remote)["job_id"] == result["job_id"]
    assert tunesmith("job", "cancel", clone["job_id"], **remote)["state"] == "CANCELED"
    assert tunesmith("job", "list", code=6, **(remote | {"TUNESMITH_TOKEN": "wrong"}))["error"]["code"] == "TOKEN_WRONG"


def test_the_example_names_the_better_version(here: str, rows: Path) -> None:
    example = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "service_client.py"))
    winner = example["better_rate"](rows, (1e-4, 1e-3), **QUICK)
    with Client() as client:
        assert client.versions.get("rates@best").version.model_version == winner
        losses = {
            version: min(
                each.validation.loss for each in client.versions.metrics(version).epochs[1:] if each.validation
            )
            for version in ("rates:1", "rates:2")
        }
    assert winner == min(losses, key=lambda version: losses[version])


def test_watching_outlives_a_killed_server(
    rows: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = environment | {"TUNESMITH_HOME": str(tmp_path / "home")}
    monkeypatch.setenv("TUNESMITH_HOME", own["TUNESMITH_HOME"])

    def serve(port: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "serve.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunesmith", "serve", "--port", port],
                env=own, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        log = (tmp_path / "serve.log").read_text
        until(lambda: running_server(tmp_path / "home") or has_ended(process), "it serves", told=log)
        return process

    first = serve(str(free_port()))
    with Client() as client:
        job = client.jobs.submit(MODEL_NAME, rows, **QUICK)
        numbers: list[int] = []
        second: subprocess.Popen[bytes] | None = None
        for each in job.events():
            numbers.append(each.number)
            if second is None and each.event.kind == "step":
                first.kill()
                first.wait()
                second = serve(client.wire.endpoint.url.rpartition(":")[2])
        assert second is not None
        assert numbers == list(range(1, len(numbers) + 1)), "no event is lost or told twice"
        assert job.result().state is JobState.SUCCEEDED
    second.terminate()
    assert second.wait(PATIENCE_SECONDS) == 0
