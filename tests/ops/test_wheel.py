"""The wheel: built from the sources, installed beside the dependencies that are there, and asked to work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tunesmith import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tunesmith"
pytestmark = pytest.mark.slow


def run(*words: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], env=os.environ | variables, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    if uv.exists():
        run(uv, "build", "--wheel", "--out-dir", folder, ROOT)
    else:
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


def test_everything_that_the_package_reads_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    kept = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert kept <= inside
    for name in ("bundled/model/model.safetensors", "bundled/data/train.jsonl", "bundled/model/chat_template.jinja",
                 "storage/migrations/env.py", "py.typed"):  # fmt: skip
        assert f"tunesmith/{name}" in inside
    assert not [name for name in inside if name.startswith("tests/") or "__pycache__" in name]


def test_it_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", packages, wheel)
    # the dependencies are those of this environment, but not its tunesmith
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python, home = folder / "bin" / "python", str(tmp_path / "home")
    where = run(python, "-P", "-c", "import tunesmith; print(tunesmith.__file__)").strip()
    assert Path(where).is_relative_to(folder)
    assert run(python, "-P", "-m", "tunesmith", "--version", TUNESMITH_HOME=home) == f"tunesmith {__version__}\n"
    shown = run(python, "-P", "-m", "tunesmith", "model", "list", "--json", TUNESMITH_HOME=home)
    assert "tunesmith/demo" in shown, "the bundled model, a new database and the application are there"


def test_the_unit_and_the_image_start_commands_that_exist() -> None:
    help_text = run(sys.executable, "-m", "tunesmith", "serve", "--help")
    started = (ROOT / "ops" / "tunesmith.service").read_text() + (ROOT / "ops" / "Dockerfile").read_text()
    for option in ("--host", "--port", "--allow-remote", "--allowed-host"):
        assert option in help_text and option in started


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_reads_the_unit_without_a_complaint(tmp_path: Path) -> None:
    unit = (ROOT / "ops" / "tunesmith.service").read_text()
    assert "ExecStart=/opt/tunesmith/bin/tunesmith serve" in unit
    here = tmp_path / "tunesmith.service"
    here.write_text(unit.replace("/opt/tunesmith/bin/tunesmith", sys.executable))  # systemd looks for the program
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(here)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
