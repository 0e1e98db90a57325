"""What a DATASET argument is refused for before anything is read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tunesmith.errors import InputRefused
from tunesmith.jobs.finetune import dataset_path


def refusal(text: str) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        dataset_path(text, field="dataset")
    return caught.value


def test_a_link_that_leads_nowhere_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("gone.jsonl")
    assert "is a link that leads nowhere" in refusal(str(tmp_path / "rows.jsonl")).message


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no file names that are not UTF-8")
def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/r\xe9sum\xe9.jsonl"
    Path(os.fsdecode(name)).write_text('{"prompt": "a", "completion": "b"}\n')
    error = refusal(os.fsdecode(name))
    assert error.code == "DATASET_NAME" and error.message.isascii()


def test_a_name_too_long_for_the_system_is_shown_short(tmp_path: Path) -> None:
    error = refusal(str(tmp_path / ("x" * 5000)))
    assert error.code == "BAD_LOCATION" and len(error.message) < 400
