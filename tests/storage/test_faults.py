"""A store in trouble: what it answers is never believed, and never shown."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.servers.proxy import Fault, Proxy
from tests.storage.conftest import Service
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.storage.location_check import CHECK_SECONDS, check_declared
from tunesmith.storage.objects import Location, Stopped, open_objects

pytestmark = pytest.mark.servers
IN_TIME_SECONDS = 30  # of what takes one or two on an idle machine


def every_other(fault: Fault, *methods: str):
    """The first, third, ... request of these methods goes wrong."""
    calls = 0

    def choose(method: str, _path: str) -> Fault | None:
        nonlocal calls
        if methods and method not in methods:
            return None
        calls += 1
        return fault if calls % 2 else None

    return choose


@pytest.mark.parametrize("fault", ["500", "503", "drop", "drop-answer", "slow", "garbage"])
@pytest.mark.parametrize("size", [300_000, 20_000_000], ids=["one put", "in parts"])
def test_a_passing_fault_is_outlived_in_a_put(
    troubled: tuple[Service, Proxy], fault: Fault, size: int, make_file
) -> None:
    service, proxy = troubled
    store = service.store(service.bucket())
    proxy.faults = every_other(fault, "PUT", "POST")
    source, sha256 = make_file(os.urandom(size))
    version_id = store.put_file("k", source, sha256=sha256)
    proxy.faults = lambda _method, _path: None
    assert store.verify("k", sha256, version_id=version_id)
    assert store.head("k").version_id == version_id
    assert "Uploads" not in service.client().list_multipart_uploads(Bucket=store.uri("")[5:])


@pytest.mark.parametrize("fault", ["500", "drop", "short", "flip", "slow", "garbage"])
def test_a_passing_fault_is_outlived_in_a_get(
    troubled: tuple[Service, Proxy], fault: Fault, make_file, tmp_path: Path
) -> None:
    service, proxy = troubled
    store = service.store(service.bucket())
    source, sha256 = make_file(os.urandom(3_000_000))
    store.put_file("k", source, sha256=sha256)
    proxy.faults = every_other(fault, "GET")
    assert store.get_file("k", tmp_path / "copy", expected_sha256=sha256).sha256 == sha256
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_store_that_gives_back_other_bytes_is_found_out_and_keeps_nothing(
    troubled: tuple[Service, Proxy], make_file, tmp_path: Path
) -> None:
    service, proxy = troubled
    store = service.store(service.bucket())
    proxy.faults = lambda method, _path: "flip" if method == "GET" else None
    source, sha256 = make_file(b"content" * 1000)
    with pytest.raises(MachineCannot) as caught:
        store.put_file("k", source, sha256=sha256)
    assert caught.value.code == "OBJECT_DAMAGED"
    proxy.faults = lambda _method, _path: None
    assert store.versions("k") == []
    store.put_file("k", source, sha256=sha256)
    proxy.faults = lambda method, _path: "flip" if method == "GET" else None
    with pytest.raises(MachineCannot) as caught:
        store.get_file("k", tmp_path / "copy", expected_sha256=sha256)
    assert caught.value.code == "OBJECT_DAMAGED" and not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("500", "LOCATION_UNREACHABLE"),
        ("drop", "LOCATION_UNREACHABLE"),
        ("garbage", "LOCATION_UNREACHABLE"),
        ("redirect", "BUCKET_ELSEWHERE"),
        ("secretive", "LOCATION_NOT_READABLE"),
        ("full", "LOCATION_FULL"),
    ],
)
def test_a_lasting_fault_is_told_in_our_words(troubled: tuple[Service, Proxy], fault: Fault, code: str) -> None:
    service, proxy = troubled
    store = service.store(service.bucket(), retry_seconds=1.0)
    proxy.faults = lambda _method, _path: fault
    before = time.monotonic()
    with pytest.raises(TunesmithError) as caught:
        store.list()
    assert caught.value.code == code
    assert time.monotonic() - before < IN_TIME_SECONDS
    assert "remote-secret-text" not in str(caught.value) and "169.254" not in str(caught.value)
    assert proxy.seen, "the request went to the declared host"


def test_no_connection_is_told_in_time_and_a_stop_ends_the_tries(service: Service) -> None:
    environment = service.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    store, _ = open_objects("s3://bucket", environment, retry_seconds=1.0)
    with pytest.raises(MachineCannot) as caught:
        store.head("k")
    assert caught.value.code == "LOCATION_UNREACHABLE"
    stop = threading.Event()
    store, _ = open_objects("s3://bucket", environment, retry_seconds=3600.0, stop=stop)
    threading.Timer(0.5, stop.set).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        store.head("k")
    assert time.monotonic() - before < IN_TIME_SECONDS


def test_a_name_that_no_server_has_is_refused_within_the_time(tmp_path: Path) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://nowhere.invalid", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    before = time.monotonic()
    with pytest.raises(MachineCannot) as caught:
        check_declared("s3://bucket/x", environment)
    assert caught.value.code == "LOCATION_UNREACHABLE" and caught.value.field == "location"
    assert CHECK_SECONDS <= 18 and time.monotonic() - before < 20 + IN_TIME_SECONDS, "promised: within 20 seconds"


def test_a_server_that_never_answers_is_refused_within_the_time() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        before = time.monotonic()
        with pytest.raises(MachineCannot) as caught:
            check_declared("s3://bucket/x", environment, seconds=0.5)
        assert caught.value.code == "LOCATION_UNREACHABLE"
        assert time.monotonic() - before < CHECK_SECONDS - 2


def test_a_bucket_that_is_not_there_is_the_inputs_fault(service: Service) -> None:
    with pytest.raises(InputRefused) as caught:
        check_declared("s3://no-such-bucket/x", service.environment, field="results")
    assert caught.value.code == "BUCKET_NOT_FOUND" and "no-such-bucket" in caught.value.message
    assert caught.value.field == "results"


@pytest.mark.parametrize("versioning", [None, "Suspended"])
def test_a_bucket_without_versions_is_refused_with_the_way_out(service: Service, versioning: str | None) -> None:
    bucket = service.bucket(versioning=versioning)
    with pytest.raises(InputRefused) as caught:
        check_declared(f"s3://{bucket}/x", service.environment)
    assert caught.value.code == "VERSIONING_OFF"
    assert f"put-bucket-versioning --bucket {bucket}" in (caught.value.hint or "")
    assert "Contents" not in service.client().list_objects_v2(Bucket=bucket), "the probe is gone"


def test_oci_is_asked_by_a_probe_without_requests_that_it_refuses(oci: Service) -> None:
    bucket = oci.bucket()
    check_declared(f"s3://{bucket}/x", oci.environment)
    assert "Versions" not in oci.client().list_object_versions(Bucket=bucket), "no version of the probe stays"


def test_wrong_credentials_are_told_without_showing_them(ceph_service: Service) -> None:
    bucket = ceph_service.bucket()
    for key, secret in [("TUNESMITHTEST", "wrong-secret-value"), ("unknown-key-value", "another-secret-value")]:
        environment = ceph_service.environment | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        with pytest.raises(MachineCannot) as caught:
            check_declared(f"s3://{bucket}/x", environment)
        assert caught.value.code == "CREDENTIALS_REFUSED"
        assert secret not in str(caught.value) and key not in str(caught.value)


def test_no_credentials_at_all_are_told(moto: Service) -> None:
    with pytest.raises(MachineCannot) as caught:
        check_declared("s3://bucket/x", {"AWS_ENDPOINT_URL": moto.url})
    assert caught.value.code == "CREDENTIALS_REFUSED" and caught.value.field == "AWS_ACCESS_KEY_ID"


def test_credentials_are_found_by_reference(moto: Service, tmp_path: Path) -> None:
    bucket = moto.bucket()
    file = tmp_path / "keys"
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for reference, environment in [
        ("env:TEAM", {"TEAM_ACCESS_KEY_ID": "a", "TEAM_SECRET_ACCESS_KEY": "b"}),
        (f"file:{file}", {}),
    ]:
        check_declared(Location(uri=f"s3://{bucket}", endpoint_url=moto.url, credentials=reference), environment)
    for reference in ("env:OTHER", "file:/nowhere", "profile:nobody", "secret-itself"):
        with pytest.raises(InputRefused) as caught:
            check_declared(Location(uri=f"s3://{bucket}", endpoint_url=moto.url, credentials=reference), {})
        assert caught.value.code == "BAD_CREDENTIALS_REFERENCE"
