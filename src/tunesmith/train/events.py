"""The event log of a run: `events.jsonl`, append-only, one JSON object a line.

The worker writes it, control reads it. A line that a killed worker left torn is closed with a newline before
anything is appended, so that each whole line stays readable; readers skip the torn one.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from tunesmith.spec.metrics import Event

EVENTS_NAME = "events.jsonl"


def now() -> str:
    """The present moment, UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """Appends events; every append is one write of one whole line. Owns its file handle."""

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder / EVENTS_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")

    def append(self, event: Event) -> None:
        """Raises OSError (ENOSPC) if the line could not be written whole; the torn part is closed at the next start."""
        line = json.dumps(event.as_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        written = os.write(self._handle, line)
        if written != len(line):
            os.write(self._handle, line[written:])

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
