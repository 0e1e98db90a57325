"""One suite for every store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.storage.location_check import check_declared
from tunesmith.storage.objects import Location, ObjectStore, check_key

MakeFile = Callable[[bytes], tuple[Path, str]]
LARGE = 40_000_000  # three parts of a bucket's upload


def test_a_file_comes_back_as_it_was_put(store: ObjectStore, make_file: MakeFile, tmp_path: Path) -> None:
    source, sha256 = make_file(os.urandom(300_000))
    told: list[tuple[int, int]] = []
    version_id = store.put_file("a/b c/ü.bin", source, sha256=sha256, progress=lambda *at: told.append(at))
    got = store.get_file("a/b c/ü.bin", tmp_path / "copy", expected_sha256=sha256)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (got.sha256, got.size, got.version_id) == (sha256, 300_000, version_id)
    assert told[-1] == (300_000, 300_000)
    info = store.head("a/b c/ü.bin")
    assert (info.size, info.sha256, info.version_id) == (300_000, sha256, version_id)
    assert info.modified_at.startswith("20")


def test_a_large_file_comes_back_as_it_was_put(store: ObjectStore, make_file: MakeFile, tmp_path: Path) -> None:
    source, sha256 = make_file(os.urandom(1_000_000) * (LARGE // 1_000_000))
    told: list[tuple[int, int]] = []
    version_id = store.put_file("large", source, sha256=sha256, progress=lambda *at: told.append(at))
    assert store.head("large").sha256 == sha256 and version_id is not None
    assert store.get_file("large", tmp_path / "copy", version_id=version_id).sha256 == sha256
    assert len(told) > 2 and told == sorted(told) and told[-1] == (LARGE, LARGE)


def test_an_empty_object_is_one(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("empty", b"")
    assert store.head("empty").size == 0
    assert store.get_bytes("empty", maximum_bytes=10) == b""
    assert store.get_file("empty", tmp_path / "empty").sha256 == hashlib.sha256(b"").hexdigest()


def test_every_version_can_be_read_and_one_deleted_for_good(store: ObjectStore) -> None:
    versions = [store.put_bytes("k", text) for text in (b"one", b"two", b"three")]
    assert len(set(versions)) == 3 and None not in versions
    assert store.get_bytes("k", maximum_bytes=100) == b"three"
    assert store.get_bytes("k", version_id=versions[0], maximum_bytes=100) == b"one"
    assert [info.version_id for info in store.versions("k")] == versions[::-1]
    store.delete("k", versions[2])
    assert store.get_bytes("k", maximum_bytes=100) == b"two"
    store.delete("k", versions[0])
    assert [info.version_id for info in store.versions("k")] == [versions[1]]
    store.delete("k", versions[1])
    with pytest.raises(InputRefused, match="no object"):
        store.head("k")


def test_deleting_the_name_keeps_the_versions(store: ObjectStore) -> None:
    version_id = store.put_bytes("k", b"kept")
    store.delete("k")
    with pytest.raises(InputRefused) as caught:
        store.get_bytes("k", maximum_bytes=10)
    assert caught.value.code == "OBJECT_NOT_FOUND"
    assert store.list().objects == []
    assert store.get_bytes("k", version_id=version_id, maximum_bytes=10) == b"kept"
    store.delete("k")  # what is not there is deleted


def test_what_is_not_there_is_said_with_its_uri(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("here", b"x")
    for ask in (
        lambda: store.head("nowhere"),
        lambda: store.head("here", "no-such-version"),
        lambda: store.get_file("nowhere", tmp_path / "copy"),
        lambda: store.get_bytes("here/below", maximum_bytes=10),
    ):
        with pytest.raises(InputRefused) as caught:
            ask()
        assert caught.value.code in ("OBJECT_NOT_FOUND", "BAD_KEY")
        assert store.uri("") in caught.value.message
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [], "no partial file"


def test_listing_pages_in_order_and_by_folder(store: ObjectStore) -> None:
    keys = ["a", "b/1", "b/2", "b/c/3", "b-x", "é"]
    for key in keys:
        store.put_bytes(key, b"x")
    found: list[str] = []
    after = None
    while True:
        page = store.list(after=after, limit=2)
        found += [info.key for info in page.objects]
        if (after := page.next) is None:
            break
    assert found == sorted(keys, key=str.encode)
    assert [info.key for info in store.list("b").objects] == ["b-x", "b/1", "b/2", "b/c/3"]
    assert [info.key for info in store.list("b/c/").objects] == ["b/c/3"]
    top = store.list(by_folder=True)
    assert [info.key for info in top.objects] == ["a", "b-x", "é"] and top.folders == ["b/"]
    below = store.list("b/", by_folder=True)
    assert [info.key for info in below.objects] == ["b/1", "b/2"] and below.folders == ["b/c/"]
    found, after = [], None
    while True:
        page = store.list(after=after, limit=1, by_folder=True)
        found += [*page.folders, *(info.key for info in page.objects)]
        if (after := page.next) is None:
            break
    assert sorted(found, key=str.encode) == ["a", "b-x", "b/", "é"]


def test_a_wrong_hash_is_refused_both_ways(store: ObjectStore, make_file: MakeFile, tmp_path: Path) -> None:
    source, sha256 = make_file(b"content")
    with pytest.raises(TunesmithError) as caught:
        store.put_file("k", source, sha256="0" * 64)
    assert caught.value.code == "ARTIFACT_DAMAGED"
    assert store.list().objects == []
    store.put_file("k", source, sha256=sha256)
    with pytest.raises(MachineCannot) as caught_too:
        store.get_file("k", tmp_path / "copy", expected_sha256="0" * 64)
    assert caught_too.value.code == "OBJECT_DAMAGED"
    assert not (tmp_path / "copy").exists() and not list(tmp_path.glob(".copy*"))
    assert store.verify("k", sha256, version_id=None) and not store.verify("k", "0" * 64, version_id=None)


def test_too_large_is_refused_before_it_is_read(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("k", b"x" * 1000)
    for get in (
        lambda: store.get_file("k", tmp_path / "copy", maximum_bytes=999),
        lambda: store.get_bytes("k", maximum_bytes=999),
    ):
        with pytest.raises(InputRefused) as caught:
            get()
        assert caught.value.code == "OBJECT_TOO_LARGE"


def test_a_location_that_keeps_versions_passes_its_check_and_stays_empty(
    location: tuple[Location, dict[str, str]], store: ObjectStore
) -> None:
    check_declared(*location)
    assert store.list().objects == []
    check_declared(*location)


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0", "a\nb", "a\\b", "a/.tunesmith/b", "x" * 300,
     "a/" * 600 + "a", "\ud800"],
)  # fmt: skip
def test_keys_that_leave_their_prefix_or_mean_different_things_are_refused(key: str) -> None:
    with pytest.raises(InputRefused) as caught:
        check_key(key)
    assert caught.value.code == "BAD_KEY"
