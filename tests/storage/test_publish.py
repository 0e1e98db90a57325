from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.storage.location_check import PROBE
from tunesmith.storage.publish import check_target, publish


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "curves").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "curves" / "loss.svg").write_text("<svg/>")
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "version_id": None,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    ]
    manifest = {"format": 1, "job_id": "job-000000000001", "model_version": "a:1", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_arrives_and_nothing_temporary_stays(artifact: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "results"
    publish(artifact, target)
    assert files_below(target) == {"adapter_model.safetensors", "curves/loss.svg", "manifest.json"}
    assert [path.name for path in target.parent.iterdir()] == ["results"]
    adapter = "adapter_model.safetensors"
    assert (target / adapter).read_bytes() == (artifact / adapter).read_bytes()


def test_files_outside_the_manifest_are_not_published(artifact: Path, tmp_path: Path) -> None:
    (artifact / "scratch.bin").write_bytes(b"x")
    publish(artifact, tmp_path / "results")
    assert "scratch.bin" not in files_below(tmp_path / "results")


def test_an_existing_empty_folder_is_filled(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    publish(artifact, tmp_path / "results")
    assert (tmp_path / "results" / "manifest.json").exists()


def test_the_probe_of_a_killed_check_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "results" / f"{PROBE}1234").mkdir(parents=True)
    check_target(tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(artifact: Path, tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputRefused) as caught:
        publish(artifact, target)
    assert caught.value.code == "RESULTS_NOT_EMPTY" and "mine.txt" in caught.value.message
    assert files_below(target) == {"mine.txt"}


def test_publishing_again_is_only_verified(artifact: Path, tmp_path: Path) -> None:
    target = tmp_path / "results"
    publish(artifact, target)
    before = (target / "manifest.json").stat().st_mtime_ns
    publish(artifact, target)
    assert (target / "manifest.json").stat().st_mtime_ns == before
    (target / "adapter_model.safetensors").write_bytes(b"bit rot")
    with pytest.raises(TunesmithError) as caught:
        publish(artifact, target)
    assert caught.value.code == "ARTIFACT_DAMAGED"


def test_an_artifact_damaged_after_its_manifest_is_not_published(artifact: Path, tmp_path: Path) -> None:
    (artifact / "adapter_model.safetensors").write_bytes(b"other bytes")
    with pytest.raises(TunesmithError) as caught:
        publish(artifact, tmp_path / "results")
    assert caught.value.code == "ARTIFACT_DAMAGED"
    assert not (tmp_path / "results").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"artifact"}


def test_a_full_disk_leaves_nothing_and_is_named(artifact: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: the system refuses the write after 100 kB (EFBIG instead of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MachineCannot) as caught:
            publish(artifact, tmp_path / "results")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.code == "DISK_FULL"
    assert {path.name for path in tmp_path.iterdir()} == {"artifact"}
    publish(artifact, tmp_path / "results")


KILLED = """
import os, signal, sys
from pathlib import Path
from tunesmith.storage import publish
calls = 0
def counted(path, *_, real=publish.sha256_of):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
publish.sha256_of = counted
publish.publish(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_publish_leaves_nothing_under_the_final_name_and_the_next_one_works(
    artifact: Path, tmp_path: Path
) -> None:
    target = tmp_path / "results"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(artifact), str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    publish(artifact, target)
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "results"}


@pytest.fixture
def mounted(tmp_path: Path):
    """A small file system of its own, with 1 MB on it."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this system does not let us mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_mount_point_is_filled_from_inside(artifact: Path, mounted: Path) -> None:
    publish(artifact, mounted)
    assert files_below(mounted) == {"adapter_model.safetensors", "curves/loss.svg", "manifest.json"}
    assert not [path for path in mounted.iterdir() if path.name.startswith(".")]


def test_a_full_mount_point_is_left_empty(artifact: Path, mounted: Path) -> None:
    (artifact / "adapter_model.safetensors").write_bytes(bytes(2_000_000))
    write_manifest(artifact)
    with pytest.raises(MachineCannot) as caught:
        publish(artifact, mounted)
    assert caught.value.code == "DISK_FULL"
    assert list(mounted.iterdir()) == []


def test_a_target_is_checked_before_the_start_without_leaving_a_trace(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []


def test_a_target_inside_another_artifact_is_refused(artifact: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        check_target(artifact / "mine")
    assert caught.value.code == "RESULTS_IN_ARTIFACT"


def test_a_target_that_is_or_lies_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputRefused) as caught:
        check_target(tmp_path / "file")
    assert caught.value.code == "RESULTS_NOT_FOLDER"
    with pytest.raises(MachineCannot) as caught_too:
        check_target(tmp_path / "file" / "results")
    assert caught_too.value.code == "RESULTS_NOT_WRITABLE"
