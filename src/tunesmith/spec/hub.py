"""Models of a hub as they are found, what of one would be downloaded, and downloads with their states."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.errors import ErrorForm
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import Description, Tags
from tunesmith.spec.datasets import Notice
from tunesmith.spec.explorer import TASK, LabelView
from tunesmith.spec.names import FILE_PATTERN, HUB_OWNER, HUB_TASK, LICENCE, REVISION, HubId, ModelName, Name

# What a model folder needs, right below its top. Everything else is left out unless a pattern asks for it.
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model", ".jinja", ".md"})
# Files that run code when they are loaded, or whose format allows it: never downloaded, whatever a pattern says.
UNSAFE_SUFFIXES = frozenset({
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy", ".h5", ".keras", ".msgpack", ".joblib", ".nemo",
    ".py", ".so", ".dll", ".dylib", ".exe", ".sh", ".whl", ".zip", ".tar", ".gz", ".7z",
})  # fmt: skip
UNSAFE = "never downloaded: loading such a file can run code; Tunesmith reads safetensors only"

Pattern = Annotated[str, FILE_PATTERN]
Revision = Annotated[str, REVISION, Field(description="A commit, a branch or a tag; default: main.")]


class HubQuery(Spec):
    search: str | None = Field(None, min_length=1, max_length=200)
    author: Annotated[str, HUB_OWNER] | None = None
    task: Annotated[str, HUB_TASK] | None = TASK
    licence: Annotated[str, LICENCE] | None = None
    minimum_parameters: int | None = Field(None, ge=1, le=1 << 50)
    maximum_parameters: int | None = Field(None, ge=1, le=1 << 50)
    sort: Literal["downloads", "likes", "trending_score", "last_modified"] = "downloads"
    limit: int = Field(20, ge=1, le=100)


class HubModel(Spec):
    """A row of the hub's search."""

    hub_id: str
    task: str | None
    licence: str | None
    is_gated: bool
    parameters: int | None
    model_type: str | None
    downloads: int | None
    likes: int | None
    last_modified: str | None
    labels: list[LabelView]
    is_here: bool = False


class HubModels(Spec):
    models: list[HubModel]


class HubFile(Spec):
    path: str
    size: int = Field(ge=0)
    sha256: str | None = Field(description="Of large files; of small ones the hub tells git's hash.")
    blob_id: str | None = Field(description="Git's SHA-1 of the content, where the hub told it.")


class LeftOut(Spec):
    path: str
    size: int
    reason: str


class DownloadPlan(Spec):
    """Which files of a commit are downloaded, and which are not."""

    files: list[HubFile]
    left_out: list[LeftOut]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def choose_files(files: list[HubFile], *, include: list[str], exclude: list[str]) -> DownloadPlan:
    """Patterns are those of a shell (`*.safetensors`, `original/*`), upper and lower case count."""
    chosen: list[HubFile] = []
    left: list[LeftOut] = []
    has_own_weights = any(file.path.startswith("model") and file.path.endswith(".safetensors") for file in files)
    for file in sorted(files, key=lambda file: file.path):
        reason = _left_out(file.path, include=include, exclude=exclude, has_own_weights=has_own_weights)
        if reason is None:
            chosen.append(file)
        else:
            left.append(LeftOut(path=file.path, size=file.size, reason=reason))
    return DownloadPlan(files=chosen, left_out=left)


def _left_out(path: str, *, include: list[str], exclude: list[str], has_own_weights: bool) -> str | None:
    pure = PurePosixPath(path)
    if any(suffix.lower() in UNSAFE_SUFFIXES for suffix in pure.suffixes[-2:]):
        return UNSAFE
    if any(fnmatchcase(path, pattern) for pattern in exclude):
        return "excluded by a pattern"
    if include:
        return None if any(fnmatchcase(path, pattern) for pattern in include) else "no pattern includes it"
    if len(pure.parts) > 1:
        return "a model's files lie at the top; a pattern can include it"
    if pure.suffix.lower() not in MODEL_SUFFIXES:
        return "a model folder does not need it"
    if has_own_weights and path.startswith("consolidated"):
        return "the same weights in another layout"
    return None


class HubModelDetail(Spec):
    """One commit of a model on the hub: what it is, what a download would bring and need."""

    model: HubModel
    revision: str = Field(description="The commit that the asked revision is now.")
    plan: DownloadPlan
    bytes: int = Field(description="Of the files that would be downloaded.")
    free_bytes: int | None = Field(description="Where they would go; null: a bucket does not tell.")
    target_uri: str
    notices: list[Notice]


# ---- downloads


class DownloadState(StrEnum):
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


DOWNLOAD_MOVES: dict[DownloadState, frozenset[DownloadState]] = {
    DownloadState.WAITING: frozenset({DownloadState.RUNNING, DownloadState.CANCELED, DownloadState.FAILED}),
    DownloadState.RUNNING: frozenset(
        {DownloadState.WAITING, DownloadState.SUCCEEDED, DownloadState.FAILED, DownloadState.CANCELED}
    ),
    DownloadState.SUCCEEDED: frozenset(),
    DownloadState.FAILED: frozenset({DownloadState.WAITING}),  # resumed by somebody; what is whole is kept
    DownloadState.CANCELED: frozenset({DownloadState.WAITING}),
}
ENDED = frozenset({DownloadState.SUCCEEDED, DownloadState.FAILED, DownloadState.CANCELED})


class NewDownload(Spec):
    hub_id: HubId
    revision: Revision = "main"
    name: ModelName | None = Field(None, description="In the catalog; default: the hub id.")
    location: Name | None = Field(None, description="A declared location; default: the state folder.")
    include: list[Pattern] = Field(default_factory=list[str], max_length=50)
    exclude: list[Pattern] = Field(default_factory=list[str], max_length=50)
    description: Description = ""
    tags: Tags = Field(default_factory=dict[str, str])


class DownloadView(Spec):
    download_id: str
    state: DownloadState
    waiting_reason: str | None
    name: str
    hub_id: str
    revision: str
    location: str | None
    target_uri: str
    files: int
    left_out: list[LeftOut]
    bytes_total: int
    bytes_done: int
    is_cancel_wanted: bool
    failure: ErrorForm | None
    submitted_by: str
    created_at: str
    finished_at: str | None
