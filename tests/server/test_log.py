"""The server's log: lines of JSON that nothing can forge, and no token."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from tunesmith.catalog.tokens import PREFIX
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
