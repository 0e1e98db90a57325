"""What a job's events add up to.

In: the events that the database keeps of a job. Out: a `History`, the result object, the metrics of its model version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tunesmith.jobs.records import JobFolder, read_preparation
from tunesmith.jobs.store import JobStore, NumberedEvent
from tunesmith.spec.catalog import VersionMetrics
from tunesmith.spec.datasets import RowCounts
from tunesmith.spec.jobs import BaseMetrics, JobResult
from tunesmith.spec.metrics import (
    EVENT_KINDS,
    AnyEvent,
    AttemptEvent,
    EpochEvent,
    FailureEvent,
    FinishedEvent,
    NoticeEvent,
    PathEvent,
    PhaseEvent,
    Sample,
    SamplesEvent,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.metrics import EpochMetrics as Epoch
from tunesmith.spec.verdict import Verdict

OTHER_KINDS = tuple(kind for kind in EVENT_KINDS if kind != "step")
RESULT_KINDS = ("epoch", "path", "verdict", "finished")


@dataclass(slots=True)
class History:
    """What a job's events say so far. After a resume an epoch may be reported again: the last report counts."""

    epochs: dict[int, Epoch] = field(default_factory=dict[int, Epoch])
    attempts: int = 0
    phase: str | None = None
    last_step: StepEvent | None = None
    notices: list[NoticeEvent] = field(default_factory=list[NoticeEvent])
    path: PathEvent | None = None
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
            case PathEvent():
                self.path = event
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


def past_events(store: JobStore, job_id: str) -> list[NumberedEvent]:
    """What a job's log tells, in order: every event, but of its steps the newest alone (there may be 100,000)."""
    found = store.events(job_id, kinds=OTHER_KINDS) + store.events(job_id, kinds=("step",), newest=True, limit=1)
    return sorted(found, key=lambda each: each.number)


def read_history(store: JobStore, job_id: str) -> History:
    history = History()
    for each in past_events(store, job_id):
        history.add(each.event)
    return history


def version_metrics(history: History, *, rows: RowCounts | None) -> VersionMetrics:
    """The metrics panel of the job's model version, as far as it is known."""
    finished = history.finished
    return VersionMetrics(
        epochs=[history.epochs[number] for number in sorted(history.epochs)],
        best_epoch=finished.best_epoch if finished else None,
        rows=rows,
        tokens_per_second=finished.tokens_per_second if finished else None,
        peak_memory_bytes=finished.peak_memory_bytes if finished else None,
    )


def row_counts(folder: JobFolder) -> RowCounts | None:
    """What became of the dataset rows; None before the job was prepared."""
    return read_preparation(folder).counts if folder.preparation.exists() else None


def job_result(store: JobStore, folder: JobFolder) -> JobResult:
    """The result object of a job; the same however often it is asked for."""
    record = store.read(folder.job_id)
    history = History()
    for each in store.events(folder.job_id, kinds=RESULT_KINDS):
        history.add(each.event)
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
        rows=row_counts(folder),
        tokens_per_second=finished.tokens_per_second if finished else None,
        peak_memory_bytes=finished.peak_memory_bytes if finished else None,
        path=history.path.path if history.path else None,
        path_reason=history.path.reason if history.path else None,
        verdict=history.verdict,
        failure=record.failure,
    )
