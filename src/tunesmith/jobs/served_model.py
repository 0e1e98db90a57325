"""From what a user calls a model to what a deploy worker can answer with, pinned by digests.

In: a base's name, `set:number`, `set@alias` or, for the local user, a folder. Out: a `ServedModel`: facts of the base,
the adapter's files with their hashes, and how prompts are rendered. An alias that moves later moves later requests
only. Artifacts in a bucket are fetched once, by version id and hash, into the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import ValidationError

from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog.artifacts import Artifact, find_artifact
from tunesmith.catalog.models import find_model
from tunesmith.catalog.versions import find_version
from tunesmith.errors import Conflict, InputRefused, TunesmithError, Unknown, UsageFault
from tunesmith.files import json_bytes, sha256_of
from tunesmith.jobs.inputs import registered_folder
from tunesmith.jobs.inspection import inspect
from tunesmith.jobs.models import find_model as find_model_folder
from tunesmith.jobs.state import State
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest
from tunesmith.spec.datasets import InspectRequest
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.serving import AdapterSource
from tunesmith.storage.locations import find_place, local_path
from tunesmith.storage.objects import join_key
from tunesmith.storage.publish import read_manifest as read_manifest_file

JOB_FILE = "job.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """fingerprint: of all that answers; equal fingerprints, equal weights. created_at: ISO 8601, None if not known."""

    name: str
    base: ModelFacts
    adapter: AdapterSource | None
    render: Literal["chat", "plain"]
    created_at: str | None

    @property
    def fingerprint(self) -> str:
        return f"fp_{(self.base if self.adapter is None else self.adapter).digest[:16]}"

    def require_chat(self) -> None:
        """Raises UsageFault (CHAT_NOT_OFFERED) with the reason."""
        if self.render == "chat":
            return
        reason = (
            f"its base {self.base.name} has no chat template"
            if not self.base.has_chat_template
            else "it was trained on plain text (--render plain), without the chat template"
        )
        raise UsageFault(
            "CHAT_NOT_OFFERED",
            f"{self.name} cannot chat: {reason}.",
            field="model",
            hint="Ask for completions of a prompt (/v1/completions) instead.",
        )


def is_version_name(target: str) -> bool:
    """Names of bases hold neither of the two."""
    return "@" in target or ":" in target


def find_served(
    target: str, *, state: State, environment: Mapping[str, str], project: str, allows_folders: bool = False
) -> ServedModel:
    """Raises Unknown for a name that is none here or not ACTIVE, InputRefused for a damaged artifact.

    allows_folders: the caller is the user of this machine, and may name the folder of a base or of an artifact.
    """
    if allows_folders and target.startswith((".", "~", os.sep, "file:")):
        return _of_folder(target, state, environment)
    try:
        return _of_catalog(target, state, environment, project)
    except Unknown:
        if allows_folders and local_path(target, field="TARGET").is_dir():
            return _of_folder(target, state, environment)
        raise


def _of_folder(target: str, state: State, environment: Mapping[str, str]) -> ServedModel:
    path = local_path(target, field="TARGET")
    if (path / MANIFEST_NAME).is_file():
        manifest = _read_manifest(path)
        return _of_artifact(path, manifest, name=manifest.model_version, created_at=None, base_path=None)
    found = find_model_folder(target)
    return _of_base(_inspected(found.name, found.path, state, environment), created_at=None)


def _of_catalog(target: str, state: State, environment: Mapping[str, str], project: str) -> ServedModel:
    if is_version_name(target):
        return _version(target, state, environment, project)
    with state.database.read() as connection:
        base = find_model(connection, target)
    path = registered_folder(base.name, base.path, state=state, environment=environment).path
    return _of_base(base.facts.model_copy(update={"name": base.name, "path": str(path)}), created_at=base.created_at)


def _version(target: str, state: State, environment: Mapping[str, str], project: str) -> ServedModel:
    with state.database.read() as connection:
        try:
            version = find_version(connection, target, project=project)
            artifact = find_artifact(connection, version.model_version, project=project)
        except (UsageFault, Conflict) as error:  # no such name, or nothing to serve under it: no model either way
            raise Unknown(error.code, error.message, field="model", hint=error.hint) from error
        try:
            base = find_model(connection, version.base_name)
        except Unknown:
            base = None
    base_path = (
        str(registered_folder(base.name, base.path, state=state, environment=environment).path)
        if base is not None
        else None
    )
    place = find_place(version.artifact_uri or "", field="artifact_uri")
    folder = place if isinstance(place, Path) else _fetched(artifact, state, environment)
    return _of_artifact(
        folder, artifact.manifest, name=version.model_version, created_at=version.created_at, base_path=base_path
    )


def _fetched(artifact: Artifact, state: State, environment: Mapping[str, str]) -> Path:
    """A folder of the cache with the files that serving needs, each of the manifest's version and hash."""
    folder = state.home.cache / "served" / _digest(artifact.manifest)
    files = [artifact.file(name) for name in (JOB_FILE, *ADAPTER_FILES)]
    if all((folder / file.path).is_file() for file in files):
        return folder
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    store, prefix = artifact.open(environment)
    with TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as temporary:
        whole = Path(temporary) / "files"
        whole.mkdir()
        for file in files:
            store.get_file(
                join_key(prefix, file.path), whole / file.path, version_id=file.version_id, expected_sha256=file.sha256
            )
        with contextlib.suppress(OSError):  # another request fetched it meanwhile
            whole.rename(folder)
    return folder


def _of_base(facts: ModelFacts, *, created_at: str | None) -> ServedModel:
    render: Literal["chat", "plain"] = "chat" if facts.has_chat_template else "plain"
    return ServedModel(name=facts.name, base=facts, adapter=None, render=render, created_at=created_at)


def _of_artifact(
    folder: Path, manifest: Manifest, *, name: str, created_at: str | None, base_path: str | None
) -> ServedModel:
    """base_path: where the catalog has the base; None: where training found it. Its digest is checked at loading."""
    job = _job_file(folder, manifest)
    if job.base.name == MODEL_NAME:
        base_path = str(MODEL_FOLDER)  # it moves with the installation
    render = job.settings.render
    if render == "auto":
        raise InputRefused("ARTIFACT_DAMAGED", f"{JOB_FILE} of {name} leaves the rendering open.", field="model")
    return ServedModel(
        name=name,
        base=job.base if base_path is None else job.base.model_copy(update={"path": base_path}),
        adapter=AdapterSource(
            digest=_digest(manifest),
            folder=str(folder),
            files=manifest.files,
        ),
        render=render,
        created_at=created_at or job.created_at,
    )


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(json_bytes(manifest.as_json())).hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    try:
        return read_manifest_file(folder)
    except (OSError, ValueError) as error:
        raise InputRefused(
            "ARTIFACT_DAMAGED", f"{folder / MANIFEST_NAME} cannot be read: {str(error)[:200]}.", field="TARGET"
        ) from error


def _job_file(folder: Path, manifest: Manifest) -> JobFile:
    listed = next((file for file in manifest.files if file.path == JOB_FILE), None)
    path = folder / JOB_FILE
    try:
        if listed is not None and sha256_of(path) == listed.sha256:
            return JobFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise _damaged(path, f"is of another release ({error.error_count()} faults)") from error
    raise _damaged(path, "is not the one of the version's manifest")


def _damaged(path: Path, fault: str) -> TunesmithError:
    return InputRefused(
        "ARTIFACT_DAMAGED",
        f"{path} {fault}.",
        field="model",
        hint="Restore the artifact's files, or train the version again.",
    )


def _inspected(name: str, path: Path, state: State, environment: Mapping[str, str]) -> ModelFacts:
    request = InspectRequest(model_name=name, model_path=str(path), cache_folder=str(state.home.cache))
    response = inspect(request, home=state.home, environment=environment)
    assert response.facts is not None
    return response.facts
