"""The server's log: one JSON object a line in `logs/server.log` of the state folder, in five files of 20 MB at most.

In: records of the standard `logging`, with `extra={"fields": {...}}` for what programs read. JSON escapes whatever
would forge a line or act on a terminal; a token's text is masked as a second net (nothing is meant to log one).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from tunesmith.catalog.clock import iso
from tunesmith.catalog.tokens import PREFIX

FILE_NAME = "server.log"
FILE_BYTES = 20 << 20
KEPT_FILES = 4  # beside the present one
LOGGERS = ("tunesmith", "uvicorn.error")
ENCODER = json.JSONEncoder(default=str)
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{16,}")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return SECRET.sub(PREFIX + "...", ENCODER.encode(line))


class QuietFile(RotatingFileHandler):
    """A full disk loses lines of the log, never a request. Each line is formatted once; the base does it twice."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            stream: Any = self.stream or self._open()  # none: the turn to the next file failed
            if stream.tell() + len(line) > self.maxBytes:
                self.doRollover()
                stream = self.stream
            stream.write(line)
            stream.flush()
            self.stream = stream
        except Exception:  # noqa: BLE001  # as the base does: told to handleError, which keeps the request going
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        pass

    def _open(self) -> Any:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream


@contextmanager
def logging_to(folder: Path) -> Generator[Path]:
    """While it lasts, everything of ours and of uvicorn goes to the file."""
    path = folder / FILE_NAME
    handler = QuietFile(path, maxBytes=FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
    handler.setFormatter(JsonLines())
    before = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in LOGGERS}
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield path
    finally:
        for name, (level, propagates) in before.items():
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
        handler.close()
