"""The event log of a run: `events.jsonl`, append-only, one JSON object a line.

The worker writes it, control reads it. A line that a killed worker left torn is closed with a newline before
anything is appended, so that each whole line stays readable; readers skip the torn one. What people want to read of it
goes to standard error as well, which is the job's log: everything but the steps, and of those one every ten seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tunesmith.spec.metrics import (
    AttemptEvent,
    CheckpointEvent,
    EpochEvent,
    Event,
    FinishedEvent,
    NoticeEvent,
    PhaseEvent,
    SplitMetrics,
    StepEvent,
)

EVENTS_NAME = "events.jsonl"
SECONDS_BETWEEN_STEPS = 10.0


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
        self._next_step_line = 0.0

    def append(self, event: Event) -> None:
        """Raises OSError (ENOSPC) if the line could not be written whole; the torn part is closed at the next start."""
        line = json.dumps(event.as_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        written = os.write(self._handle, line)
        if written != len(line):
            os.write(self._handle, line[written:])
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            if time.monotonic() < self._next_step_line:
                return
            self._next_step_line = time.monotonic() + SECONDS_BETWEEN_STEPS
        words = words_of(event)
        if words:
            with suppress(OSError):  # a log that cannot be written stops no run
                print(f"{now()} {words}", file=sys.stderr, flush=True)

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def words_of(event: Event) -> str:
    """One line for the job's log; empty for what has no place in one."""
    match event:
        case AttemptEvent():
            resumed = f", after step {event.resumed_at:,}" if event.resumed_at else ""
            return f"attempt {event.attempt} starts{resumed}"
        case PhaseEvent() if event.done is None:
            return event.phase + (f": {event.detail}" if event.detail else "")
        case StepEvent():
            return (
                f"step {event.step:,} of {event.steps:,}: loss {event.loss:.4f}, "
                f"{event.tokens_per_second:,.0f} tokens a second"
            )
        case EpochEvent():
            sides = [f"training {_scores(event.training)}"]
            if event.validation is not None:
                sides.append(f"validation {_scores(event.validation)}")
            return f"epoch {event.epoch}: {'; '.join(sides)}"
        case CheckpointEvent():
            return f"checkpoint after step {event.after_steps:,}"
        case NoticeEvent():
            return f"{event.code}: {event.message}"
        case FinishedEvent():
            return f"training is done; epoch {event.best_epoch} is the best"
        case _:
            return ""


def _scores(scores: SplitMetrics) -> str:
    return f"loss {scores.loss:.4f}, token accuracy {100 * scores.token_accuracy:.1f}%"
