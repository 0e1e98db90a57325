"""From `--from-version` to an adapter that training goes on from.

In: the name of a model version. Out: the version, settings with its adapter's form, and its two files in the cache,
verified. The worker holds the form and the base against them once more.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.catalog.artifacts import Artifact, find_artifact
from tunesmith.catalog.versions import describe_version
from tunesmith.errors import InputRefused
from tunesmith.files import fsync_folder, fsync_tree, temporary_beside
from tunesmith.jobs.home import Home
from tunesmith.jobs.settings import option_name
from tunesmith.jobs.state import State
from tunesmith.spec.catalog import Lineage
from tunesmith.spec.jobs import InitialAdapter
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.objects import join_key

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORM = ("lora_rank", "lora_alpha", "adapter", "target_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    model_version: str
    lineage: Lineage | None
    artifact: Artifact


def find_parent(name: str, *, state: State, project: str) -> Parent:
    """Raises UsageFault (BAD_VERSION_NAME), Unknown, Conflict (VERSION_NOT_ACTIVE)."""
    with state.database.read() as connection:
        artifact = find_artifact(connection, name, project=project)
        detail = describe_version(connection, artifact.model_version, project=project)
    return Parent(model_version=artifact.model_version, lineage=detail.lineage, artifact=artifact)


def with_form_of(parent: Parent, settings: TrainingSettings) -> TrainingSettings:
    """The settings with the form of the parent's adapter; what somebody set himself has to be the same.

    Raises InputRefused (PARENT_DIFFERS).
    """
    if parent.lineage is None:
        return settings
    theirs = {name: getattr(parent.lineage.settings, name) for name in FORM}
    for name in settings.model_fields_set & theirs.keys():
        if getattr(settings, name) != theirs[name]:
            raise InputRefused(
                "PARENT_DIFFERS",
                f"Training cannot go on from {parent.model_version}: its {name} is {theirs[name]}, "
                f"{option_name(name)} is {getattr(settings, name)}.",
                field=name,
                hint=f"Leave {option_name(name)} out: it is then that of the version.",
            )
    return settings.model_copy(update=theirs)


def require_same_base(parent: Parent, facts: ModelFacts) -> None:
    """Raises InputRefused (ADAPTER_OF_ANOTHER_BASE)."""
    if parent.lineage is not None and parent.lineage.base_digest != facts.digest:
        raise InputRefused(
            "ADAPTER_OF_ANOTHER_BASE",
            f"{parent.model_version} was tuned on {parent.lineage.base_name} with digest "
            f"{parent.lineage.base_digest[:12]}…; {facts.name} has {facts.digest[:12]}….",
            field="from_version",
            hint="Name the base model that the version was tuned on.",
        )


def fetch_adapter(parent: Parent, *, home: Home, environment: Mapping[str, str]) -> InitialAdapter:
    """Its two files under the cache, by the weights' hash. Raises as ObjectStore."""
    weights = parent.artifact.file(WEIGHTS)
    folder = adapters_folder(home) / weights.sha256
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        making = temporary_beside(folder)
        try:
            _fetch_into(making, parent, environment=environment)
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another was first, with the same bytes
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
        fsync_folder(folder.parent)
    return InitialAdapter(model_version=parent.model_version, folder=str(folder), sha256=weights.sha256)


def _fetch_into(folder: Path, parent: Parent, *, environment: Mapping[str, str]) -> None:
    store, prefix = parent.artifact.open(environment)
    folder.mkdir(mode=0o700)
    for file in (parent.artifact.file(WEIGHTS), parent.artifact.file(CONFIG)):
        key = join_key(prefix, file.path)
        store.get_file(key, folder / file.path, version_id=file.version_id, expected_sha256=file.sha256)
    fsync_tree(folder)


def adapters_folder(home: Home) -> Path:
    return home.cache / "adapters"
