"""The files of a version over REST: read, exported, held against their hashes, and removed only on demand."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.catalog import make
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.state import State
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState

FILES = {"README.md": b"card", "adapter_model.safetensors": bytes(range(256)) * 9000}


@pytest.fixture
def folder(state: State) -> Path:
    """Where the ACTIVE version bot:1 was published, with somebody's own note beside it."""
    folder = state.home.results / "bot" / "1"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text('{"job_id": "job-1"}')
    files = [
        ManifestFile(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    ]
    manifest = Manifest(job_id="job-1", model_version="bot:1", files=files)
    columns = final_columns(artifact_uri=folder.as_uri(), manifest=manifest)
    with state.database.write() as connection:
        add_version(
            connection, project="default", version_set="bot", above=0, created_at=make.TIME, name="",
            base_name="base", results_uri="",
        )  # fmt: skip
        move_version(
            connection, project="default", model_version="bot:1", state=VersionState.ACTIVE, now=make.TIME, **columns
        )
    return folder


def test_an_export_holds_the_files_of_the_manifest_and_no_other(client: TestClient, folder: Path) -> None:
    (folder / "my-notes.txt").write_text("mine")
    content = client.get("/api/versions/bot:1/export").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert Manifest.model_validate_json(found.pop("manifest.json")).model_version == "bot:1"
    assert found == FILES
    assert client.get("/api/versions/bot:1/export").content == content, "equal versions give equal archives"
    assert client.get("/api/versions/bot:1/files/my-notes.txt").status_code == 404


def damage(folder: Path) -> bytearray:
    content = bytearray(FILES["adapter_model.safetensors"])
    content[77] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)
    return content


@pytest.mark.parametrize("what", ["export", "files/adapter_model.safetensors"])
def test_a_damaged_file_is_refused_by_its_name(client: TestClient, folder: Path, what: str) -> None:
    damage(folder)
    answer = client.get(f"/api/versions/bot:1/{what}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "ARTIFACT_DAMAGED")
    assert "adapter_model.safetensors" in error["message"] and error["hint"]


def test_a_file_that_is_damaged_after_its_check_breaks_the_answer_off(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.server.artifacts._check", lambda _handle, _file: None)
    content = damage(folder)
    cut = client.get("/api/versions/bot:1/files/adapter_model.safetensors").content
    assert len(cut) < len(content)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(client.get("/api/versions/bot:1/export").content))


def test_the_files_of_a_version_go_with_it_only_where_somebody_says_so(client: TestClient, folder: Path) -> None:
    assert client.delete("/api/versions/bot:1").is_success
    assert (folder / "README.md").exists()
    assert client.delete("/api/versions/bot:1", params={"bytes": "true"}).is_success
    assert not folder.exists()
