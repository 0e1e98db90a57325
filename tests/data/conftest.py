"""Fixtures of the data tests: folders of tokenizers, made once, and the shared real data where it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.families import CONTROL, FAMILIES, SHARED, write_folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family of FAMILIES, made once."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        template, control, kind = FAMILIES[name]
        folder = root / name
        return folder if folder.is_dir() else write_folder(folder, kind=kind, control=control, template=template)

    return make


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a start token and no template."""
    return write_folder(tmp_path_factory.mktemp("plain"), kind="bytes", control=CONTROL, template=None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data files beside the repository; tests over them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this repository")
    return SHARED
