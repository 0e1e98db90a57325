from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.storage.locations import BucketPlace, find_place, local_path, uri_of


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b%20c", "/a/b c"),
        ("-odd name", str(Path.cwd() / "-odd name")),
    ],
)
def test_paths_and_file_uris_become_absolute_paths(text: str, path: str) -> None:
    assert local_path(text, field="--results") == Path(path)


@pytest.mark.parametrize("text", ["oci://bucket@namespace/x", "gs://bucket"])
def test_schemes_not_built_are_refused_by_name(text: str) -> None:
    with pytest.raises(MachineCannot) as caught:
        local_path(text, field="--results")
    assert caught.value.code == "NOT_BUILT" and text in caught.value.message
    assert caught.value.field == "results", "the bare name, as in every other error"


@pytest.mark.parametrize(
    "text",
    [
        "http://host/x", "file://host/x", "file:relative/..//x\0", "a\0b", "file:///a%00b", "file:relative",
        "file:///a?version=1", "file:///a#part", "http://[half", "~no-such-user-here/x",
    ],
)  # fmt: skip
def test_what_is_no_local_place_is_refused(text: str) -> None:
    with pytest.raises(InputRefused) as caught:
        local_path(text, field="--results")
    assert caught.value.code == "BAD_LOCATION"
    assert caught.value.field == "results"


@pytest.mark.parametrize("text", ["0" * 256, "ä" * 128, "a/" * 2048, "file:///" + "0" * 256])
def test_what_no_file_system_could_hold_is_refused(text: str) -> None:
    with pytest.raises(InputRefused, match="too long") as caught:
        local_path(text, field="--results")
    assert caught.value.code == "BAD_LOCATION" and len(caught.value.message) < 200
    assert local_path("0" * 255, field="--results").name == "0" * 255


@pytest.mark.parametrize(
    ("text", "bucket", "key", "uri"),
    [
        ("s3://bucket", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "bucket", "", "s3://bucket"),
        ("S3://Team_1.x/a/b c?#%41/", "Team_1.x", "a/b c?#%41", "s3://Team_1.x/a/b c?#%41"),
    ],
)
def test_a_bucket_uri_is_taken_as_it_is_written(text: str, bucket: str, key: str, uri: str) -> None:
    assert find_place(text, field="DATASET") == BucketPlace(bucket=bucket, key=key)
    assert uri_of(find_place(text, field="DATASET")) == uri


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///key", "s3://b/../x", "s3://bucket/a//b", "s3://u:p@host/x", "s3://b:1/x"]
)
def test_what_is_no_place_in_a_bucket_is_refused(text: str) -> None:
    with pytest.raises(InputRefused) as caught:
        find_place(text, field="--results")
    assert caught.value.code == "BAD_LOCATION" and caught.value.field == "results"


def test_a_bucket_has_no_local_path() -> None:
    with pytest.raises(InputRefused):
        local_path("s3://bucket/x", field="DATASET")


def test_a_tilde_means_a_home_only_where_it_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("./~rows.jsonl", field="DATASET") == tmp_path / "~rows.jsonl"
    assert local_path("~/rows.jsonl", field="DATASET") == tmp_path / "home" / "rows.jsonl"
