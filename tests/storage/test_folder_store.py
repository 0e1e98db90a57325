"""What a folder as a store must do beyond the common suite: links, files put there by hand, kills, a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.storage.folder_store import FolderStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root)


def test_links_are_neither_read_nor_written_through_nor_listed(store: FolderStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (root / "file").symlink_to(secret / "key")
    (root / "folder").symlink_to(secret)
    os.link(secret / "key", root / "hard")
    os.mkfifo(root / "pipe")
    for key in ("file", "folder/key", "hard", "pipe"):
        with pytest.raises(InputRefused) as caught:
            store.get_bytes(key, maximum_bytes=100)
        assert caught.value.code == "BAD_KEY"
    with pytest.raises(InputRefused):
        store.put_bytes("folder/new", b"x")
    assert [path.name for path in secret.iterdir()] == ["key"]
    assert [info.key for info in store.list().objects] == ["hard"]
    assert store.list("folder/").objects == []


def test_a_file_put_there_by_hand_is_read_and_kept_when_it_is_replaced(store: FolderStore, root: Path) -> None:
    (root / "rows.jsonl").write_bytes(b"by hand")
    assert store.head("rows.jsonl").version_id is None
    assert store.get_bytes("rows.jsonl", maximum_bytes=100) == b"by hand"
    store.put_bytes("rows.jsonl", b"by us")
    newest, oldest = store.versions("rows.jsonl")
    assert store.get_bytes("rows.jsonl", version_id=oldest.version_id, maximum_bytes=100) == b"by hand"
    assert store.get_bytes("rows.jsonl", version_id=newest.version_id, maximum_bytes=100) == b"by us"


def test_a_version_that_was_edited_in_place_is_found_out(store: FolderStore, root: Path) -> None:
    version_id = store.put_bytes("k", b"content")
    os.chmod(root / "k", 0o600)
    (root / "k").write_bytes(b"edited!")
    with pytest.raises(MachineCannot) as caught:
        store.get_bytes("k", version_id=version_id, maximum_bytes=100)
    assert caught.value.code == "OBJECT_DAMAGED"


def test_an_object_and_a_folder_of_one_name_are_refused(store: FolderStore) -> None:
    store.put_bytes("a/b", b"x")
    for key in ("a", "a/b/c"):
        with pytest.raises(InputRefused) as caught:
            store.put_bytes(key, b"y")
        assert caught.value.code == "BAD_KEY"
    assert store.get_bytes("a/b", maximum_bytes=10) == b"x"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MachineCannot) as caught:
        FolderStore(tmp_path / "gone").put_bytes("k", b"x")
    assert caught.value.code == "LOCATION_UNREACHABLE"


def test_a_full_disk_leaves_the_old_version(store: FolderStore, root: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: the system refuses the write after 100 kB (EFBIG instead of ENOSPC)."""
    store.put_bytes("k", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MachineCannot) as caught:
            store.put_bytes("k", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.code == "DISK_FULL"
    assert store.get_bytes("k", maximum_bytes=10) == b"old" and len(store.versions("k")) == 1
    assert list((root / ".tunesmith" / "new").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tunesmith.storage import folder_store
calls, die_at = 0, int(sys.argv[2])
for name in ("fsync", "link", "rename", "mkdir", "open"):
    def counted(*args, real=getattr(os, name), **more):
        global calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(os, name, counted)
folder_store.FolderStore(Path(sys.argv[1])).put_bytes("a/k", b"new" * 1000)
"""


@pytest.mark.slow
def test_a_put_killed_at_any_call_leaves_the_old_or_the_new_object(store: FolderStore, root: Path) -> None:
    store.put_bytes("a/k", b"old")
    for die_at in range(1, 100):
        done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(die_at)], check=False)
        content = store.get_bytes("a/k", maximum_bytes=10_000)
        assert content in (b"old", b"new" * 1000)
        for info in store.versions("a/k"):
            assert store.get_bytes("a/k", version_id=info.version_id, maximum_bytes=10_000) in (b"old", b"new" * 1000)
        if done.returncode == 0:
            assert content == b"new" * 1000 and die_at > 10
            return
        assert done.returncode == -signal.SIGKILL
        store.put_bytes("a/k", b"old")
    raise AssertionError("the put never ended")
