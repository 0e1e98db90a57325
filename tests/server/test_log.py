"""The server's log: lines of JSON that nothing can forge, and no token."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tunesmith.catalog.tokens import PREFIX
from tunesmith.server import log
from tunesmith.server.log import logging_to


def test_lines_are_json_whatever_was_said(tmp_path: Path) -> None:
    logger = logging.getLogger("tunesmith.server")
    with logging_to(tmp_path) as path:
        logger.info("a\nb\x1b[31m\u202e", extra={"fields": {"path": "/x\r\n{}"}})
        try:
            raise ValueError(f"holds {PREFIX}{'s' * 43}")
        except ValueError:
            logger.exception("a fault")
        logging.getLogger("tunesmith.server").debug("not this")
    raw = path.read_bytes()
    assert raw.isascii() and b"\x1b" not in raw
    first, second = (json.loads(line) for line in raw.splitlines())
    assert (first["message"], first["path"], first["level"]) == ("a\nb\x1b[31m\u202e", "/x\r\n{}", "info")
    assert "ValueError" in second["exception"]
    assert "s" * 43 not in raw.decode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert logger.handlers == []


def test_a_full_file_makes_room_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FILE_BYTES", 2000)
    logger = logging.getLogger("tunesmith.server")
    with logging_to(tmp_path) as path:
        for number in range(200):
            logger.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["server.log", *(f"server.log.{number}" for number in range(1, 5))]
    assert all(each.stat().st_size <= 2000 for each in files)
    lines = [json.loads(line)["message"] for each in reversed(files[1:]) for line in each.read_text().splitlines()]
    lines += [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert lines == [f"line {number}" for number in range(200 - len(lines), 200)]  # none lost between two files
