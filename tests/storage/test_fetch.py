"""Objects brought into the cache: one pinned version each, fetched once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.servers.proxy import Proxy
from tests.storage.conftest import Service
from tunesmith.errors import InputRefused
from tunesmith.storage.fetch import fetch, fetch_model
from tunesmith.storage.objects import Location, ObjectStore, join_key


@pytest.fixture
def put(location: tuple[Location, dict[str, str]], store: ObjectStore):
    prefix = "team" if location[0].uri.startswith("s3:") else ""
    return lambda key, content: store.put_bytes(join_key(prefix, key), content)


def test_a_dataset_is_pinned_by_its_version_and_fetched_once(
    location: tuple[Location, dict[str, str]], put, tmp_path: Path
) -> None:
    where, environment = location
    cache = tmp_path / "cache"
    first_version = put("data/rows.jsonl", b'{"a": 1}\n')
    first = fetch(where, cache, environment=environment, path="data/rows.jsonl")
    assert first.path.name == "rows.jsonl" and first.path.read_bytes() == b'{"a": 1}\n'
    assert first.version_id == first_version and first.sha256 == hashlib.sha256(b'{"a": 1}\n').hexdigest()
    assert first.uri.endswith("data/rows.jsonl")
    before = first.path.stat().st_mtime_ns
    assert fetch(where, cache, environment=environment, path="data/rows.jsonl") == first
    assert first.path.stat().st_mtime_ns == before, "taken from the cache"

    put("data/rows.jsonl", b'{"b": 2}\n')
    second = fetch(where, cache, environment=environment, path="data/rows.jsonl")
    assert second.path != first.path and second.path.read_bytes() == b'{"b": 2}\n'
    pinned = fetch(where, cache, environment=environment, path="data/rows.jsonl", version_id=first_version)
    assert pinned == first

    first.path.write_bytes(b'{"c": 3}\n')
    mended = fetch(where, cache, environment=environment, path="data/rows.jsonl", version_id=first_version)
    assert mended.path.read_bytes() == b'{"a": 1}\n', "a copy that lost its hash is fetched anew"

    with pytest.raises(InputRefused) as caught:
        fetch(where, cache, environment=environment, path="data/rows.jsonl", expected_sha256="0" * 64)
    assert caught.value.code == "OBJECT_CHANGED"
    for path, code in [("data/none.jsonl", "OBJECT_NOT_FOUND"), ("../x", "BAD_KEY"), ("", "BAD_KEY")]:
        with pytest.raises(InputRefused) as caught:
            fetch(where, cache, environment=environment, path=path)
        # no path is the bucket's prefix itself: a key that holds no object
        assert caught.value.code in (code, "OBJECT_NOT_FOUND")
    with pytest.raises(InputRefused) as caught:
        fetch(where, cache, environment=environment, path="data/rows.jsonl", maximum_bytes=3)
    assert caught.value.code == "OBJECT_TOO_LARGE"


def test_a_model_is_fetched_as_one_folder_without_what_is_never_read(
    location: tuple[Location, dict[str, str]], put, store: ObjectStore, tmp_path: Path
) -> None:
    where, environment = location
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "sub/config.json"):
        put(f"models/tiny/{name}", name.encode())
    fetched = fetch_model(where, tmp_path / "cache", environment=environment, path="models/tiny")
    assert fetched.path.name == "tiny"
    assert {path.name for path in fetched.path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert fetch_model(where, tmp_path / "cache", environment=environment, path="models/tiny") == fetched
    put("models/tiny/config.json", b"changed")
    changed = fetch_model(where, tmp_path / "cache", environment=environment, path="models/tiny")
    assert changed.path != fetched.path and (changed.path / "config.json").read_bytes() == b"changed"
    with pytest.raises(InputRefused) as caught:
        fetch_model(where, tmp_path / "cache", environment=environment, path="models")
    assert caught.value.code == "MODEL_NOT_FOUND"


@pytest.mark.servers
def test_a_bucket_without_versions_is_read_and_a_changed_object_fetched_anew(moto: Service, tmp_path: Path) -> None:
    bucket = moto.bucket(versioning=None)
    seen = set[Path]()
    for content in (b"one", b"two"):
        moto.client().put_object(Bucket=bucket, Key="rows.jsonl", Body=content)
        fetched = fetch(f"s3://{bucket}/rows.jsonl", tmp_path, environment=moto.environment)
        assert fetched.path.read_bytes() == content and fetched.version_id is None
        seen.add(fetched.path)
    assert len(seen) == 2


@pytest.mark.servers
def test_a_fetch_cut_short_leaves_no_file(troubled: tuple[Service, Proxy], tmp_path: Path) -> None:
    service, proxy = troubled
    bucket = service.bucket()
    service.client().put_object(Bucket=bucket, Key="rows.jsonl", Body=b"x" * 100_000)
    proxy.faults = lambda method, _path: "drop" if method == "GET" else None
    with pytest.raises(Exception, match="cannot be used"):
        fetch(f"s3://{bucket}/rows.jsonl", tmp_path, environment=service.environment, retry_seconds=1.0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
