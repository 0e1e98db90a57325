"""Files that are written whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunesmith.files import write_atomic


def test_threads_that_write_one_file_do_not_take_each_other_s_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "speed"
    contents = [bytes([number]) * 100_000 for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(path, content), contents))  # raises what one of them raised
    assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["speed"]


def test_what_could_not_be_written_leaves_the_old_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "speed"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]  # any failure after the file was opened
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
