"""Jobs: states and their allowed moves, the job file a worker gets, the result object a user gets."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, cast

from pydantic import Field, field_validator

from tunesmith.errors import ErrorForm
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DEFAULT_PROJECT, LOCAL_USER
from tunesmith.spec.datasets import DatasetInput, RowCounts
from tunesmith.spec.metrics import EpochMetrics, SplitMetrics
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings
from tunesmith.spec.verdict import Verdict

MAXIMUM_ATTEMPTS = 3


class JobState(StrEnum):
    ACCEPTED = "ACCEPTED"
    IN_PROGRESS = "IN_PROGRESS"
    CANCELING = "CANCELING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.ACCEPTED: frozenset({JobState.IN_PROGRESS, JobState.CANCELED, JobState.FAILED}),
    JobState.IN_PROGRESS: frozenset({JobState.CANCELING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.CANCELING: frozenset({JobState.CANCELED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}
FINAL_STATES = frozenset(state for state, moves in MOVES.items() if not moves)


class InitialAdapter(Spec):
    """The adapter of a model version that training goes on from."""

    model_version: str
    folder: str = Field(description="A local folder with the adapter's two files.")
    sha256: str = Field(description="Of its adapter_model.safetensors.")


class JobFile(Spec):
    """`job.json`: all that a training worker needs, nothing left open. Its folder is the run's folder.

    Beside it the worker writes `events.jsonl`, `checkpoints/` and `artifact/`. The same file started again resumes.
    """

    format: int = 1
    job_id: str
    model_version: str = Field(description="Name of the model version, `name:number`.")
    name: str
    description: str = ""
    created_at: str
    base: ModelFacts
    datasets: list[DatasetInput]
    initial_adapter: InitialAdapter | None = Field(None, description="None: a new adapter, which changes nothing yet.")
    cache_folder: str = Field(description="Token caches live here, keyed by all that touches tokens.")
    settings: TrainingSettings
    plan_reasons: dict[str, str] = Field(default_factory=dict, description="Setting -> why the plan chose its value.")
    threads: int = Field(ge=1, description="CPU threads; part of the promise of bit-exact resume.")
    device: str = Field("cpu", description="`cpu` or `cuda`.")
    versions: dict[str, str] = Field(description="Versions of the libraries that touch numbers, and the machine type.")

    @field_validator("settings", mode="before")
    @classmethod
    def _by_the_one_path_of_before(cls, given: Any) -> Any:
        """A job of a release that had one path only goes on by it."""
        if not isinstance(given, dict):
            return given
        one_path: dict[str, Any] = {"path": "generic", "compile_layers": "off", "checkpointed_layers": 0}
        return one_path | cast("dict[str, Any]", given)


class BaseMetrics(Spec):
    training: SplitMetrics
    validation: SplitMetrics | None


class JobResult(Spec):
    """The result object of `finetune --json`."""

    job_id: str
    state: JobState
    model_version: str
    artifact_uri: str | None
    base: BaseMetrics | None
    epochs: list[EpochMetrics]
    best_epoch: int | None
    rows: RowCounts | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    path: str | None = Field(None, description="Code that computed the layers: fast or generic.")
    path_reason: str | None = None
    verdict: Verdict | None
    failure: ErrorForm | None


class JobRecord(Spec):
    """What `jobs/` keeps of one job beside its events. Changed by `jobs/store.py` alone."""

    job_id: str
    state: JobState
    phase: str | None = None
    waiting_reason: str | None = None
    retry_at: float | None = Field(
        None, description="Seconds since the epoch at which a waiting job goes on by itself; null: when resumed."
    )
    is_foreground: bool = Field(False, description="The command that made it looks after it; the queue does not.")
    is_paused: bool = False
    name: str
    model_version: str
    project: str = DEFAULT_PROJECT
    submitted_by: str = LOCAL_USER
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier among jobs of one project.")
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    attempts: int = 0
    worker_pid: int | None = None
    worker_started_at: float | None = Field(
        None, description="Start of that process on the system's own clock, to tell it from a re-used pid."
    )
    run_limit_seconds: int | None = None
    run_seconds: float = Field(0.0, description="How long its workers ran, over all attempts that ended.")
    log: str | None = None
    results_uri: str
    artifact_uri: str | None = None
    command: list[str] = Field(default_factory=list)
    failure: ErrorForm | None = None
    failure_family: str | None = None
    num_events: int = 0
