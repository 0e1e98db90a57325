"""A real `tunesmith serve`: its start, its lock, a whole job over HTTP, a kill and a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.server.conftest import UPLOAD, form_of
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.bundled import TRAINING_ROWS
from tunesmith.catalog.clock import now
from tunesmith.errors import MachineCannot, UsageFault
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import State
from tunesmith.server import run
from tunesmith.server.run import listening, locked, refuse_remote
from tunesmith.storage.tables import IDEMPOTENCY


class Server:
    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json", *options],
            env={**os.environ, "TUNESMITH_HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.told: dict[str, Any] = json.loads(line)
        token = Path(self.told["token_file"]).read_text().strip()
        self.client = httpx2.Client(
            base_url=self.told["url"], headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        self.client.close()
        self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    server = Server(home)
    yield server
    if server.process.poll() is None:
        server.end()


@pytest.mark.slow
def test_a_job_goes_the_whole_way_over_http_and_survives_a_killed_server(home: Path, server: Server) -> None:
    rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:48])
    dataset = server.client.post("/api/datasets?filename=rows.jsonl", content=rows, headers=UPLOAD).json()
    asked = {"model": "tunesmith/demo", "dataset": dataset["dataset_id"], "epochs": 3, "version_set": "bot"}
    job_id = server.client.post("/api/jobs", json=asked).json()["job_id"]
    seen: list[int] = []
    until(lambda: any(event["kind"] == "step" for event in _events(server, job_id)), "it trains")
    assert server.end(signal.SIGKILL) == -signal.SIGKILL

    again = Server(home)
    try:
        with again.client.stream(
            "GET", f"/api/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}, timeout=PATIENCE_SECONDS
        ) as stream:
            seen += [int(line[4:]) for line in stream.iter_lines() if line.startswith("id: ")]
        assert seen == list(range(1, len(seen) + 1))
        result = again.client.get(f"/api/jobs/{job_id}/result").json()
        assert (result["state"], len(result["epochs"])) == ("SUCCEEDED", 3)
        lineage = again.client.get("/api/versions/bot:1").json()["lineage"]
        assert [data["dataset_id"] for data in lineage["datasets"]] == [dataset["dataset_id"]]
        files = again.client.get("/api/versions/bot:1/files").json()["files"]
        weights = again.client.get("/api/versions/bot:1/files/adapter_model.safetensors")
        assert len(weights.content) == next(file["size"] for file in files if file["path"].endswith(".safetensors"))
        assert again.client.get("/api/versions/bot:1/export").content[:2] == b"PK"
        assert again.client.get(f"/api/jobs/{job_id}/ledger").json()["rows"]
        assert again.end() == 0
    finally:
        if again.process.poll() is None:
            again.end(signal.SIGKILL)
    assert not (home / "server.json").exists()
    log = (home / "logs" / "server.log").read_text()
    assert all(json.loads(line) for line in log.splitlines())
    assert (home / "token").read_text().strip() not in log


def _events(server: Server, job_id: str) -> list[dict[str, Any]]:
    return server.client.get(f"/api/jobs/{job_id}/events").json()["events"]


@pytest.mark.slow
def test_a_second_server_of_the_same_state_refuses_and_names_the_first(home: Path, server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json"], capture_output=True, text=True,
        env={**os.environ, "TUNESMITH_HOME": str(home)}, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    form = form_of(json.loads(second.stdout.splitlines()[-1]))
    assert (second.returncode, form["code"]) == (4, "SERVER_RUNNING")
    assert str(server.process.pid) in form["message"]
    assert json.loads((home / "server.json").read_text())["url"] == server.told["url"]
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.slow
def test_headers_that_never_end_and_requests_that_are_none_are_refused(server: Server) -> None:
    host, port = server.told["url"].removeprefix("http://").split(":")

    def answer_to(*parts: bytes) -> bytes:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            for part in parts:
                connection.sendall(part)
            found = b""
            while chunk := connection.recv(65536):
                found += chunk
        return found

    begun = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    assert b" 431 " in answer_to(begun, b"a" * 40_000).partition(b"\r\n")[0]
    refused = answer_to(b"nonsense\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert form_of(json.loads(refused.partition(b"\r\n\r\n")[2]))["code"] == "BAD_HTTP"
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.servers
def test_thousands_of_made_up_requests_find_no_fault_of_ours(server: Server, tmp_path: Path) -> None:
    """Every route by its own description: what it answers is described, and none is a fault."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")), "run", f"{server.told['url']}/openapi.json",
            "-H", f"Authorization: {server.client.headers['Authorization']}", "--max-time", "40",
            "--request-timeout", "100",
            "--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--no-color",
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance",
            "--suppress-health-check", "filter_too_much,too_slow", "--generation-database", "none",
            # its path could name the token that asks, or a model that takes seconds to load
            "--exclude-operation-id", "revoke_token", "--exclude-operation-id", "create_chat_completion",
            "--exclude-operation-id", "create_completion", "--continue-on-failure",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Test cases:" in done.stdout
    log = (Path(server.told["token_file"]).parent / "logs" / "server.log").read_text()
    assert "a fault of ours" not in log


def test_another_machine_reaches_us_only_by_consent_and_by_name() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        refuse_remote(host, allow_remote=False, allowed_hosts=())
    for host in ("0.0.0.0", "192.168.0.7", "::", "example.org"):
        for consent, names in ((False, ("a",)), (True, ())):
            with pytest.raises(UsageFault, match="lets other machines reach"):
                refuse_remote(host, allow_remote=consent, allowed_hosts=names)
        refuse_remote(host, allow_remote=True, allowed_hosts=("example.org",))


def test_the_lock_is_the_systems_and_goes_with_its_holder(home: Path) -> None:
    state = open_home({"TUNESMITH_HOME": str(home)})
    with locked(state), pytest.raises(MachineCannot, match=f"process {os.getpid()}"), locked(state):
        pass
    with locked(state):
        pass


def test_a_taken_port_is_told() -> None:
    with listening("127.0.0.1", 0) as first, pytest.raises(MachineCannot) as caught:
        listening("127.0.0.1", first.getsockname()[1]).__enter__()
    assert caught.value.code == "PORT_TAKEN"


def test_at_its_start_a_server_forgets_old_keys_and_goes_on_with_interrupted_removals(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[dict[str, str]] = []
    monkeypatch.setattr(run, "finish_removals", lambda _, *, environment: removed.append(environment) or [])
    with state.database.write() as connection:
        for key, created_at in (("old", "2020-01-01T00:00:00.000Z"), ("new", now())):
            values = {"actor": "a", "key": key, "route": "r", "body_sha256": "s", "object_id": "o"}
            connection.execute(IDEMPOTENCY.insert().values(values | {"created_at": created_at}))
    run.tidy(state, {"AWS_REGION": "x"})
    with state.database.read() as connection:
        assert connection.execute(sa.select(IDEMPOTENCY.c.key)).scalars().all() == ["new"]
    assert removed == [{"AWS_REGION": "x"}]
