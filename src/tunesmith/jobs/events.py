"""Following a job's `events.jsonl`, and what its events add up to.

In: the file that a worker appends to. Out: whole events in order, a `History`, and the result object. Control writes
here only while no worker runs (its own notices and phases). A last line without its newline is not yet an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tunesmith.jobs.records import JobFolder, now, read_preparation, read_record
from tunesmith.spec.jobs import BaseMetrics, JobResult
from tunesmith.spec.metrics import (
    EVENT,
    AnyEvent,
    AttemptEvent,
    EpochEvent,
    FailureEvent,
    FinishedEvent,
    NoticeEvent,
    PhaseEvent,
    Sample,
    SamplesEvent,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.metrics import EpochMetrics as Epoch
from tunesmith.spec.verdict import Verdict

READ_BYTES = 1 << 20


class EventTail:
    """Reads events past a cursor. A line that a dying worker cut is skipped, and said as a notice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def read(self) -> Iterator[AnyEvent]:
        """The events that are whole since the last call."""
        try:
            handle = self._path.open("rb")
        except FileNotFoundError:
            return
        with handle:
            handle.seek(self._position)
            while block := handle.read(READ_BYTES):
                self._position += len(block)
                *lines, self._rest = (self._rest + block).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _event(line)


def _event(line: bytes) -> AnyEvent:
    try:
        return EVENT.validate_json(line)
    except ValidationError:
        return NoticeEvent(
            time=now(),
            code="EVENT_CUT",
            message=f"A line of events.jsonl ({len(line)} bytes) was cut when its worker died; it was skipped.",
        )


def append_event(path: Path, event: AnyEvent) -> None:
    """Append an event of control's own while no worker runs; a cut last line is closed first."""
    with path.open("ab+") as handle:
        if handle.tell() > 0:
            handle.seek(-1, 2)
            if handle.read(1) != b"\n":
                handle.write(b"\n")
        handle.write(event.model_dump_json().encode() + b"\n")


@dataclass(slots=True)
class History:
    """What a job's events say so far. After a resume an epoch may be reported again: the last report counts."""

    epochs: dict[int, Epoch] = field(default_factory=dict[int, Epoch])
    attempts: int = 0
    phase: str | None = None
    last_step: StepEvent | None = None
    notices: list[NoticeEvent] = field(default_factory=list[NoticeEvent])
    samples: list[Sample] = field(default_factory=list[Sample])
    verdict: Verdict | None = None
    failure: FailureEvent | None = None
    finished: FinishedEvent | None = None

    def add(self, event: AnyEvent) -> None:
        match event:
            case AttemptEvent():
                self.attempts = max(self.attempts, event.attempt)
                self.failure = None  # a new attempt has not failed yet
            case PhaseEvent():
                self.phase = event.phase
            case StepEvent():
                self.last_step = event
            case EpochEvent():
                self.epochs[event.epoch] = Epoch(
                    epoch=event.epoch, training=event.training, validation=event.validation
                )
            case NoticeEvent():
                self.notices.append(event)
            case SamplesEvent():
                self.samples = event.samples
            case VerdictEvent():
                self.verdict = event.verdict
            case FailureEvent():
                self.failure = event
            case FinishedEvent():
                self.finished = event
            case _:
                pass


def read_history(folder: JobFolder) -> History:
    history = History()
    for event in EventTail(folder.events).read():
        history.add(event)
    return history


def job_result(folder: JobFolder) -> JobResult:
    """The result object of a job from its folder alone; the same however often it is asked for."""
    record = read_record(folder)
    history = read_history(folder)
    base = history.epochs.get(0)
    finished = history.finished
    return JobResult(
        job_id=record.job_id,
        state=record.state,
        model_version=record.model_version,
        artifact_uri=record.artifact_uri,
        base=BaseMetrics(training=base.training, validation=base.validation) if base else None,
        epochs=[history.epochs[number] for number in sorted(history.epochs) if number > 0],
        best_epoch=finished.best_epoch if finished else None,
        rows=read_preparation(folder).counts,
        tokens_per_second=finished.tokens_per_second if finished else None,
        peak_memory_bytes=finished.peak_memory_bytes if finished else None,
        verdict=history.verdict,
        failure=record.failure,
    )
