"""Models in a bucket: downloaded from the hub straight into it, registered from it, browsed, planned with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL, form_of
from tests.server.test_downloads import SMALL, WEIGHTS, ended, post, until
from tests.servers.hub import FakeHub
from tests.servers.moto import moto_server
from tunesmith.bundled import MODEL_FOLDER, TRAINING_ROWS
from tunesmith.jobs.downloads import DownloadService
from tunesmith.jobs.state import State
from tunesmith.server.app import create_app
from tunesmith.server.service import make_service

pytestmark = pytest.mark.servers
COMMIT = "c" * 40
PREFIX = f"models/{SMALL}/{COMMIT[:12]}"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Any]:
    with moto_server(tmp_path) as url:
        client: Any = boto3.session.Session("a", "b", region_name="us-east-1").client("s3", endpoint_url=url)
        client.create_bucket(Bucket="team")
        client.put_bucket_versioning(Bucket="team", VersioningConfiguration={"Status": "Enabled"})
        client.url = url
        yield client
        client.close()


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(SMALL, MODEL_FOLDER)
        yield hub


@pytest.fixture
def client(state: State, token: str, bucket: Any, fake: FakeHub) -> Iterator[TestClient]:
    environment = {
        "HF_ENDPOINT": fake.url, "PATH": os.environ["PATH"], "AWS_ENDPOINT_URL": bucket.url, "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    worker = DownloadService(state, environment)
    worker.start()
    app = create_app(make_service(state, environment, queue=None, downloads=worker))
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        post(client, "/api/locations", 201, name="team", uri="s3://team/models")
        yield client
    worker.stop()


def test_a_download_goes_straight_into_a_bucket_and_is_a_model_like_others(
    client: TestClient, bucket: Any, state: State, fake: FakeHub
) -> None:
    looked = post(client, "/api/hub/look", hub_id=SMALL, location="team")
    assert looked["target_uri"] == f"s3://team/{PREFIX}" and looked["free_bytes"] is None
    made = post(client, "/api/downloads", 201, hub_id=SMALL, location="team")
    view = until(client, made["download_id"], ended)
    assert view["state"] == "SUCCEEDED", view
    listed = bucket.list_objects_v2(Bucket="team", Prefix=PREFIX)["Contents"]
    assert {each["Key"].removeprefix(f"{PREFIX}/") for each in listed} >= {WEIGHTS, "config.json", "tokenizer.json"}
    body = bucket.get_object(Bucket="team", Key=f"{PREFIX}/{WEIGHTS}")["Body"].read()
    assert hashlib.sha256(body).digest() == hashlib.sha256((MODEL_FOLDER / WEIGHTS).read_bytes()).digest()
    assert not list(state.home.models.rglob("*.safetensors")), "nothing is left in the state folder's models"
    detail = client.get(f"/api/explorer/model/{SMALL}").json()
    assert detail["path"] == f"s3://team/{PREFIX}" and detail["card"]["revision"] == COMMIT
    preview = client.get(f"/api/explorer/template/{SMALL}").json()
    assert "ten o'clock" in "".join(piece["text"] for piece in preview["pieces"] if piece["learned"])
    rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:24])
    headers = {"Content-Type": "application/octet-stream"}
    dataset = client.post("/api/datasets", params={"name": "rows"}, content=rows, headers=headers).json()
    plan = post(client, "/api/plan", model=SMALL, dataset=dataset["dataset_id"])
    assert plan["plan"]["trainable_parameters"] > 0
    again = client.post("/api/downloads", json={"hub_id": SMALL, "location": "team"})
    assert form_of(again.json())["code"] == "MODEL_NAME_TAKEN"


def test_a_download_into_a_bucket_is_resumed_after_a_damaged_file(
    client: TestClient, bucket: Any, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.jobs.downloads.RETRY_SECONDS", 0.2)
    fake.damaged.add(WEIGHTS)
    made = post(client, "/api/downloads", 201, hub_id=SMALL, location="team")
    until(client, made["download_id"], lambda view: view["state"] == "WAITING" and view["waiting_reason"])
    keys = [each["Key"] for each in bucket.list_objects_v2(Bucket="team", Prefix=PREFIX).get("Contents", [])]
    assert f"{PREFIX}/{WEIGHTS}" not in keys, "no other bytes under that name"
    fake.damaged.clear()
    assert until(client, made["download_id"], ended)["state"] == "SUCCEEDED"


def test_a_model_is_registered_from_a_bucket_by_uri_and_by_location(client: TestClient, bucket: Any) -> None:
    for path in MODEL_FOLDER.iterdir():
        if path.is_file():
            bucket.put_object(Bucket="team", Key=f"models/ours/{path.name}", Body=path.read_bytes())
    bucket.put_object(Bucket="team", Key="models/pickled/config.json", Body=(MODEL_FOLDER / "config.json").read_bytes())
    bucket.put_object(Bucket="team", Key="models/pickled/pytorch_model.bin", Body=b"\x80\x04.")
    by_uri, by_location = (
        client.post("/api/models", json={"name": name, "path": path}).json()
        for name, path in (("by-uri", "s3://team/models/ours"), ("by-location", "team:ours"))
    )
    assert by_uri["path"] == by_location["path"] == "s3://team/models/ours"
    assert by_uri["facts"]["digest"] == by_location["facts"]["digest"]
    found = client.get("/api/locations/team/models").json()
    assert [(each["path"], each["registered_as"] is not None) for each in found["models"]] == [("ours", True)]
    entries = client.get("/api/locations/team/browse", params={"path": "ours"}).json()["entries"]
    assert "config.json" in {each["name"] for each in entries}
    for path in ("s3://team/models/pickled", "s3://team/models/absent", "s3://nobody-s-bucket/x"):
        refused = client.post("/api/models", json={"name": "x", "path": path})
        assert refused.status_code == 422, refused.text
        assert form_of(refused.json())["hint"]
