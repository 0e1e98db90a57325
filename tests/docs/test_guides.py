"""The commands of the README and the guide, run as they stand: every `$ tunesmith` line of a console block.

They run in a folder that looks like the root of the repository (`src` leads to ours) and holds what the README calls
MODEL_FOLDER and rows.jsonl, so that nothing is written into the repository. Commands share a home, page after page.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.bundled import MODEL_FOLDER, TRAINING_ROWS
from tunesmith.client import Client
from tunesmith.client.connection import Endpoint
from tunesmith.client.synchronous.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUNESMITH = ("tunesmith", ".venv/bin/tunesmith")
NUM_ROWS = 64
PATIENCE_SECONDS = 400  # two cores and company; alone the longest takes a tenth


def lines_of(page: Path) -> list[str]:
    """What follows the `$` in the page's console blocks."""
    blocks = CONSOLE.findall(page.read_text(encoding="utf-8"))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in lines_of(page)]
COMMANDS = [(page, line) for page, line in LINES if line.split()[0] in TUNESMITH]
MAKE_LINES = [(page, line) for page, line in LINES if line.split()[0] == "make"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's current folder: the repository's sources, a model folder and a dataset."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "src").symlink_to(ROOT / "src")
    shutil.copytree(MODEL_FOLDER, folder / "MODEL_FOLDER")
    rows = TRAINING_ROWS.read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(rows[:NUM_ROWS]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "line"),
    [pytest.param(page, line, id=f"{page}: {line[:60]}") for page, line in dict.fromkeys(COMMANDS)],
)
def test_a_command_of_the_guide_runs_as_it_stands(page: str, line: str, workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *shlex.split(line)[1:]],
        cwd=workplace,
        env={**os.environ, "TUNESMITH_HOME": str(workplace / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, f"{page}: {line}\n{done.stdout}{done.stderr}"


def test_make_lines_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert MAKE_LINES
    for page, line in MAKE_LINES:
        assert set(line.split()[1:]) <= targets, f"{page}: {line}"


def test_no_console_line_is_of_another_kind() -> None:
    assert COMMANDS
    assert [line for line in LINES if line not in COMMANDS and line not in MAKE_LINES] == []


def test_the_guide_of_fine_tuning_has_commands_to_run() -> None:
    assert len([page for page, _ in COMMANDS if page == "docs/guide/fine-tuning.md"]) >= 5


def test_the_client_guide_names_every_method() -> None:
    guide = (ROOT / "docs" / "guide" / "client.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith("| `client.")]
    endpoint = Endpoint(url="http://127.0.0.1:1", token=None)
    with Client.over(Wire(endpoint)) as client:
        nouns = {name: each for name, each in vars(client).items() if not name.startswith("_") and name != "wire"}
        assert "jobs" in nouns
        for name, each in nouns.items():
            row = " ".join(row for row in rows if f"`client.{name}`" in row)
            methods = {method for method in dir(each) if not method.startswith("_")} - {"act"}
            assert sorted(method for method in methods if f"`{method}`" not in row) == [], name
