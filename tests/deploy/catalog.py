"""A state folder with tuned versions in its catalog, trained for real on a two-layer base."""

from __future__ import annotations

import json
from pathlib import Path

from tests.train.conftest import some_rows
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.sets import set_alias
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.state import State
from tunesmith.models.inspect import inspect_model
from tunesmith.spec.artifacts import Manifest
from tunesmith.spec.catalog import DEFAULT_PROJECT, VersionState
from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.__main__ import main as train
from tunesmith.versions import numeric_versions

NOW = "2026-01-01T00:00:00.000Z"


def tuned_artifact(base: Path, folder: Path, *, render: str, seed: int = 0) -> Path:
    """The artifact of a short training run; its samples are the trainer's own."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in some_rows(48)))
    settings = TrainingSettings.model_validate(
        {
            "epochs": 8, "learning_rate": 2e-2, "lora_rank": 8, "lora_alpha": 16, "sequence_length": 64,
            "render": render, "global_batch_size": 8, "micro_batch_size": 8, "precision": "float32", "seed": seed,
            "base_precision": "float32", "strategy": "single", "path": "generic", "compile_layers": "off",
            "checkpointed_layers": 0, "validation_fraction": 0.25,
        }
    )  # fmt: skip
    job = JobFile(
        job_id="job-1", model_version="tiny:1", name="tiny", created_at=NOW, base=inspect_model(base, "tests/tiny"),
        datasets=[DatasetInput(role="training", path=str(rows), name="rows.jsonl")],
        cache_folder=str(folder / "cache"), settings=settings, threads=1, versions=numeric_versions(),
    )  # fmt: skip
    (folder / "job.json").write_text(job.model_dump_json())
    assert train([str(folder / "job.json")]) == 0
    return folder / "artifact"


def publish(
    state: State,
    artifact: Path,
    *,
    version_set: str,
    alias: str | None = None,
    published: tuple[str, Manifest] | None = None,
) -> str:
    """A version of this artifact: ACTIVE, and what the alias points at. published: elsewhere, with this manifest."""
    own = (artifact.as_uri(), Manifest.model_validate_json((artifact / "manifest.json").read_bytes()))
    uri, manifest = published or own
    with state.database.write() as connection:
        name = add_version(
            connection, project=DEFAULT_PROJECT, version_set=version_set, above=0, created_at=NOW, name="tuned",
            base_name="tests/tiny", results_uri=uri,
        )  # fmt: skip
        columns = final_columns(manifest=manifest, artifact_uri=uri)
        move_version(
            connection, project=DEFAULT_PROJECT, model_version=name, state=VersionState.ACTIVE, now=NOW, **columns
        )
        if alias is not None:
            number = int(name.rpartition(":")[2])
            set_alias(connection, version_set, alias, number=number, project=DEFAULT_PROJECT, actor="test")
    return name


def in_creation(state: State, *, version_set: str) -> str:
    with state.database.write() as connection:
        return add_version(
            connection, project=DEFAULT_PROJECT, version_set=version_set, above=0, created_at=NOW, name="soon",
            base_name="tests/tiny", results_uri="file:///nowhere",
        )  # fmt: skip
