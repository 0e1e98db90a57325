from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from tests.catalog.conftest import PROJECT, State
from tunesmith.catalog import artifacts
from tunesmith.catalog.versions import delete_version, find_version
from tunesmith.errors import Conflict, MachineCannot, TunesmithError, Unknown
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


def test_the_zip_holds_the_files_of_the_manifest_and_no_other(state: State, version: str) -> None:
    pieces = list(artifacts.zip_stream(found(state, version), environment={}))
    assert len(pieces) > len(FILES), "it is sent piece by piece"
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    names = archive.namelist()
    assert names[0] == "bot-1/manifest.json"
    assert {name.removeprefix("bot-1/"): archive.read(name) for name in names[1:]} == FILES
    assert b"".join(artifacts.zip_stream(found(state, version), environment={})) == b"".join(pieces)


def test_the_exported_folder_is_whole_and_never_overwrites(state: State, version: str, tmp_path: Path) -> None:
    target = tmp_path / "export" / "bot"
    artifacts.export_folder(found(state, version), target, environment={})
    exported = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert exported.pop("manifest.json")
    assert exported == FILES
    with pytest.raises(TunesmithError) as caught:
        artifacts.export_folder(found(state, version), target, environment={})
    assert caught.value.code == "EXPORT_TARGET"


def test_a_damaged_file_is_not_exported(state: State, version: str, folder: Path, tmp_path: Path) -> None:
    content = bytearray(FILES["adapter_model.safetensors"])
    content[77] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(MachineCannot) as caught:
        artifacts.export_folder(found(state, version), tmp_path / "export", environment={})
    assert caught.value.code == "OBJECT_DAMAGED"
    assert not (tmp_path / "export").exists() and not list(tmp_path.glob(".export*"))
    sent: list[bytes] = []
    with pytest.raises(MachineCannot):
        sent.extend(artifacts.zip_stream(found(state, version), environment={}))
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(b"".join(sent)))


def test_one_file_is_read_by_its_path_in_the_manifest_alone(state: State, version: str) -> None:
    artifact = found(state, version)
    with artifacts.opened_file(artifact, "deep/er/x.json", environment={}) as copy:
        assert copy.read_bytes() == b"{}"
    assert not copy.exists()
    for path in ("my-notes.txt", "../2/README.md", "/etc/hostname", "manifest.json", ""):
        with pytest.raises(Unknown), artifacts.opened_file(artifact, path, environment={}):
            pass


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
