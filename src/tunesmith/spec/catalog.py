"""The catalog's nouns: model versions with their lifecycle, version sets, aliases."""

from __future__ import annotations

from enum import StrEnum


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
