"""Dataset, model and results in a bucket, the whole way, against a server that speaks S3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import boto3.session
import pytest

from tests.servers.moto import moto_server
from tunesmith.bundled import MODEL_FOLDER, TRAINING_ROWS
from tunesmith.storage.fetch import FETCH_RETRY_SECONDS

pytestmark = pytest.mark.servers


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """A server with the versioned bucket `team`, which holds rows and a model, and `plain`, which keeps no versions."""
    with moto_server(tmp_path) as url:
        for name, value in [("ENDPOINT_URL", url), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")]:
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client: Any = boto3.session.Session("a", "b", region_name="us-east-1").client("s3", endpoint_url=url)
        for bucket in ("team", "plain"):
            client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket="team", VersioningConfiguration={"Status": "Enabled"})
        rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:30])
        client.put_object(Bucket="team", Key="data/rows.jsonl", Body=rows)
        for path in MODEL_FOLDER.iterdir():
            if path.is_file():
                client.put_object(Bucket="team", Key=f"models/tiny/{path.name}", Body=path.read_bytes())
        yield client
        client.close()


def test_a_fine_tuning_from_bucket_to_bucket(client: Any, tunesmith: Callable[..., Any]) -> None:
    arguments = ("finetune", "s3://team/models/tiny", "s3://team/data/rows.jsonl", "--results", "s3://team/out/1")
    done = tunesmith(*arguments, "--json", "--epochs", "1", "--lora-rank", "2")
    assert done.code == 0, done.err
    assert done.json["artifact_uri"] == "s3://team/out/1"
    manifest = json.loads(client.get_object(Bucket="team", Key="out/1/manifest.json")["Body"].read())
    assert "adapter_model.safetensors" in {file["path"] for file in manifest["files"]}
    for file in manifest["files"]:
        found = client.head_object(Bucket="team", Key=f"out/1/{file['path']}", VersionId=file["version_id"])
        assert found["ContentLength"] == file["size"]
    again = tunesmith(*arguments, "--json")
    assert (again.code, again.json["error"]["code"]) == (3, "RESULTS_NOT_EMPTY")


@pytest.mark.parametrize(
    ("results", "code", "error"),
    [
        ("s3://plain/out", 3, "VERSIONING_OFF"),
        ("s3://no-such-bucket/out", 3, "BUCKET_NOT_FOUND"),
        ("s3://team/data/rows.jsonl", 3, "RESULTS_NOT_EMPTY"),
        ("s3://team/data", 3, "RESULTS_NOT_EMPTY"),
        ("s3://team/models/tiny/below", 0, None),
    ],
)
@pytest.mark.usefixtures("client")
def test_a_place_that_is_not_fit_for_results_is_refused_before_the_start(
    tunesmith: Callable[..., Any], results: str, code: int, error: str | None
) -> None:
    done = tunesmith("plan", "tunesmith/demo", "s3://team/data/rows.jsonl", "--results", results, "--json")
    assert done.code == code, done.err
    if error is not None:
        assert done.json["error"]["code"] == error and done.json["error"]["field"] == "results"
        assert done.json["error"]["hint"]


@pytest.mark.usefixtures("client")
def test_a_dataset_in_a_bucket_is_checked_and_one_that_is_not_there_refused_in_time(
    tunesmith: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tunesmith("dataset", "check", "s3://team/data/rows.jsonl", "--json").json["rows"] == 30
    gone = tunesmith("dataset", "check", "s3://team/data/none.jsonl", "--json")
    assert (gone.code, gone.json["error"]["code"]) == (3, "OBJECT_NOT_FOUND")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    before = time.monotonic()
    away = tunesmith("dataset", "check", "s3://team/data/rows.jsonl", "--json")
    assert (away.code, away.json["error"]["code"]) == (4, "LOCATION_UNREACHABLE")
    assert FETCH_RETRY_SECONDS <= 8 and time.monotonic() - before < 60, "promised: within 20 seconds"
