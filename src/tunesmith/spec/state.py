"""The state folder as a whole: its backups, what a restore found, and what a clean-up would remove."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tunesmith.spec.base import Spec


class StateFolder(Spec):
    """A folder that a backup names and does not hold: copy it with your own tool."""

    path: str
    what: str
    bytes: int


class Backup(Spec):
    """`backup.json`, beside the copy of the database."""

    format: int = 1
    tunesmith_version: str
    revision: str = Field(description="Of the database's tables.")
    created_at: str
    home: str
    sha256: str = Field(description="Of the copy of the database.")
    bytes: int
    jobs: int
    versions: int
    folders: list[StateFolder]
    other_places: list[str] = Field(description="Where artifacts lie outside the state folder.")


class Reconciliation(Spec):
    """Where the database and the disk disagree. Everything is listed, nothing is changed."""

    unknown_artifacts: list[str] = Field(description="Whole artifacts under `results` that no model version names.")
    missing_artifacts: list[str] = Field(description="ACTIVE versions whose local artifact is not there.")
    unknown_jobs: list[str] = Field(description="Folders of jobs that the database does not know.")
    missing_jobs: list[str] = Field(description="Unfinished jobs without their folder: they begin anew.")

    def is_clean(self) -> bool:
        return not (self.unknown_artifacts or self.missing_artifacts or self.unknown_jobs or self.missing_jobs)


class Restored(Spec):
    backup: Backup
    replaced: str | None = Field(description="Where the database that was there before is kept.")
    found: Reconciliation


class WasteKind(StrEnum):
    CHECKPOINTS = "checkpoints"
    TOKENS = "token cache"
    OBJECTS = "fetched objects"
    INSPECTIONS = "inspections"
    UPLOADS = "uploads"
    LOG = "log"


class Waste(Spec):
    """One file or folder that may go."""

    kind: WasteKind
    path: str
    bytes: int
    reason: str


class StateView(Spec):
    home: str
    revision: str
    database_bytes: int
    jobs: dict[str, int] = Field(description="State -> how many.")
    versions: dict[str, int]
    folders: list[StateFolder]
    found: Reconciliation
