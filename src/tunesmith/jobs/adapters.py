"""Registers an adapter that was trained elsewhere as a model version: copied, held against its base, published.

In: a folder in PEFT's format and the name of a version set. Out: an ACTIVE version, made in one transaction after its
bytes lie in their place: killed before, there is a folder that no version names. Weights in pickles are refused; of the
folder nothing but the adapter's two files is taken.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.catalog.models import all_models, find_model
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import final_columns
from tunesmith.errors import InputRefused, UsageFault
from tunesmith.files import fsync_tree, sha256_of, write_json
from tunesmith.jobs.inputs import in_location, location_of, registered_folder, results_uri
from tunesmith.jobs.inspection import inspect
from tunesmith.jobs.parents import CONFIG, WEIGHTS
from tunesmith.jobs.state import State
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile
from tunesmith.spec.catalog import BaseModelView, Lineage, NewVersion, Registration, VersionMetrics, VersionState
from tunesmith.spec.datasets import AdapterFacts, InspectRequest
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.locations import find_place, is_bucket, local_path, uri_of
from tunesmith.storage.objects import Location, join_key, open_objects
from tunesmith.storage.publish import check_results, publish
from tunesmith.versions import numeric_versions

JOB_FILE = "job.json"  # of an artifact: serving reads base and rendering there
MAXIMUM_CONFIG_BYTES = 1 << 20
MAXIMUM_WEIGHTS_BYTES = 64 << 30
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAdapter:
    """Its bytes lie in their place; the row that makes it a version is not written yet."""

    new: NewVersion
    base_name: str
    lineage: Lineage
    manifest: Manifest
    artifact_uri: str


def publish_adapter(new: NewVersion, *, state: State, environment: Mapping[str, str], project: str) -> PublishedAdapter:
    """Raises InputRefused (ADAPTER_NOT_FOUND, PICKLE_ONLY, ADAPTER_OF_ANOTHER_BASE, BROKEN_ADAPTER,
    ADAPTER_WITHOUT_EFFECT), UsageFault (BASE_NOT_NAMED), Unknown, MachineCannot, and what a store raises.
    """
    registration_id = f"reg-{secrets.token_hex(6)}"
    target = _target(new, registration_id, state=state, project=project)
    location = location_of(target, state=state) if is_bucket(target) else Location(uri=target)
    check_results(location, environment)
    with TemporaryDirectory(dir=state.home.uploads, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "adapter"
        folder.mkdir()
        _take(new.path, folder, state=state, environment=environment)
        base = _base(new, folder, state=state)
        path = registered_folder(base.name, base.path, state=state, environment=environment).path
        question = InspectRequest(
            model_name=base.name, model_path=str(path), cache_folder=str(state.home.cache), adapter_path=str(folder)
        )
        answer = inspect(question, home=state.home, environment=environment)
        facts, adapter = answer.facts, answer.adapter
        assert facts is not None and adapter is not None
        settings = _settings(new, adapter, facts)
        job = JobFile(
            job_id=registration_id, model_version=f"{new.version_set}:{registration_id}",
            name=new.name or new.version_set,
            description=new.description, created_at=now(), base=facts, datasets=[], initial_adapter=None, device="cpu",
            cache_folder=str(state.home.cache), settings=settings, threads=1, versions=numeric_versions(),
        )  # fmt: skip
        write_json(folder / JOB_FILE, job.as_json())
        _write_manifest(folder, job)
        manifest = publish(folder, location, environment=environment)
    lineage = Lineage(
        base_name=base.name,
        base_digest=facts.digest,
        datasets=[],
        parent=None,
        settings=settings,
        library_versions={},
        registration=Registration(
            source=new.path,
            base_named=adapter.base_named,
            matched_by="hash" if adapter.base_digest is not None else "shapes",
        ),
    )
    return PublishedAdapter(new=new, base_name=base.name, lineage=lineage, manifest=manifest, artifact_uri=target)


def add_adapter(connection: sa.Connection, published: PublishedAdapter, *, project: str, actor: str, above: int) -> str:
    """The version's name. above: a number that is taken although the database does not know it."""
    new, time = published.new, now()
    model_version = add_version(
        connection, project=project, version_set=new.version_set, above=above, created_at=time, name=new.name,
        description=new.description, tags=json.dumps(new.tags), base_name=published.base_name,
        results_uri=published.artifact_uri,
    )  # fmt: skip
    columns = final_columns(
        lineage=published.lineage, manifest=published.manifest, artifact_uri=published.artifact_uri,
        metrics=new.metrics or VersionMetrics(epochs=[]),
    )  # fmt: skip
    move_version(
        connection, project=project, model_version=model_version, state=VersionState.ACTIVE, now=time, **columns
    )
    detail = {"path": new.path, "base": published.base_name}
    audit.record(connection, actor, "version.register", model_version, detail, project=project)
    return model_version


def _target(new: NewVersion, registration_id: str, *, state: State, project: str) -> str:
    if new.results is None:
        return (state.results(project) / new.version_set / registration_id).as_uri()
    return uri_of(find_place(results_uri(new.results, state=state, field="results"), field="--results"))


# ---- taking the two files


def _take(text: str, folder: Path, *, state: State, environment: Mapping[str, str]) -> None:
    """Copies of the adapter's two files, from wherever it lies."""
    uri = results_uri(text, state=state, field="path")
    if is_bucket(uri) or in_location(text) is not None:
        store, prefix = open_objects(location_of(uri, state=state), environment, field="path")
        base = f"{prefix}/" if prefix else ""
        listed = store.list(base, limit=1000, by_folder=True).objects
        names = {each.key.removeprefix(base) for each in listed}
        _require_files(names, text)
        for name, limit in ((CONFIG, MAXIMUM_CONFIG_BYTES), (WEIGHTS, MAXIMUM_WEIGHTS_BYTES)):
            store.get_file(join_key(prefix, name), folder / name, maximum_bytes=limit)
        return
    source = local_path(uri, field="path")
    try:
        _require_files({path.name for path in source.iterdir() if path.is_file()}, text)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source / name, folder / name)
    except OSError as error:
        raise InputRefused(
            "ADAPTER_NOT_FOUND", f"The adapter's folder {text!r} cannot be read: {error.strerror}.", field="path",
            hint="Name a folder of the server's machine that holds adapter_config.json.",
        ) from error  # fmt: skip


def _require_files(names: set[str], text: str) -> None:
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if WEIGHTS not in names and pickles:
        raise InputRefused(
            "PICKLE_ONLY",
            f"{text} has its weights in {pickles[0]} only. Such a file can run code when it is read.",
            field="path",
            hint="Save the adapter as safetensors (PEFT: `save_pretrained(..., safe_serialization=True)`).",
        )
    missing = [name for name in (CONFIG, WEIGHTS) if name not in names]
    if missing:
        raise InputRefused(
            "ADAPTER_NOT_FOUND", f"{text} lacks {' and '.join(missing)}.", field="path",
            hint="Name the folder that `save_pretrained` of PEFT wrote.",
        )  # fmt: skip


# ---- base and settings


def _base(new: NewVersion, folder: Path, *, state: State) -> BaseModelView:
    """The one that was named, else the one whose name or hub id the adapter's config holds."""
    with state.database.read() as connection:
        if new.base is not None:
            return find_model(connection, new.base)
        named = _named_base(folder / CONFIG)
        for model in all_models(connection):
            if named is not None and named.lower() in (model.name.lower(), (model.hub_id or "").lower()):
                return model
    raise UsageFault(
        "BASE_NOT_NAMED",
        f"The adapter's config calls its base {named[:200]!r}, and no base model here has that name."
        if named
        else "The adapter's config does not name its base.",
        field="base",
        hint="Name the base model of the catalog that it was trained on (`tunesmith model list`).",
    )


def _named_base(path: Path) -> str | None:
    """What a config that may be broken says; the inspect worker reads it strictly afterwards."""
    try:
        config: Any = json.loads(path.read_bytes()[:MAXIMUM_CONFIG_BYTES])
        named = config["base_model_name_or_path"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return named if isinstance(named, str) and named else None


def _settings(new: NewVersion, adapter: AdapterFacts, facts: ModelFacts) -> TrainingSettings:
    """The adapter's form, with the rendering decided."""
    if new.render == "chat" and not facts.has_chat_template:
        raise UsageFault(
            "TEMPLATE_MISSING", f"render: {facts.name} has no chat template.", field="render",
            hint="Say plain, or leave it out.",
        )  # fmt: skip
    automatic = "chat" if facts.has_chat_template else "plain"
    render = automatic if new.render == "auto" else new.render
    return adapter.settings.model_copy(update={"render": render})


def _write_manifest(folder: Path, job: JobFile) -> None:
    files = [
        ManifestFile(path=path.name, size=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.iterdir())
    ]
    manifest = Manifest(job_id=job.job_id, model_version=job.model_version, files=files)
    write_json(folder / MANIFEST_NAME, manifest.as_json())
    fsync_tree(folder)
