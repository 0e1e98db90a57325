from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.catalog.conftest import PROJECT, State
from tunesmith.catalog import artifacts
from tunesmith.catalog.versions import delete_version, find_version
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState
from tunesmith.storage.objects import ObjectStore

FILES = {"README.md": b"# card\n", "adapter_model.safetensors": bytes(range(256)) * 9000, "deep/er/x.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "bot" / "1"


@pytest.fixture
def version(state: State, folder: Path) -> str:
    """A published artifact in a plain folder, with somebody's own note beside it."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = Manifest(
        job_id="job-1", model_version="bot:1",
        files=[
            ManifestFile(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in FILES.items()
        ],
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    (folder / "my-notes.txt").write_text("mine")
    return state.version(manifest=manifest, artifact_uri=folder.as_uri())


def found(state: State, version: str) -> artifacts.Artifact:
    with state.database.read() as connection:
        return artifacts.find_artifact(connection, version, project=PROJECT)


def delete(state: State, version: str) -> None:
    with state.database.write() as connection:
        delete_version(connection, version, with_bytes=True, project=PROJECT, actor="ada")


def remove(state: State, version: str) -> None:
    artifacts.remove_bytes(state.database, version, project=PROJECT, environment={})


def test_a_file_is_found_by_its_path_in_the_manifest_alone(state: State, version: str) -> None:
    artifact = found(state, version)
    assert artifact.file("deep/er/x.json").size == 2
    for path in ("my-notes.txt", "../2/README.md", "/etc/hostname", "manifest.json", ""):
        with pytest.raises(Unknown):
            artifact.file(path)


def test_a_version_that_is_not_active_has_nothing_to_export(state: State) -> None:
    name = state.version(state=VersionState.FAILED)
    with pytest.raises(Conflict):
        found(state, name)


def test_files_go_after_the_deletion_and_what_is_not_ours_stays(state: State, version: str, folder: Path) -> None:
    remove(state, version)
    assert (folder / "manifest.json").exists(), "an ACTIVE version keeps its files"
    delete(state, version)
    with state.database.read() as connection:
        assert artifacts.unfinished_removals(connection) == [(PROJECT, version)]
    assert (folder / "manifest.json").exists(), "nothing goes before the row moved"
    remove(state, version)
    assert [path.name for path in folder.iterdir()] == ["my-notes.txt"]
    with state.database.read() as connection:
        assert artifacts.unfinished_removals(connection) == []
        assert find_version(connection, version, project=PROJECT).state is VersionState.DELETED


def test_a_folder_that_held_nothing_else_is_gone_too(state: State, version: str, folder: Path) -> None:
    (folder / "my-notes.txt").unlink()
    delete(state, version)
    remove(state, version)
    assert not folder.exists() and folder.parent.exists()


def test_a_removal_that_died_goes_on_and_the_manifest_went_first(
    state: State, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(state, version)
    calls = 0
    whole = artifacts._remove

    def dies(store: ObjectStore, key: str, version_id: str | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("power cut")
        whole(store, key, version_id)

    monkeypatch.setattr(artifacts, "_remove", dies)
    with pytest.raises(OSError, match="power cut"):
        remove(state, version)
    assert not (folder / "manifest.json").exists() and (folder / "deep" / "er" / "x.json").exists()
    monkeypatch.setattr(artifacts, "_remove", whole)
    with state.database.read() as connection:
        assert artifacts.unfinished_removals(connection) == [(PROJECT, version)]
    assert artifacts.finish_removals(state.database, environment={}) == [version]
    assert [path.name for path in folder.iterdir()] == ["my-notes.txt"]
    assert artifacts.finish_removals(state.database, environment={}) == []


def test_a_manifest_that_somebody_put_in_its_place_stays(state: State, version: str, folder: Path) -> None:
    delete(state, version)
    (folder / "manifest.json").write_text('{"job_id": "job-of-another"}')
    remove(state, version)
    assert (folder / "manifest.json").exists()


def test_files_that_were_to_stay_stay_until_somebody_asks(state: State, version: str, folder: Path) -> None:
    with state.database.write() as connection:
        delete_version(connection, version, with_bytes=False, project=PROJECT, actor="ada")
    remove(state, version)
    assert (folder / "manifest.json").exists()
    delete(state, version)
    remove(state, version)
    assert not (folder / "manifest.json").exists()
