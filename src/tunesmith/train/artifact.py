"""The artifact folder: the adapter in PEFT's format and all the evidence beside it; the manifest is written last.

Everything here is derived from the run's own files and events, so a finished run can write it again: a folder
without a manifest is thrown away and made anew. Control publishes it; a worker never touches the results location.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tunesmith.data.prepare import Prepared
from tunesmith.files import fsync_tree, sha256_of, write_atomic, write_json, write_jsonl
from tunesmith.models.adapter_file import save_adapter
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.metrics import EVENT, EpochMetrics, Sample, StepEvent
from tunesmith.spec.verdict import Verdict
from tunesmith.train.curves import Series, chart
from tunesmith.train.model_card import model_card

# What `AutoTokenizer` and a server read; copied byte for byte from the base where they are there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TRAINING_COLOUR, VALIDATION_COLOUR = "#2f6feb", "#d9480f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the run found out, as the artifact's files tell it."""

    epochs: list[EpochMetrics]
    best_epoch: int
    verdict: Verdict
    samples: list[Sample]
    tokens_per_second: float
    peak_memory_bytes: int
    path: str
    path_reason: str
    path_details: list[str]


def read_steps(events: Path) -> list[StepEvent]:
    """The step events of a run, the last of each step where an attempt repeated it; torn lines are passed over."""
    steps: dict[int, StepEvent] = {}
    with events.open("rb") as handle:
        for line in handle:
            if b'"kind": "step"' not in line:
                continue
            try:
                event = EVENT.validate_json(line)
            except ValueError:
                continue
            if isinstance(event, StepEvent):
                steps[event.step] = event
    return [steps[step] for step in sorted(steps)]


def _curves(epochs: list[EpochMetrics], steps: list[StepEvent]) -> Iterable[tuple[str, str]]:
    per_epoch = max((step.steps for step in steps), default=1) / max(1, max((step.epoch for step in steps), default=1))
    running = [(step.step / per_epoch, step.loss) for step in steps]
    for name, field, label in (
        ("loss", "loss", "nats a token"),
        ("token_accuracy", "token_accuracy", "share of tokens"),
        ("completion_accuracy", "completion_accuracy", "share of completions"),
    ):
        series = [
            Series(
                name="training",
                points=[(one.epoch, getattr(one.training, field)) for one in epochs],
                colour=TRAINING_COLOUR,
            ),
            Series(
                name="validation",
                points=[(one.epoch, getattr(one.validation, field)) for one in epochs if one.validation],
                colour=VALIDATION_COLOUR,
            ),
        ]
        if field == "loss":
            series.insert(
                0,
                Series(name="each step", points=running, colour=TRAINING_COLOUR, is_faint=True, has_dots=False),
            )
        title = {"loss": "Loss", "token_accuracy": "Token accuracy", "completion_accuracy": "Completion accuracy"}[name]
        yield f"{name}.svg", chart(series, title=title, x_label="epoch", y_label=label)


def write_artifact(
    folder: Path, *, job: JobFile, model: nn.Module, prepared: Prepared, evidence: Evidence, events: Path
) -> Manifest:
    """Write the whole folder; it is complete once its manifest stands. Raises OSError (ENOSPC)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_adapter(folder, model, settings=job.settings, base=job.base)
    base_folder = Path(job.base.path)
    for name in TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)
    write_json(folder / "generation_config.json", _generation_config(base_folder, job, prepared))
    write_json(
        folder / "metrics.json",
        {
            "epochs": [epoch.as_json() for epoch in evidence.epochs],
            "best_epoch": evidence.best_epoch,
            "rows": prepared.summary.counts.as_json(),
            "tokens_per_second": evidence.tokens_per_second,
            "peak_memory_bytes": evidence.peak_memory_bytes,
            "path": evidence.path,
            "path_reason": evidence.path_reason,
        },
    )
    write_json(folder / "verdict.json", evidence.verdict.as_json())
    write_json(folder / "samples.json", [sample.as_json() for sample in evidence.samples])
    write_json(folder / "job.json", job.as_json())
    write_jsonl(folder / "ledger.jsonl", (row.as_json() for row in prepared.ledger_rows()))
    for name, picture in _curves(evidence.epochs, read_steps(events)):
        write_atomic(folder / name, picture.encode())
    write_atomic(folder / "README.md", model_card(job, prepared=prepared.summary, evidence=evidence).encode())
    fsync_tree(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(
        job_id=job.job_id,
        model_version=job.model_version,
        files=[
            ManifestFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
            for path in files
        ],
    )
    write_json(folder / MANIFEST_NAME, manifest.as_json())
    return manifest


def _generation_config(base_folder: Path, job: JobFile, prepared: Prepared) -> dict[str, object]:
    """The base's own generation settings, with the end tokens that this run taught."""
    path = base_folder / "generation_config.json"
    config: dict[str, object] = json.loads(path.read_bytes()) if path.is_file() else {}
    ends = sorted(prepared.end_token_ids)
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if job.base.bos_token_id is not None:
        config.setdefault("bos_token_id", job.base.bos_token_id)
    if job.base.pad_token_id is not None:
        config.setdefault("pad_token_id", job.base.pad_token_id)
    return config
