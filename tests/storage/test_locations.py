from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.storage.locations import local_path


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


@pytest.mark.parametrize("text", ["s3://bucket/prefix", "oci://bucket@namespace/x", "gs://bucket"])
def test_buckets_are_refused_by_name(text: str) -> None:
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
