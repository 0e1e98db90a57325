"""What a finished run leaves: the manifest, and the fate of every dataset row."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tunesmith.spec.base import Spec

MANIFEST_NAME = "manifest.json"


class ManifestFile(Spec):
    path: str = Field(description="Relative to the manifest, with forward slashes.")
    size: int
    sha256: str
    version_id: str | None = None


class Manifest(Spec):
    """Written last: a folder with a manifest is whole."""

    format: int = 1
    job_id: str
    model_version: str
    files: list[ManifestFile]


class Fate(StrEnum):
    TRAINED = "trained"
    VALIDATION = "validation"
    CUT = "cut"
    DROPPED = "dropped"
    DUPLICATE = "duplicate"


class LedgerRow(Spec):
    """One input row. `cut` means trained after cutting; a cut validation row stays `validation` with `tokens_lost`."""

    dataset: str = Field(description="`training`, `validation` or `test`.")
    line: int = Field(description="1-based physical line where the row starts.")
    fate: Fate
    reason: str | None = None
    tokens_lost: int = 0
    duplicate_of: int | None = Field(
        None, description="Line of the first equal row, in the dataset that `reason` names."
    )
