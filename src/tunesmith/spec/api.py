"""What crosses the REST interface beside the nouns themselves: requests, pages, the error forms.

A page is an object with its list and `next`, the cursor of the page after it (None: there is none).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tunesmith.errors import ErrorForm
from tunesmith.spec.artifacts import Fate, LedgerRow, ManifestFile
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import (
    DEFAULT_PAGE,
    MAXIMUM_PAGE,
    AuditView,
    BaseModelView,
    DatasetView,
    Description,
    Label,
    LocationView,
    LogView,
    Name,
    NetworkView,
    Tags,
    TokenView,
    VersionSetView,
    VersionState,
    VersionView,
)
from tunesmith.spec.datasets import Notice, Preview, TokenSummary
from tunesmith.spec.jobs import JobRecord, JobState
from tunesmith.spec.plan import Plan
from tunesmith.spec.requests import VERSION_SET_PATTERN, FinetuneRequest
from tunesmith.spec.training import TrainingSettings

MAXIMUM_NUMBER = 2**53 - 1  # what every JSON reader keeps exactly
CURSOR_CHARACTERS = 400


# ---- errors


class ErrorAnswer(Spec):
    error: ErrorForm


class OpenAIErrorForm(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(Spec):
    error: OpenAIErrorForm


# ---- pages


class PageQuery(Spec):
    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAXIMUM_PAGE, description="Objects of one page.")
    after: str | None = Field(
        None, min_length=1, max_length=CURSOR_CHARACTERS, description="The `next` of the page before."
    )


class SearchQuery(PageQuery):
    search: str | None = Field(None, min_length=1, max_length=200, description="Text that names or descriptions hold.")


class TaggedQuery(SearchQuery):
    tag: str | None = Field(None, min_length=1, max_length=330, description="`key` or `key=value`.")


class VersionQuery(TaggedQuery):
    set: str | None = Field(None, pattern=VERSION_SET_PATTERN, description="Only versions of this set.")
    state: VersionState | None = Field(None, description="Deleted versions are listed only where asked for.")


class AuditQuery(PageQuery):
    actor: str | None = Field(None, min_length=1, max_length=200)
    action: str | None = Field(None, min_length=1, max_length=100, description="As in `version.delete`, or a noun.")
    object: str | None = Field(None, min_length=1, max_length=300)


class JobQuery(SearchQuery):
    state: JobState | None = None


class Page(Spec):
    next: str | None = Field(description="The cursor of the next page; null: this is the last.")


# ---- jobs


class JobSubmission(FinetuneRequest, TrainingSettings):
    """One flat object: what to fine-tune, and the training settings that differ from their defaults."""

    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier among jobs of one project.")
    run_limit_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="The worker's running time over all attempts, after which it fails."
    )

    def parts(self) -> tuple[FinetuneRequest, TrainingSettings]:
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return (
            FinetuneRequest.model_validate(
                {name: given[name] for name in FinetuneRequest.model_fields if name in given}
            ),
            TrainingSettings.model_validate(
                {name: given[name] for name in TrainingSettings.model_fields if name in given}
            ),
        )


class JobChanges(Spec):
    """Fields of the new job that differ from the old one's; each is checked as in a submission."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def given(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class JobProgress(Spec):
    step: int
    steps: int
    loss: float
    eta_seconds: float


class JobView(JobRecord):
    """A job's record with its place in the queue and how far it is."""

    position: int | None = Field(None, description="Place in the queue, from 1; null when it is not queued.")
    progress: JobProgress | None = None


class JobPage(Page):
    jobs: list[JobView]


class EventView(Spec):
    """An event with its number; its other fields are those of its kind."""

    model_config = ConfigDict(frozen=True, extra="allow")
    number: int
    time: str
    kind: str


class EventPage(Page):
    events: list[EventView]


class EventQuery(Spec):
    after: int = Field(0, ge=0, le=MAXIMUM_NUMBER, description="Only events with a higher number.")
    limit: int = Field(200, ge=1, le=2000)
    kinds: str | None = Field(
        None,
        pattern=r"^[a-z]{1,20}(,[a-z]{1,20}){0,19}$",
        description="Kinds with commas between, as in `epoch,state`.",
    )


class LogQuery(Spec):
    lines: int = Field(200, ge=1, le=10_000, description="Lines from the end.")
    search: str | None = Field(None, min_length=1, max_length=200, description="Only lines that hold this text.")


class LedgerQuery(Spec):
    fate: Fate | None = None
    after: int = Field(0, ge=0, le=MAXIMUM_NUMBER, description="The `next` of the page before.")
    limit: int = Field(DEFAULT_PAGE, ge=1, le=2000)


class LedgerPage(Page):
    rows: list[LedgerRow]


class LogLines(Spec):
    job_id: str
    lines: list[str]


# ---- catalog


class ModelPage(Page):
    models: list[BaseModelView]


class DatasetPage(Page):
    datasets: list[DatasetView]


class VersionPage(Page):
    versions: list[VersionView]


class VersionSetPage(Page):
    version_sets: list[VersionSetView]


class SetChange(Spec):
    description: Description


class SetNumber(Spec):
    number: int = Field(ge=1, le=999_999_999, description="Of the version that the alias is to name.")


class DeleteQuery(Spec):
    bytes: bool = Field(False, description="Delete its files too, not only its entry.")


class CompareQuery(Spec):
    left: str = Field(min_length=3, max_length=140, description="`set:number` or `set@alias`.")
    right: str = Field(min_length=3, max_length=140)


class FileList(Spec):
    files: list[ManifestFile]


class NewLocatedDataset(Spec):
    """A dataset that stays where it lies, in a declared location; its present version is what jobs will read."""

    name: Label | None = None
    location: Name
    path: str = Field(min_length=1, max_length=1024, description="Below the location.")
    columns: dict[str, str] = Field(default_factory=dict[str, str], max_length=4)
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])


class UploadQuery(Spec):
    name: Label | None = Field(None, description="Default: the file's name.")
    filename: str = Field(
        "rows.jsonl",
        min_length=1,
        max_length=255,
        description="Its ending tells the kind: .csv, .tsv and .parquet, all else is JSONL.",
    )
    columns: str | None = Field(
        None, min_length=3, max_length=1000, description="As in `prompt=question,completion=answer`."
    )


class PreviewQuery(Spec):
    model: str = Field(min_length=1, max_length=4096)
    render: Literal["auto", "chat", "plain"] = "auto"


class DatasetPreview(Spec):
    """How rows look to the model: pieces of text that it learns, and pieces that it only reads."""

    render: Literal["chat", "plain"]
    tokens: TokenSummary
    previews: list[Preview]
    notices: list[Notice]


class BrowseQuery(Spec):
    path: str = Field("", max_length=1024, description="Below the location; empty: its top.")
    after: str | None = Field(None, min_length=1, max_length=CURSOR_CHARACTERS * 4)
    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAXIMUM_PAGE)


class LocationEntry(Spec):
    name: str
    path: str = Field(description="Below the location, as a dataset names it.")
    kind: Literal["folder", "object"]
    size: int | None = None
    modified_at: str | None = None


class LocationEntries(Page):
    entries: list[LocationEntry]


class LocationCheck(Spec):
    name: str
    is_reachable: bool
    is_writable: bool
    keeps_versions: bool


class PlanView(Spec):
    plan: Plan
    notices: list[Notice]


class TokenWithSecret(TokenView):
    token: str | None = Field(description="Its text, told this once; null where the request was repeated.")


class LocationPage(Page):
    locations: list[LocationView]


class LogPage(Page):
    logs: list[LogView]


class NetworkPage(Page):
    networks: list[NetworkView]


class TokenPage(Page):
    tokens: list[TokenView]


class AuditPage(Page):
    audit: list[AuditView]


# ---- the service


class Health(Spec):
    status: str = Field(description="`ok`.")
    version: str


class DeviceView(Spec):
    name: str
    free_bytes: int
    jobs: list[str] = Field(description="Jobs that run on it.")


class SystemView(Spec):
    version: str
    disk_free_bytes: int = Field(description="Of the state folder's disk.")
    disk_total_bytes: int
    devices: list[DeviceView]
    jobs: dict[JobState, int] = Field(description="How many jobs are in each unfinished state.")
