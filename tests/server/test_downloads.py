"""Downloads from a stand-in of the hub: looked at, done by the service, cancelled, resumed after a killed server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL, app_over, form_of
from tests.servers.hub import FakeHub
from tests.waiting import PATIENCE_SECONDS
from tests.waiting import until as until_true
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.client import Client
from tunesmith.jobs import downloads
from tunesmith.jobs.downloads import DownloadService, run_download
from tunesmith.jobs.state import State
from tunesmith.server.service import make_service

SMALL = "team/small"
WEIGHTS = "model.safetensors"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(SMALL, MODEL_FOLDER, extra={"pytorch_model.bin": b"\x80\x04" * 1_000_000})
        hub.add("team/pickles", extra={"config.json": b"{}", "pytorch_model.bin": b"\x80\x04" * 1_000_000})
        hub.add("team/mixture", extra={"config.json": b'{"model_type": "mixtral"}', WEIGHTS: b"x"})
        yield hub


@pytest.fixture
def environment(fake: FakeHub) -> dict[str, str]:
    return {"HF_ENDPOINT": fake.url, "PATH": os.environ["PATH"]}


@pytest.fixture
def worker(state: State, environment: dict[str, str]) -> Iterator[DownloadService]:
    service = DownloadService(state, environment)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def client(state: State, token: str, environment: dict[str, str], worker: DownloadService) -> Iterator[TestClient]:
    app = app_over(make_service(state, environment, queue=None, downloads=worker))
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    answer = client.post(path, json=body) if body else client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def until(client: TestClient, download_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        return client.get(f"/api/downloads/{download_id}").json()

    def fits() -> dict[str, Any] | None:
        return view if holds(view := look()) else None

    return until_true(fits, "the download", told=look) or {}


def ended(view: dict[str, Any]) -> bool:
    return view["state"] in ("SUCCEEDED", "FAILED", "CANCELED")


def test_a_look_tells_size_room_commit_and_what_is_left_out(client: TestClient, fake: FakeHub) -> None:
    found = post(client, "/api/hub/look", hub_id=SMALL)
    sizes = sum(path.stat().st_size for path in MODEL_FOLDER.iterdir() if path.is_file())
    assert found["revision"] == "c" * 40 and found["bytes"] <= sizes and found["free_bytes"] > found["bytes"]
    assert [each["path"] for each in found["plan"]["left_out"]] == ["pytorch_model.bin"]
    assert "pytorch_model.bin" in found["notices"][0]["message"]
    assert client.get("/api/downloads").json()["downloads"] == []
    assert not [path for _, path, _ in fake.requests if "/resolve/" in path], "nothing was downloaded"
    [model] = client.get("/api/hub/models", params={"search": "small"}).json()["models"]
    assert model["hub_id"] == SMALL and model["is_here"] is False


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"hub_id": "team/pickles"}, 422, "HUB_NO_SAFETENSORS"),
        ({"hub_id": "team/mixture"}, 422, "ARCHITECTURE_NOT_SUPPORTED"),
        ({"hub_id": "team/absent"}, 422, "HUB_NOT_FOUND"),
        ({"hub_id": SMALL, "location": "nowhere"}, 404, "UNKNOWN_LOCATION"),
        ({"hub_id": SMALL, "name": "tunesmith/demo"}, 409, "MODEL_NAME_TAKEN"),
        ({"hub_id": SMALL, "exclude": ["*.safetensors"]}, 422, "HUB_NO_SAFETENSORS"),
        ({"hub_id": "https://elsewhere/x"}, 422, "INVALID_FIELD"),
        ({"hub_id": SMALL, "revision": "../x"}, 422, "INVALID_FIELD"),
    ],
)
def test_what_could_not_be_used_is_refused_before_a_byte_moves(
    client: TestClient, body: dict[str, Any], status: int, code: str
) -> None:
    for path in ("/api/hub/look", "/api/downloads"):
        answer = client.post(path, json=body)
        assert (answer.status_code, form_of(answer.json())["code"]) == (status, code), answer.text


def test_a_full_disk_is_told_with_what_would_be_needed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FREE_RESERVE_BYTES", 1 << 60)
    assert form_of(client.post("/api/hub/look", json={"hub_id": SMALL}).json())["code"] == "DISK_FULL"


@pytest.mark.slow  # inspects a model
def test_a_download_ends_as_a_registered_model(client: TestClient, state: State) -> None:
    made = post(client, "/api/downloads", 201, hub_id=SMALL, tags={"team": "support"})
    view = until(client, made["download_id"], ended)
    assert view["state"] == "SUCCEEDED", view
    assert view["bytes_done"] == view["bytes_total"] > 0
    model = client.get(f"/api/models/{SMALL}").json()
    assert (model["hub_id"], model["revision"], model["tags"]) == (SMALL, "c" * 40, {"team": "support"})
    folder = state.home.models / SMALL / ("c" * 12)
    assert Path(model["path"]) == folder and (folder / WEIGHTS).exists()
    assert not (folder / "pytorch_model.bin").exists() and not folder.with_name(folder.name + ".part").exists()
    card = client.get(f"/api/explorer/model/{SMALL}").json()["card"]
    assert card["is_here"] and card["revision"] == "c" * 40
    [found] = client.get("/api/hub/models", params={"search": "small"}).json()["models"]
    assert found["is_here"]
    again = client.post("/api/downloads", json={"hub_id": SMALL})
    assert form_of(again.json())["code"] == "MODEL_NAME_TAKEN"


@pytest.mark.slow  # inspects a model
def test_a_download_goes_into_a_declared_folder_under_another_name(client: TestClient, tmp_path: Path) -> None:
    post(client, "/api/locations", 201, name="llms", uri=(tmp_path / "store").as_uri())
    made = post(client, "/api/downloads", 201, hub_id=SMALL, location="llms", name="our-base")
    assert until(client, made["download_id"], ended)["state"] == "SUCCEEDED"
    assert client.get("/api/models/our-base").json()["path"] == str(tmp_path / "store" / SMALL / ("c" * 12))


@pytest.mark.slow  # downloads, and inspects a model
def test_a_cancelled_download_leaves_nothing_and_can_be_resumed(
    client: TestClient, fake: FakeHub, state: State
) -> None:
    fake.hold_after = 1_000_000
    made = post(client, "/api/downloads", 201, hub_id=SMALL)
    assert fake.is_holding.wait(PATIENCE_SECONDS)
    assert form_of(client.post("/api/downloads", json={"hub_id": SMALL}).json())["code"] == "DOWNLOAD_RUNNING"
    assert post(client, f"/api/downloads/{made['download_id']}/cancel")["is_cancel_wanted"]
    fake.released.set()
    assert until(client, made["download_id"], ended)["state"] == "CANCELED"
    parts = state.home.models / "team"
    assert [path for path in parts.rglob("*") if path.is_file()] == []
    refused = client.post(f"/api/downloads/{made['download_id']}/cancel")
    assert form_of(refused.json())["code"] == "DOWNLOAD_ENDED"
    post(client, f"/api/downloads/{made['download_id']}/resume")
    assert until(client, made["download_id"], ended)["state"] == "SUCCEEDED"


@pytest.mark.slow  # downloads, and inspects a model
def test_a_hub_that_fails_is_asked_again_and_the_reason_is_shown(
    client: TestClient, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0.2)
    looked = post(client, "/api/hub/look", hub_id=SMALL)
    fake.damaged.add(WEIGHTS)
    made = post(client, "/api/downloads", 201, hub_id=SMALL)
    waiting = until(client, made["download_id"], lambda view: view["state"] == "WAITING" and view["waiting_reason"])
    assert "other bytes" in waiting["waiting_reason"]
    fake.damaged.clear()
    assert until(client, made["download_id"], ended)["state"] == "SUCCEEDED"
    assert looked["bytes"] == waiting["bytes_total"]


@pytest.mark.slow  # downloads, and inspects a model
def test_a_gated_model_fails_with_the_way_out(client: TestClient, fake: FakeHub) -> None:
    fake.add("team/gated", MODEL_FOLDER, gated=True)
    made = post(client, "/api/downloads", 201, hub_id="team/gated")
    failure = until(client, made["download_id"], ended)["failure"]
    assert failure["code"] == "HUB_GATED" and "HF_TOKEN" in failure["hint"]


@pytest.mark.slow  # downloads, and inspects a model
def test_two_processes_never_do_one_download(
    client: TestClient, fake: FakeHub, state: State, environment: dict[str, str]
) -> None:
    fake.hold_after = 1000
    made = post(client, "/api/downloads", 201, hub_id=SMALL)
    assert fake.is_holding.wait(PATIENCE_SECONDS)
    assert run_download(made["download_id"], state=state, environment=environment) is False
    fake.released.set()
    assert until(client, made["download_id"], ended)["state"] == "SUCCEEDED"


@pytest.mark.slow  # downloads, and inspects a model
def test_a_stopped_service_keeps_what_it_has_for_the_next(
    state: State, environment: dict[str, str], fake: FakeHub, client: TestClient, worker: DownloadService
) -> None:
    fake.hold_after = 2_000_000
    made = post(client, "/api/downloads", 201, hub_id=SMALL)
    part = state.home.models / SMALL / ("c" * 12 + ".part") / (WEIGHTS + ".part")
    until_true(lambda: part.exists() and part.stat().st_size > 0, "a first piece")  # the hub holds after two
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    assert worker._stop.wait(PATIENCE_SECONDS)
    fake.released.set()
    stopping.join(PATIENCE_SECONDS)
    view = client.get(f"/api/downloads/{made['download_id']}").json()
    assert view["state"] == "WAITING" and view["waiting_reason"] == "The server ended."
    had = part.stat().st_size
    assert had > 0
    fake.requests.clear()
    assert run_download(made["download_id"], state=state, environment=environment)
    assert client.get(f"/api/downloads/{made['download_id']}").json()["state"] == "SUCCEEDED"
    assert [asked for _, path, asked in fake.requests if path.startswith("/cdn/") and WEIGHTS in path] == [
        f"bytes={had}-"
    ]


@pytest.mark.servers  # a real server, killed
def test_a_killed_server_s_download_is_finished_by_the_next(tmp_path: Path, fake: FakeHub) -> None:
    environment = {**os.environ, "TUNESMITH_HOME": str(tmp_path / "home"), "HF_ENDPOINT": fake.url}
    environment.pop("TUNESMITH_URL", None)

    def serve() -> tuple[subprocess.Popen[bytes], Client]:
        with (tmp_path / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunesmith", "serve", "--port", "0"], env=environment, stdout=log, stderr=log
            )
        address = tmp_path / "home" / "server.json"

        def serves() -> bool:
            assert process.poll() is None
            return address.exists() and str(process.pid) in address.read_text()

        until_true(serves, "it serves", told=(tmp_path / "serve.log").read_text)
        return process, Client(
            json.loads(address.read_text())["url"], (tmp_path / "home" / "token").read_text().strip()
        )

    fake.hold_after = 3_000_000
    process, client = serve()
    with client:
        download_id = client.downloads.start(SMALL).download_id
        assert fake.is_holding.wait(PATIENCE_SECONDS)
        part = tmp_path / "home" / "models" / SMALL / ("c" * 12 + ".part") / (WEIGHTS + ".part")
        until_true(lambda: part.exists() and part.stat().st_size > 1_000_000, "its bytes are written")
        process.send_signal(signal.SIGKILL)
        process.wait()
    fake.released.set()
    fake.requests.clear()
    process, client = serve()
    try:
        with client:
            view = client.downloads.wait(download_id)
            assert view.state == "SUCCEEDED", view
            assert client.models.get(SMALL).revision == "c" * 40
        [asked] = [asked for _, path, asked in fake.requests if path.startswith("/cdn/") and WEIGHTS in path]
        assert asked is not None and int(asked.removeprefix("bytes=").removesuffix("-")) > 1_000_000
    finally:
        process.terminate()
        process.wait()
