"""What crosses the REST interface beside the nouns themselves: requests, pages, the error forms.

A page is an object with its list and `next`, the cursor of the page after it (None: there is none).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tunesmith.errors import ErrorForm
from tunesmith.spec.access import PolicyView, ProjectView
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
from tunesmith.spec.datasets import (
    LINES,
    MAXIMUM_PREVIEWS,
    DatasetReport,
    Finding,
    Notice,
    Preparation,
    Preview,
    TokenSummary,
)
from tunesmith.spec.hub import DownloadState, DownloadView
from tunesmith.spec.jobs import JobRecord, JobResult, JobState
from tunesmith.spec.metrics import NoticeEvent, Sample
from tunesmith.spec.names import EVENT_KINDS, VersionSetName
from tunesmith.spec.plan import Plan
from tunesmith.spec.quotas import QuotaView
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

MAXIMUM_NUMBER = 2**53 - 1  # what every JSON reader keeps exactly
ROW_CHARACTERS = 4000  # of a row's text in a page of rows: a row may have 8 MB
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
    set: VersionSetName | None = Field(None, description="Only versions of this set.")
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


class AcceptedJob(JobView):
    """A job that was submitted just now, with what was said of it."""

    notices: list[Notice] = Field(default_factory=list[Notice])


class JobDetail(JobResult):
    """All about one job: its result as far as it is known, what was asked for, what was decided and said."""

    record: JobView
    request: FinetuneRequest
    settings: TrainingSettings = Field(description="As asked for; once the job was prepared, as decided.")
    plan_reasons: dict[str, str] = Field(description="Setting -> why the plan chose its value.")
    notices: list[NoticeEvent]
    samples: list[Sample]
    folder: str | None = Field(description="On the server's machine; null for who could not look at it.")


class JobDeletion(Spec):
    """What deleting a job removes, and what it keeps."""

    job_id: str
    model_version: str
    bytes: int = Field(description="Of its folder.")
    goes: list[str]
    stays: list[str]


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
    kinds: Annotated[str, EVENT_KINDS] | None = Field(
        None,
        description="Kinds with commas between, as in `epoch,state`.",
    )


class CurvesQuery(Spec):
    points: int = Field(400, ge=4, le=4000, description="At most this many steps: the first, the last, the extremes.")
    first: int = Field(1, ge=1, le=MAXIMUM_NUMBER, description="Only steps from this one on.")
    last: int | None = Field(None, ge=1, le=MAXIMUM_NUMBER, description="Only steps up to this one.")


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


class NamedLogLine(Spec):
    job_id: str
    line: str


class NamedLogLines(Spec):
    """The newest lines of a named log, of all its jobs in the order of their submission."""

    log: str
    lines: list[NamedLogLine]


# ---- catalog


class ModelPage(Page):
    models: list[BaseModelView]


class DownloadQuery(PageQuery):
    state: DownloadState | None = None


class DownloadPage(Page):
    downloads: list[DownloadView]


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
    lines: Annotated[str, Field(max_length=400), LINES] | None = Field(
        None,
        description=f"Rows to show, by the lines at which they start, as in `3,17`; at most {MAXIMUM_PREVIEWS}.",
    )  # fmt: skip
    spans: bool = Field(False, description="Tell each row token by token, too.")


class DatasetPreview(Spec):
    """How rows look to the model: pieces of text that it learns, and pieces that it only reads."""

    render: Literal["chat", "plain"]
    tokens: TokenSummary
    previews: list[Preview]
    notices: list[Notice]


class RowQuery(Spec):
    after: int = Field(0, ge=0, le=MAXIMUM_NUMBER, description="Only rows behind this line; `next` of the page before.")
    limit: int = Field(20, ge=1, le=MAXIMUM_PAGE)


class RowText(Spec):
    role: str = Field(description="`prompt`, `completion`, or the role of a turn.")
    text: str = Field(description=f"Its first {ROW_CHARACTERS:,} characters.")
    characters: int = Field(description="Of the whole text.")


class DatasetRow(Spec):
    line: int = Field(description="Physical line where it starts; in Parquet its number.")
    texts: list[RowText]
    warnings: list[Finding] = Field(description="What the check found in this row.")


class DatasetRowPage(Page):
    rows: list[DatasetRow]


class DatasetUses(Spec):
    """What a dataset is for: what was trained on it, and its other versions."""

    versions: list[VersionView] = Field(description="The newest first, at most 200: of its id, or of equal rows.")
    siblings: list[DatasetView] = Field(
        description="Datasets of the same name, or of the same place; the newest first, at most 50."
    )


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


class Uses(Spec):
    """What uses a location, a log or a network now, and so forbids its removal. The newest first, at most 200 each."""

    datasets: list[str] = Field(default_factory=list[str], description="Ids; of a location alone.")
    jobs: list[str] = Field(default_factory=list[str], description="Ids of unfinished jobs.")
    of_other_projects: int = Field(default=0, description="Jobs and datasets that the caller does not see.")


class PlanView(Spec):
    """previews: some rows as the model would see them. reports: of the datasets, as `dataset check` tells them."""

    plan: Plan
    notices: list[Notice]
    preparation: Preparation
    reports: list[DatasetReport]
    version_set: str = Field(description="The set that the new version would join.")


class TokenWithSecret(TokenView):
    token: str | None = Field(description="Its text, told this once; null where the request was repeated.")


class LocationPage(Page):
    locations: list[LocationView]


class LogPage(Page):
    logs: list[LogView]


class NetworkPage(Page):
    networks: list[NetworkView]


class ProjectPage(Page):
    projects: list[ProjectView]


class PolicyPage(Page):
    policies: list[PolicyView]


class RightsQuery(Spec):
    """What one may do: of whom, where, and of what."""

    who: str | None = Field(None, min_length=1, max_length=128, description="A token's name; absent: the caller's.")
    project: str | None = Field(None, min_length=1, max_length=63, description="Absent: the request's own.")
    action: str | None = Field(None, min_length=1, max_length=63, description="This permission alone.")


class TokenPage(Page):
    tokens: list[TokenView]


class QuotaPage(Page):
    quotas: list[QuotaView]


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


class GpuView(Spec):
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str


class MachineView(Spec):
    """What the service's machine has now."""

    system: str
    processor: str
    cores: int = Field(description="That the service may use.")
    total_memory_bytes: int
    free_memory_bytes: int
    gpus: list[GpuView]
    torch_version: str | None
    trains_on: Literal["GPU", "CPU"]


class ShapeDevice(Spec):
    name: str = Field(description="As jobs name it: `CPU`, `GPU 0`.")
    model: str = Field(description="Of the processor or the GPU.")
    total_bytes: int = Field(description="Of memory.")
    free_bytes: int
    jobs: list[str] = Field(description="Jobs that run on it.")


class ShapeView(Spec):
    """A kind of machine that a job may ask for by `shape`, and what is free on it."""

    name: str
    is_discovered: bool = Field(description="The machine of the service, found by itself.")
    system: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    accelerator: str | None = Field(description="The GPUs' model; null: jobs compute on the processor.")
    devices: list[ShapeDevice]
    maximum_replicas: int = Field(description="How many of it one job may have.")


class ShapePage(Page):
    shapes: list[ShapeView]


class SystemView(Spec):
    version: str
    started_at: str
    state_folder: str = Field(description="Where the state lies on the service's machine.")
    disk_warning_bytes: int = Field(description="With less of it free, a notice says so.")
    disk_free_bytes: int = Field(description="Of the state folder's disk.")
    disk_total_bytes: int
    database_bytes: int = Field(description="Of the state database on the disk.")
    machine: MachineView
    devices: list[DeviceView]
    jobs: dict[JobState, int] = Field(description="How many jobs are in each unfinished state.")
    answering: list[str] = Field(description="Base models that a worker holds in memory for answers.")
    notices: list[Notice] = Field(description="What somebody should see to, such as a disk that fills up.")


# ---- permissions


class PermittedRoute(Spec):
    method: str
    path: str
    summary: str


class Allowance(Spec):
    """A policy that allows a permission, to whom and where."""

    policy: str
    who: list[str]
    projects: list[str]


class Permission(Spec):
    """One thing that somebody may be allowed to do."""

    permission: str = Field(description="`noun.verb`; `public`: anybody, without a token.")
    who: list[str] = Field(
        description="Roles that may whatever the policies say; `anybody` for what needs no token.",
    )
    policies: list[Allowance] = Field(description="By which others may; who is no administrator sees his own.")
    is_of_project: bool = Field(description="It is decided in each project; else once for the whole server.")
    is_grantable: Literal["yes", "by name", "no"] = Field(
        description="Whether a policy can allow it: also as a part of `use`, by its whole name alone, or never."
    )
    routes: list[PermittedRoute]


class PermissionList(Spec):
    permissions: list[Permission]
