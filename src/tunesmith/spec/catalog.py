"""The catalog's nouns as they cross a boundary: base models, datasets, model versions, sets, aliases and the rest.

A `...View` is what a reader gets; a `...Change` holds what a writer may change, where `None` leaves a field as it is.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tunesmith.spec.artifacts import ManifestFile
from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import DatasetReport, Notice, Role, RowCounts, RowKind
from tunesmith.spec.metrics import EpochMetrics, Sample, SplitMetrics
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.names import CREDENTIALS, INTERFACE, ROLE_PREFIX, TAG, ModelName, Name, VersionSetName
from tunesmith.spec.quotas import EVERYBODY
from tunesmith.spec.requests import clean_text, one_clean_line
from tunesmith.spec.training import TrainingSettings
from tunesmith.spec.verdict import Outcome, Verdict


class VersionState(StrEnum):
    """CREATING ("In progress") from submission; ACTIVE only after every byte of the artifact was verified."""

    CREATING = "CREATING"
    ACTIVE = "ACTIVE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    DELETED = "DELETED"


VERSION_MOVES: dict[VersionState, frozenset[VersionState]] = {
    VersionState.CREATING: frozenset({VersionState.ACTIVE, VersionState.FAILED, VersionState.CANCELED}),
    VersionState.ACTIVE: frozenset({VersionState.DELETED}),
    VersionState.FAILED: frozenset({VersionState.DELETED}),
    VersionState.CANCELED: frozenset({VersionState.DELETED}),
    VersionState.DELETED: frozenset(),
}

DEFAULT_PROJECT = "default"
LOCAL_USER = "local"  # who works at this machine's own command line

MAXIMUM_PAGE = 200
DEFAULT_PAGE = 50
MAXIMUM_TAGS = 50
TAG_VALUE_CHARACTERS = 256


def _tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > MAXIMUM_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAXIMUM_TAGS} are kept")
    for key, value in tags.items():
        TAG.check(key)
        if len(value) > TAG_VALUE_CHARACTERS:
            raise ValueError(f"the tag {key}: its value has {len(value)} characters, at most {TAG_VALUE_CHARACTERS}")
        one_clean_line(value)
    return dict(sorted(tags.items()))


def _network(cidr: str) -> str:
    try:
        return str(ipaddress.ip_network(cidr))
    except ValueError as error:
        raise ValueError(f"{cidr[:60]!r} is no network in CIDR notation ({error}); for example 10.0.0.0/24") from error


def _interface(text: str) -> str:
    return INTERFACE.check(text) if text else text


def _credentials(text: str) -> str:
    return CREDENTIALS.check(text) if text else text


def _one_token(text: str) -> str:
    """Quotas and policies name tokens: a name must not read as many of them."""
    if text == EVERYBODY:
        raise ValueError(f"{EVERYBODY} means everybody, where quotas and policies are set")
    if text.startswith(ROLE_PREFIX):
        raise ValueError(f"{ROLE_PREFIX} begins what means all tokens of a role")
    return text


Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(one_clean_line)]
Description = Annotated[str, Field(max_length=4000), AfterValidator(clean_text)]
Tags = Annotated[dict[str, str], AfterValidator(_tags)]
Cidr = Annotated[str, Field(max_length=64), AfterValidator(_network)]


class NounChange(Spec):
    """What may be changed of a base model, a dataset or a model version."""

    name: Label | None = None
    description: Description | None = None
    tags: Tags | None = Field(None, description="All tags; they replace those that were there.")


# ---- base models


class NewBaseModel(Spec):
    name: ModelName = Field(description="`name` or `owner/name`.")
    path: str = Field(
        min_length=1,
        max_length=4096,
        description="A folder on the service's machine, LOCATION:path of a declared location, or s3://bucket/prefix.",
    )
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])
    licence_note: Description = Field(default="", description="What your organisation has to say about its licence.")


class BaseModelChange(Spec):
    description: Description | None = None
    tags: Tags | None = None
    licence_note: Description | None = None


class BaseModelView(Spec):
    name: str
    path: str = Field(description="A folder, or the URI of a bucket's prefix.")
    description: str
    tags: dict[str, str]
    licence_note: str = ""
    hub_id: str | None = Field(default=None, description="The hub's model that was downloaded.")
    revision: str | None = Field(default=None, description="The commit on the hub.")
    is_bundled: bool = Field(description="It comes with Tunesmith and cannot be deleted.")
    facts: ModelFacts
    created_at: str | None = Field(description="When it was registered; null for the bundled one.")


# ---- datasets


class NewDataset(Spec):
    """What is known of a dataset once it was checked."""

    name: Label
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])
    sha256: str = Field(description="Of the file's bytes.")
    columns: dict[str, str] = Field(default_factory=dict[str, str], description="Our column -> the file's column.")
    report: DatasetReport
    file_name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="As kept in the dataset's folder; its ending counts."
    )
    location: Name | None = Field(None, description="The declared location that it was registered from.")
    source_uri: str | None = Field(None, description="Where its bytes stay; None: uploaded.")
    source_version_id: str | None = None


class DatasetView(Spec):
    dataset_id: str
    name: str
    description: str
    tags: dict[str, str]
    kind: RowKind | None
    rows: int
    bytes: int
    sha256: str
    content_hash: str = Field(description="SHA-256 over the rows' content hashes in order.")
    columns: dict[str, str]
    file_name: str
    location: str | None
    source_uri: str | None
    source_version_id: str | None
    num_warnings: int
    created_at: str


# ---- model versions


class LineageDataset(Spec):
    role: Role
    name: str = Field(description="What the user called it.")
    dataset_id: str | None = Field(None, description="In the catalog; None: a file of its own.")
    sha256: str | None = None
    content_hash: str
    rows: int


class Registration(Spec):
    """Of an adapter that was trained elsewhere: where it came from, and how its base was found to be the right one."""

    source: str = Field(description="The folder, `LOCATION:path` or URI that it was taken from.")
    base_named: str | None = Field(description="What its config calls its base.")
    matched_by: Literal["hash", "shapes"] = Field(
        description="hash: its file names the digest of the base. shapes: it names none, and every matrix fits."
    )


class Lineage(Spec):
    """What a model version was made from: enough to make it again, unless it was trained elsewhere."""

    base_name: str
    base_digest: str
    datasets: list[LineageDataset]
    settings: TrainingSettings
    parent: str | None = Field(None, description="The model version whose adapter training went on from.")
    library_versions: dict[str, str]
    registration: Registration | None = Field(
        default=None,
        description="Trained elsewhere: of the settings only the adapter's form and the rendering are known.",
    )


class VersionMetrics(Spec):
    """The metrics panel: epoch 0 is the base, then one entry an epoch, as soon as it ended."""

    epochs: list[EpochMetrics]
    best_epoch: int | None = None
    rows: RowCounts | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None


class NewVersion(Spec):
    """An adapter in PEFT's format that was trained elsewhere, to become a model version."""

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="Its folder: on the service's machine, LOCATION:path of a declared location, or s3://bucket/prefix.",
    )
    version_set: VersionSetName
    base: ModelName | None = Field(
        default=None,
        description="A base model of the catalog; default: the one that the adapter's config names.",
    )  # fmt: skip
    render: Literal["auto", "chat", "plain"] = Field(
        default="auto",
        description="How it was trained to read prompts; auto: by the base's chat template, where it has one.",
    )
    name: Annotated[str, Field(max_length=128), AfterValidator(one_clean_line)] = ""
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])
    metrics: VersionMetrics | None = Field(default=None, description="What its training measured, if that is known.")
    results: str | None = Field(
        default=None, min_length=1, max_length=4096,
        description="Where its copy goes, as LOCATION:path or a URI; default: the state folder.",
    )  # fmt: skip


class VersionView(Spec):
    model_version: str = Field(description="`set:number`.")
    version_set: str
    number: int
    project: str
    state: VersionState
    shown_state: str = Field(description="The state in the console's words: CREATING is `In progress`.")
    name: str
    description: str
    tags: dict[str, str]
    aliases: list[str]
    base_name: str
    job_id: str | None = Field(description="The job that made it; null: registered from elsewhere.")
    is_job_deleted: bool = False
    parent: str | None
    results_uri: str
    artifact_uri: str | None = Field(description="The folder or prefix of the manifest; only of ACTIVE versions.")
    best_epoch: int | None
    outcome: Outcome | None = Field(description="Of the verdict.")
    best: SplitMetrics | None = Field(None, description="Scores of the best epoch on the validation rows.")
    created_at: str
    changed_at: str


class VersionDetail(Spec):
    version: VersionView
    lineage: Lineage | None
    metrics: VersionMetrics
    verdict: Verdict | None
    files: list[ManifestFile]
    children: list[str] = Field(description="Versions whose training went on from this one.")
    samples: list[Sample] = Field(
        default_factory=list[Sample], description="Held-out prompts, answered greedily by base and tuned."
    )


class LineageNode(Spec):
    """A base, a dataset or a model version of the picture of how a version came to be."""

    id: str = Field(description="Of this answer alone: edges name it.")
    kind: Literal["base", "dataset", "version"]
    name: str
    detail: str = Field(description="One line: how large, or in what state.")
    reference: str | None = Field(description="Its name or id in the catalog; null: it is not, or no longer, there.")
    is_asked: bool = Field(False, description="The version that was asked for.")


class LineageEdge(Spec):
    source: str
    target: str
    role: Literal["base", "training", "validation", "test", "parent"]


class LineageGraph(Spec):
    """Where a version comes from and what went on from it. Every edge leads from what was used to what was made."""

    model_version: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    is_cut: bool = Field(description="There is more than is shown: older ancestors, or further descendants.")


class NewVersionSet(Spec):
    name: VersionSetName
    description: Description = ""


class AliasView(Spec):
    alias: str
    version_set: str
    number: int
    model_version: str
    generation: int = Field(description="Grows with every move, so that who serves it can tell.")
    changed_at: str


class VersionSetView(Spec):
    name: str
    description: str
    versions: int = Field(description="Those that were not deleted.")
    last_number: int = Field(description="Highest number given; numbers are never given twice.")
    aliases: list[AliasView]
    created_at: str


# ---- comparing


class Difference(Spec):
    name: str
    left: Any
    right: Any


class ScorePair(Spec):
    """One score of both best epochs on the validation rows."""

    name: str
    left: float | None
    right: float | None
    difference: float | None = Field(description="right - left.")


class Comparison(Spec):
    left: VersionDetail
    right: VersionDetail
    settings: list[Difference] = Field(description="Only what differs.")
    data: list[Difference] = Field(description="Datasets by role and the base, only what differs.")
    scores: list[ScorePair]
    same_validation_rows: bool | None = Field(description="None: not known, or one has no validation rows.")
    notices: list[Notice]


# ---- administration


class NewLocation(Spec):
    name: Name
    uri: str = Field(min_length=1, max_length=2048, description="`file:///folder` or `s3://bucket/prefix`.")
    endpoint_url: str | None = Field(None, max_length=2048, description="Of an S3-compatible store that is not AWS.")
    region: str | None = Field(None, max_length=64)
    credentials: Annotated[str, CREDENTIALS] | None = Field(
        None,
        description="Where the credentials stand: env:PREFIX, profile:NAME or file:PATH. Never a secret.",
    )
    description: Description = ""


class LocationChange(Spec):
    uri: str | None = Field(None, min_length=1, max_length=2048, description="Only while nothing uses the location.")
    endpoint_url: str | None = Field(None, max_length=2048, description="An empty text: none any more.")
    region: str | None = Field(None, max_length=64, description="An empty text: none any more.")
    credentials: Annotated[str, AfterValidator(_credentials)] | None = Field(
        None, description="As in a new location; an empty text: none any more."
    )
    description: Description | None = None


class LocationView(Spec):
    name: str
    uri: str
    endpoint_url: str | None
    region: str | None
    credentials: str | None
    description: str
    created_at: str


class NewLog(Spec):
    name: Name
    description: Description = ""
    retention_days: int = Field(30, ge=1, le=3650, description="A finished job's log is removed after this.")
    maximum_bytes: int = Field(
        1 << 30, ge=1 << 20, le=1 << 40, description="Of all jobs' logs together; the oldest finished ones go first."
    )


class LogChange(Spec):
    description: Description | None = None
    retention_days: int | None = Field(None, ge=1, le=3650)
    maximum_bytes: int | None = Field(None, ge=1 << 20, le=1 << 40)


class LogView(Spec):
    name: str
    description: str
    retention_days: int
    maximum_bytes: int
    created_at: str


class NewNetwork(Spec):
    name: Name
    cidr: Cidr = Field(description="The network of the machines, as in 10.0.0.0/24.")
    interface: Annotated[str, INTERFACE] | None = Field(None, description="Name of the interface, as in eth0.")
    description: Description = ""


class NetworkChange(Spec):
    cidr: Cidr | None = None
    interface: Annotated[str, AfterValidator(_interface)] | None = Field(
        None, description=f"{INTERFACE.words}; an empty text: none any more."
    )
    description: Description | None = None


class NetworkView(Spec):
    name: str
    cidr: str
    interface: str | None
    description: str
    created_at: str


class TokenRole(StrEnum):
    """An administrator may do everything; a user what policies allow (`server/auth.py`)."""

    ADMIN = "admin"
    USER = "user"


class NewToken(Spec):
    name: Annotated[Label, AfterValidator(_one_token)]
    role: TokenRole = Field(TokenRole.USER, description="admin: everything; user: what policies allow.")
    days: int | None = Field(None, ge=1, le=3650, description="Days until it expires; absent: never.")


class TokenView(Spec):
    token_id: str
    name: str
    role: TokenRole
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    policies: list[str] = Field(
        default_factory=list[str],
        description="Those that name it, by its name or its role; an administrator needs none.",
    )


class AuditView(Spec):
    sequence: int
    time: str
    actor: str
    action: str = Field(description="Noun and verb, as in `version.delete`.")
    object: str
    detail: dict[str, Any] | None
