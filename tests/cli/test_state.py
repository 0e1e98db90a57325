from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import app as edge


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert edge.run(["state", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_new_home_is_in_order(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    told = ask(capsys, "show")
    assert (told["home"], told["jobs"]) == (str(home), {})
    assert edge.run(["state", "show"]) == 0
    assert "agree" in capsys.readouterr().out


def test_a_backup_is_made_and_restored_and_refusals_have_their_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = str(tmp_path / "b.zip")
    assert ask(capsys, "backup", target)["jobs"] == 0
    assert ask(capsys, "backup", target, code=3)["error"]["code"] == "BACKUP_TARGET"
    assert ask(capsys, "restore", target)["replaced"] is not None
    assert ask(capsys, "restore", str(tmp_path / "no"), code=3)["error"]["code"] == "BACKUP_BROKEN"


def test_a_clean_up_removes_nothing_without_yes(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    ask(capsys, "show")
    cached = home / "cache" / "tokens" / "old" / "table.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(bytes(100))
    told = ask(capsys, "clean", "--older-than", "0")
    assert (told["removed"], told["bytes"], len(told["entries"])) == (False, 100, 1)
    assert cached.exists()
    assert ask(capsys, "clean", "--older-than", "30", "--yes")["entries"] == []
    assert ask(capsys, "clean", "--older-than", "0", "--yes")["removed"] is True
    assert not cached.parent.exists()
