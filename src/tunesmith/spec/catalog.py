"""The catalog's nouns as they cross a boundary: base models, datasets, model versions, sets, aliases and the rest.

A `...View` is what a reader gets; a `...Change` holds what a writer may change, where `None` leaves a field as it is.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tunesmith.spec.artifacts import ManifestFile
from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import DatasetReport, Notice, Role, RowCounts, RowKind
from tunesmith.spec.metrics import EpochMetrics
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.requests import VERSION_SET_PATTERN, clean_text, one_clean_line
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
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,62}$"  # a letter first: never taken for a number
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
INTERFACE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,14}$"  # Linux: 15 characters
TAG_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
TAG_VALUE_CHARACTERS = 256


def _tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > MAXIMUM_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAXIMUM_TAGS} are kept")
    for key, value in tags.items():
        if TAG_PATTERN.fullmatch(key) is None:
            raise ValueError(f"the tag {key[:80]!r}: letters, digits and ._/- up to 63, a letter or digit first")
        if len(value) > TAG_VALUE_CHARACTERS:
            raise ValueError(f"the tag {key}: its value has {len(value)} characters, at most {TAG_VALUE_CHARACTERS}")
        one_clean_line(value)
    return dict(sorted(tags.items()))


def _network(cidr: str) -> str:
    try:
        return str(ipaddress.ip_network(cidr))
    except ValueError as error:
        raise ValueError(f"{cidr[:60]!r} is no network in CIDR notation ({error}); for example 10.0.0.0/24") from error


Name = Annotated[str, Field(pattern=NAME_PATTERN, description="Lower-case letters, digits and ._-, up to 63.")]
Alias = Annotated[str, Field(pattern=ALIAS_PATTERN, description="Lower-case letters, digits and ._-, a letter first.")]
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
    name: str = Field(pattern=MODEL_NAME_PATTERN, description="`name` or `owner/name`.")
    path: str = Field(min_length=1, max_length=4096, description="The folder on the service's machine.")
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])


class BaseModelChange(Spec):
    description: Description | None = None
    tags: Tags | None = None


class BaseModelView(Spec):
    name: str
    path: str
    description: str
    tags: dict[str, str]
    is_bundled: bool = Field(description="It comes with Tunesmith and cannot be deleted.")
    facts: ModelFacts | None = Field(description="None: the bundled model before its first inspection.")
    created_at: str | None


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


class Lineage(Spec):
    """What a model version was made from: enough to make it again."""

    base_name: str
    base_digest: str
    datasets: list[LineageDataset]
    settings: TrainingSettings
    parent: str | None = Field(None, description="The model version whose adapter training went on from.")
    library_versions: dict[str, str]


class VersionMetrics(Spec):
    """The metrics panel: epoch 0 is the base, then one entry an epoch, as soon as it ended."""

    epochs: list[EpochMetrics]
    best_epoch: int | None = None
    rows: RowCounts | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None


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
    job_id: str | None
    parent: str | None
    results_uri: str
    artifact_uri: str | None = Field(description="The folder or prefix of the manifest; only of ACTIVE versions.")
    best_epoch: int | None
    outcome: Outcome | None = Field(description="Of the verdict.")
    created_at: str
    changed_at: str


class VersionDetail(Spec):
    version: VersionView
    lineage: Lineage | None
    metrics: VersionMetrics
    verdict: Verdict | None
    files: list[ManifestFile]
    children: list[str] = Field(description="Versions whose training went on from this one.")


class NewVersionSet(Spec):
    name: str = Field(pattern=VERSION_SET_PATTERN)
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
    credentials: str | None = Field(
        None,
        pattern=r"^(env|profile|file):.{1,512}$",
        description="Where the credentials stand: env:PREFIX, profile:NAME or file:PATH. Never a secret.",
    )
    description: Description = ""


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
    interface: str | None = Field(None, pattern=INTERFACE_PATTERN, description="Name of the interface, as in eth0.")
    description: Description = ""


class NetworkView(Spec):
    name: str
    cidr: str
    interface: str | None
    description: str
    created_at: str


class TokenRole(StrEnum):
    """Users, roles and policies come with a later release; until then every token administers."""

    ADMIN = "admin"


class NewToken(Spec):
    name: Label
    role: TokenRole = TokenRole.ADMIN
    days: int | None = Field(None, ge=1, le=3650, description="Days until it expires; absent: never.")


class TokenView(Spec):
    token_id: str
    name: str
    role: TokenRole
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class AuditView(Spec):
    sequence: int
    time: str
    actor: str
    action: str = Field(description="Noun and verb, as in `version.delete`.")
    object: str
    detail: dict[str, Any] | None
