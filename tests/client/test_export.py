"""A version written as a zip file or as a folder: by its name, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.server.test_versions_api import FILES, folder
from tunesmith.cli.app import run
from tunesmith.client import AsyncClient, Client
from tunesmith.errors import Conflict, TunesmithError, UsageFault
from tunesmith.jobs.state import State
from tunesmith.storage.tables import MODEL_VERSIONS

__all__ = ["folder"]


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_folder_holds_what_the_zip_holds(
    client: Client, async_client: Callable[[], AsyncClient], folder: Path, tmp_path: Path, is_async: bool
) -> None:
    told: list[tuple[int, int]] = []
    client.versions.export("bot:1", tmp_path / "out.zip")

    async def use() -> None:
        async with async_client() as opened:
            await opened.versions.export("bot:1", tmp_path / "out", progress=lambda *now: told.append(now))

    if is_async:
        asyncio.run(use())
    else:
        client.versions.export("bot:1", tmp_path / "out", progress=lambda *now: told.append(now))
    found = files_of(tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert found == {name: archive.read(name) for name in archive.namelist()}
    assert json.loads(found.pop("manifest.json"))["model_version"] == "bot:1"
    assert found == FILES
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total) and told == sorted(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out", "out.zip"]


@pytest.mark.parametrize("name", ["out.tgz", "out.tar.gz", "out.TAR", "out.7z"])
def test_the_name_of_another_archive_is_refused(client: Client, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageFault) as caught:
        client.versions.export("bot:1", tmp_path / name)
    assert caught.value.code == "EXPORT_FORM" and not (tmp_path / name).exists()


def test_a_folder_that_holds_something_is_left_alone(client: Client, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    client.versions.export("bot:1", tmp_path / "empty")
    assert "manifest.json" in files_of(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text("mine")
    with pytest.raises(Conflict, match="already"):
        client.versions.export("bot:1", tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").read_text() == "mine"


def test_a_damaged_file_leaves_no_folder(client: Client, folder: Path, tmp_path: Path) -> None:
    name = sorted(FILES)[-1]
    (folder / name).write_bytes(FILES[name][:-1] + b"?")
    for target in ("out", "out.zip"):
        with pytest.raises(Conflict, match="is not the file that was published"):
            client.versions.export("bot:1", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_manifest_that_leads_out_of_the_folder_writes_nothing_there(
    client: Client, folder: Path, state: State, tmp_path: Path
) -> None:
    bad = {"path": "../../stolen", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "version_id": None}
    with state.database.write() as connection:
        manifest = {"format": 1, "job_id": "j", "model_version": "bot:1", "files": [bad]}
        connection.execute(sa.update(MODEL_VERSIONS).values(manifest=json.dumps(manifest)))
    with pytest.raises(TunesmithError) as caught:
        client.versions.export("bot:1", tmp_path / "out")
    assert caught.value.code == "UNEXPECTED_ANSWER" and "stolen" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["nowhere/out.zip", "nowhere/out"])
def test_a_place_that_cannot_be_written_is_told(client: Client, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageFault) as caught:
        client.versions.export("bot:1", tmp_path / name)
    assert caught.value.code == "FILE_NOT_WRITABLE" and str(tmp_path / name) in caught.value.message


def test_the_command_writes_what_the_name_says(
    folder: Path, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(state.home.root))
    monkeypatch.chdir(tmp_path)
    size = sum(map(len, FILES.values()))
    assert run(["version", "export", "bot:1", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "out") and told["bytes"] > size and (tmp_path / "out").is_dir()
    for arguments, code, exit_code in [
        (["bot:1", "out", "--replace"], "FILE_EXISTS", 3),
        (["bot:1", "out.tgz"], "EXPORT_FORM", 2),
    ]:
        assert run(["version", "export", *arguments, "--json"]) == exit_code
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert run(["version", "export", "bot:1"]) == 0 and zipfile.is_zipfile(tmp_path / "bot-1.zip")
