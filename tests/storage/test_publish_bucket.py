"""Publishing to a bucket, on every service."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.servers.proxy import Fault, Proxy
from tests.storage.conftest import Service
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.spec.artifacts import Manifest
from tunesmith.storage.location_check import PROBE
from tunesmith.storage.objects import Location, Stopped, open_objects
from tunesmith.storage.publish import WAITING_CODES, check_results, publish, read_manifest
from tunesmith.storage.publish_bucket import PUBLISH_RETRY_SECONDS, check_prefix, publish_to_bucket

pytestmark = pytest.mark.servers


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "artifact", "job-000000000001")


def make_artifact(folder: Path, job_id: str) -> Path:
    (folder / "curves").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(20_000_000))
    (folder / "curves" / "loss.svg").write_text("<svg/>")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "scratch.bin").write_bytes(b"not in the manifest")
    files = [
        {"path": path, "size": (folder / path).stat().st_size, "sha256": sha256_of(folder / path)}
        for path in ("adapter_model.safetensors", "curves/loss.svg", "empty.txt")
    ]
    (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "job_id": job_id, "model_version": "a:1", "files": files})
    )
    return folder


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keys(service: Service, bucket: str) -> set[str]:
    return {found["Key"] for found in service.client().list_objects_v2(Bucket=bucket).get("Contents", [])}


def num_versions(service: Service, bucket: str) -> int:
    return len(service.client().list_object_versions(Bucket=bucket).get("Versions", []))


def test_every_file_arrives_with_its_version_and_the_manifest_tells_them(service: Service, artifact: Path) -> None:
    bucket = service.bucket()
    uri = f"s3://{bucket}/team/run 1"
    check_results(uri, service.environment)
    told: list[tuple[str, int, int]] = []
    manifest = publish(artifact, uri, environment=service.environment, progress=lambda *at: told.append(at))
    client = service.client()
    for file in manifest.files:
        got = client.get_object(Bucket=bucket, Key=f"team/run 1/{file.path}", VersionId=file.version_id)
        assert hashlib.sha256(got["Body"].read()).hexdigest() == file.sha256
    body = client.get_object(Bucket=bucket, Key="team/run 1/manifest.json")["Body"].read()
    assert Manifest.model_validate(json.loads(body)) == manifest
    assert len(keys(service, bucket)) == 4, "nothing else, no probe and no scratch"
    assert ("adapter_model.safetensors", 20_000_000, 20_000_000) in told
    assert all(file.version_id is None for file in read_manifest(artifact).files), "the artifact stays as it was made"

    before = num_versions(service, bucket)
    assert publish(artifact, uri, environment=service.environment) == manifest, "done before: verified only"
    assert num_versions(service, bucket) == before
    with pytest.raises(InputRefused) as caught:
        check_results(uri, service.environment)
    assert caught.value.code == "RESULTS_NOT_EMPTY"
    with pytest.raises(InputRefused) as caught:
        check_results(f"{uri}/below", service.environment)
    assert caught.value.code == "RESULTS_IN_ARTIFACT"


def test_a_prefix_of_another_job_is_left_alone(moto: Service, artifact: Path, tmp_path: Path) -> None:
    bucket = moto.bucket()
    publish(artifact, f"s3://{bucket}/x", environment=moto.environment)
    before = num_versions(moto, bucket)
    other = make_artifact(tmp_path / "other", "job-000000000002")
    with pytest.raises(InputRefused) as caught:
        publish(other, f"s3://{bucket}/x", environment=moto.environment)
    assert caught.value.code == "RESULTS_NOT_EMPTY" and num_versions(moto, bucket) == before


def test_an_artifact_damaged_after_its_manifest_is_not_published(moto: Service, artifact: Path) -> None:
    bucket = moto.bucket()
    (artifact / "curves" / "loss.svg").write_text("<gvs/>")
    with pytest.raises(TunesmithError) as caught:
        publish(artifact, f"s3://{bucket}", environment=moto.environment)
    assert caught.value.code == "ARTIFACT_DAMAGED" and "manifest.json" not in keys(moto, bucket)


def test_an_object_damaged_in_the_bucket_is_found_out(moto: Service, artifact: Path) -> None:
    bucket = moto.bucket()
    manifest = publish(artifact, f"s3://{bucket}/x", environment=moto.environment)
    version_id = next(file.version_id for file in manifest.files if file.path == "curves/loss.svg")
    moto.client().delete_object(Bucket=bucket, Key="x/curves/loss.svg", VersionId=version_id)
    with pytest.raises(TunesmithError):
        publish(artifact, f"s3://{bucket}/x", environment=moto.environment)


KILLED = """
import os, signal, sys
from pathlib import Path
import botocore.client
from tunesmith.storage.publish import publish
calls, die_at = 0, int(sys.argv[3])
def counted(self, name, arguments, real=botocore.client.BaseClient._make_api_call):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, name, arguments)
botocore.client.BaseClient._make_api_call = counted
publish(Path(sys.argv[1]), sys.argv[2], environment=os.environ)
"""


def test_a_publish_killed_at_any_request_is_finished_by_the_next(service: Service, artifact: Path) -> None:
    """One job killed again and again, each time one request later: what was whole is not sent twice."""
    bucket = service.bucket()
    uri = f"s3://{bucket}/x"
    for die_at in range(3, 80, 4):
        command = [sys.executable, "-c", KILLED, str(artifact), uri, str(die_at)]
        done = subprocess.run(command, env=os.environ | service.environment, check=False, timeout=60)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if "x/manifest.json" in keys(service, bucket):
            assert all(file.version_id for file in publish(artifact, uri, environment=service.environment).files)
    else:
        raise AssertionError("the publish never ended")
    manifest = publish(artifact, uri, environment=service.environment)
    for file in manifest.files:
        assert service.store(bucket).verify(f"x/{file.path}", file.sha256, version_id=file.version_id)
    assert num_versions(service, bucket) <= 2 * 4, "whole objects were kept, not sent again each time"
    assert "Uploads" not in service.client().list_multipart_uploads(Bucket=bucket), "no parts are left"


def test_the_probe_of_a_killed_check_is_no_result(moto: Service, artifact: Path) -> None:
    bucket = moto.bucket()
    moto.client().put_object(Bucket=bucket, Key=f"x/{PROBE}1234-abcd", Body=b"probe")
    check_results(f"s3://{bucket}/x", moto.environment)
    moto.client().put_object(Bucket=bucket, Key="x/theirs", Body=b"theirs")
    with pytest.raises(InputRefused, match="x/theirs"):
        check_results(f"s3://{bucket}/x", moto.environment)


def test_a_200_of_somebody_else_is_taken_for_no_object(troubled: tuple[Service, Proxy], artifact: Path) -> None:
    """A captive portal, or a proxy, answers with a page: neither is a prefix taken by it, nor versioning off."""
    service, proxy = troubled
    bucket = service.bucket()
    answered: list[str] = []

    def every_other(method: str, path: str) -> Fault | None:
        if method in ("HEAD", "PUT") or "list-type" not in path:
            answered.append(method)
            return "garbage" if len(answered) % 2 else None
        return None

    uri = f"s3://{bucket}/run/1"
    store, prefix = open_objects(uri, service.environment, retry_seconds=10.0)
    proxy.faults = every_other
    check_prefix(store, prefix)
    assert "HEAD" in answered
    publish(artifact, uri, environment=service.environment)
    assert {"HEAD", "PUT", "GET"} <= set(answered)


def test_a_store_that_stays_away_leaves_no_manifest_and_lets_the_job_wait(
    troubled: tuple[Service, Proxy], artifact: Path
) -> None:
    service, proxy = troubled
    bucket = service.bucket()
    location = Location(uri=f"s3://{bucket}/x")
    manifest = read_manifest(artifact)
    for fault in ("503", "drop", "full", "secretive"):
        proxy.faults = lambda method, path, fault=fault: fault if method == "PUT" and "loss.svg" in path else None
        with pytest.raises(MachineCannot) as caught:
            publish_to_bucket(artifact, manifest, location, environment=service.environment, retry_seconds=1.0)
        assert caught.value.code in WAITING_CODES
        assert "x/manifest.json" not in keys(service, bucket)
    proxy.faults = lambda _method, _path: None
    publish(artifact, location, environment=service.environment)


def test_versioning_turned_off_meanwhile_is_found_out(moto: Service, artifact: Path) -> None:
    bucket = moto.bucket(versioning="Suspended")
    with pytest.raises(InputRefused) as caught:
        publish(artifact, f"s3://{bucket}/x", environment=moto.environment)
    assert caught.value.code == "VERSIONING_OFF" and caught.value.code in WAITING_CODES
    assert "x/manifest.json" not in keys(moto, bucket)


def test_a_stop_ends_the_publish_before_its_manifest(troubled: tuple[Service, Proxy], artifact: Path) -> None:
    service, proxy = troubled
    bucket = service.bucket()
    proxy.faults = lambda method, _path: "503" if method == "PUT" else None
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        publish(artifact, f"s3://{bucket}/x", environment=service.environment, stop=stop)
    assert time.monotonic() - before < PUBLISH_RETRY_SECONDS - 30 and keys(service, bucket) == set()
