"""What is measured: the three scores of a set of rows, an epoch, and the events a worker writes.

A line of `events.jsonl` is one of the event models below as JSON: `time` (UTC, ISO 8601) and `kind` first.
Only a step event has a `step` field.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter

from tunesmith.errors import ErrorForm
from tunesmith.spec.base import Spec
from tunesmith.spec.verdict import Verdict


class SplitMetrics(Spec):
    """Scores of one set of rows, dropout off. Definitions: docs/glossary.md."""

    loss: float = Field(
        description="Summed negative log-likelihood over completion tokens / their count (nats a token)."
    )
    token_accuracy: float = Field(
        ge=0, le=1, description="Share of completion tokens whose arg-max prediction is right."
    )
    completion_accuracy: float = Field(ge=0, le=1, description="Share of completions whose every token is right.")


class EpochMetrics(Spec):
    epoch: int = Field(ge=0, description="0 is the base model, before the first step.")
    training: SplitMetrics
    validation: SplitMetrics | None


def overfits_from(epochs: Sequence[EpochMetrics]) -> int | None:
    """The first epoch whose validation loss rose while its training loss fell; the base (epoch 0) is not compared."""
    trained = [each for each in epochs if each.epoch > 0]
    for before, after in pairwise(trained):
        if before.validation is None or after.validation is None:
            return None
        if after.validation.loss > before.validation.loss and after.training.loss < before.training.loss:
            return after.epoch
    return None


class Event(Spec):
    time: str


class AttemptEvent(Event):
    """A worker started. `resumed_at` is the number of steps that its checkpoint had done (0: from the beginning)."""

    kind: Literal["attempt"] = "attempt"
    attempt: int
    pid: int
    resumed_at: int


class PhaseEvent(Event):
    kind: Literal["phase"] = "phase"
    phase: Literal["preparing", "loading", "training", "evaluating", "publishing", "waiting"]
    detail: str | None = None
    done: int | None = None
    total: int | None = None


class StepEvent(Event):
    kind: Literal["step"] = "step"
    step: int = Field(ge=1)
    steps: int = Field(description="Steps in the whole run.")
    epoch: int = Field(ge=1)
    loss: float = Field(description="Running loss of this step's rows, dropout on; unrounded.")
    learning_rate: float
    gradient_norm: float = Field(description="Before clipping.")
    tokens: int = Field(description="Tokens of this step, prompt and completion.")
    learned_tokens: int
    tokens_per_second: float
    memory_bytes: int = Field(description="Peak so far: of the device on a GPU, resident size on a CPU.")
    eta_seconds: float


class EpochEvent(Event):
    kind: Literal["epoch"] = "epoch"
    epoch: int = Field(ge=0)
    training: SplitMetrics
    validation: SplitMetrics | None


class CurveEpoch(Spec):
    epoch: int
    step: int = Field(description="The step after which it was measured.")
    training: SplitMetrics
    validation: SplitMetrics | None


class Curves(Spec):
    """Series of a run; one place in all lists is one step. Thinned, never averaged, where there are too many."""

    job_id: str
    last_step: int = Field(description="The newest step so far; 0: none yet.")
    steps_in_range: int = Field(description="How many there are; as many as points, if all are shown.")
    step: list[int]
    loss: list[float]
    learning_rate: list[float]
    gradient_norm: list[float]
    tokens_per_second: list[float]
    memory_bytes: list[int]
    epochs: list[CurveEpoch] = Field(description="All of them, whatever the range; epoch 0 is the base.")


class CheckpointEvent(Event):
    kind: Literal["checkpoint"] = "checkpoint"
    folder: str
    after_steps: int


class NoticeEvent(Event):
    """Something that the user must be told and that does not end the run."""

    kind: Literal["notice"] = "notice"
    code: str
    message: str
    hint: str | None = None


class Sample(Spec):
    """One held-out prompt, answered greedily by base and tuned model.

    *_is_cut: the answer had not ended when it was long enough.
    """

    prompt: str
    expected: str
    base: str
    tuned: str
    base_is_cut: bool = False
    tuned_is_cut: bool = False

    @property
    def base_shown(self) -> str:
        return self.base + (" …" if self.base_is_cut else "")

    @property
    def tuned_shown(self) -> str:
        return self.tuned + (" …" if self.tuned_is_cut else "")


class PathEvent(Event):
    """Which code computes the layers from now on, and how. Told after loading, and when memory changed it."""

    kind: Literal["path"] = "path"
    path: Literal["fast", "generic"]
    reason: str
    is_compiled: bool
    is_replayed: bool = Field(False, description="Passes are recorded as CUDA graphs and replayed.")
    micro_batch_size: int
    checkpointed_layers: int


class SamplesEvent(Event):
    kind: Literal["samples"] = "samples"
    samples: list[Sample]


class VerdictEvent(Event):
    kind: Literal["verdict"] = "verdict"
    verdict: Verdict


class FailureEvent(Event):
    """The last event of an attempt that failed. `family` is the error's class; `retry`: another attempt may help."""

    kind: Literal["failure"] = "failure"
    error: ErrorForm
    family: str
    retry: bool


class FinishedEvent(Event):
    """The artifact is whole: what the result object needs beyond the epoch events."""

    kind: Literal["finished"] = "finished"
    best_epoch: int
    tokens_per_second: float = Field(description="All training tokens / seconds spent in steps, over all attempts.")
    peak_memory_bytes: int


class StateEvent(Event):
    """The job's state changed; written with the change, in one transaction, by control."""

    kind: Literal["state"] = "state"
    state: str
    previous: str | None


AnyEvent = Annotated[
    AttemptEvent
    | PhaseEvent
    | StepEvent
    | EpochEvent
    | CheckpointEvent
    | NoticeEvent
    | PathEvent
    | SamplesEvent
    | VerdictEvent
    | FailureEvent
    | FinishedEvent
    | StateEvent,
    Field(discriminator="kind"),
]
EVENT_KINDS: tuple[str, ...] = tuple(event.model_fields["kind"].default for event in get_args(get_args(AnyEvent)[0]))
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
