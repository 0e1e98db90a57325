"""CPU training of the bundled model: Tunesmith's worker beside TRL's SFTTrainer, same rows, same settings.

Both get the same token ids and completion masks, batches of 8 rows, LoRA r=32, alpha=16, dropout=0.05 on all linear
modules, AdamW, the same schedule, and the same threads. Each run is a process of its own; learned tokens a second
count training alone (no evaluation, no start-up). The adapters that both write are judged by one evaluator.

Speed is compared with the peer's fastest variant. Quality is compared with the variant `same-order`, which also gets
our order of rows and our first adapter, so that of all that is random only the dropout masks differ.

    python -m benchmarks.bench_training [--seeds 0 1 2] [--peer-python PYTHON] [--learning-rate RATE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import save
from tunesmith.bundled import DEMO_SETTINGS, MODEL_FOLDER, TRAINING_ROWS, VALIDATION_ROWS
from tunesmith.data.batch import epoch_order
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.models.adapter_file import load_adapter, save_adapter
from tunesmith.models.base import load_base
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import inject
from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.evaluation import score_rows
from tunesmith.versions import numeric_versions

PEER = Path(__file__).parent / "peer_trl.py"
THREADS = 2
BATCH = 8


def make_job(folder: Path, *, seed: int, learning_rate: float = DEMO_SETTINGS["learning_rate"]) -> JobFile:
    settings = TrainingSettings.model_validate(
        {
            **DEMO_SETTINGS, "learning_rate": learning_rate, "seed": seed, "sequence_length": 2048, "render": "chat",
            "global_batch_size": BATCH, "micro_batch_size": 1, "precision": "float32", "base_precision": "float32",
            "strategy": "single", "path": "generic", "compile_layers": "off", "checkpointed_layers": 0,
        }
    )  # fmt: skip
    job = JobFile(
        job_id=folder.name, model_version="bench:1", name="bench", created_at="2026-01-01T00:00:00.000Z",
        base=inspect_model(MODEL_FOLDER, "tunesmith/demo"),
        datasets=[
            DatasetInput(role="training", path=str(TRAINING_ROWS), name=TRAINING_ROWS.name),
            DatasetInput(role="validation", path=str(VALIDATION_ROWS), name=VALIDATION_ROWS.name),
        ],
        cache_folder=str(folder.parent / "cache"), settings=settings, threads=THREADS, versions=numeric_versions(),
    )  # fmt: skip
    folder.mkdir()
    (folder / "job.json").write_text(job.model_dump_json())
    return job


def prepared_of(job: JobFile) -> Prepared:
    return prepare(job.datasets, settings=job.settings, base=job.base, cache_folder=Path(job.cache_folder))


def run_ours(folder: Path, job: JobFile) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    subprocess.run([sys.executable, "-m", "tunesmith.train", str(folder / "job.json")], check=True, env=environment)
    steps = [json.loads(line) for line in (folder / "events.jsonl").open() if '"kind": "step"' in line]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in steps)
    learned = sum(step["learned_tokens"] for step in steps)
    return {"peer": "tunesmith", "learned_tokens_per_second": learned / seconds, "seconds": seconds}


def run_peer(folder: Path, job: JobFile, prepared: Prepared, *, python: str, variant: str) -> dict[str, Any]:
    count, epochs = len(prepared.training), job.settings.epochs
    order = list(range(count))
    if variant == "same-order":  # all epochs as one, in our order, from our first adapter
        order = [int(row) for e in range(epochs) for row in epoch_order(count, seed=job.settings.seed, epoch=e + 1)]
        model = load_base(job.base, dtype=torch.float32, device=torch.device("cpu"))
        inject(model, settings=job.settings)
        (folder / "first").mkdir(exist_ok=True)
        save_adapter(folder / "first", model, settings=job.settings, base=job.base)
    rows = [
        {
            "input_ids": [int(token) for token in example.tokens],
            "completion_mask": [int(bit) for bit in example.learned],
        }
        for example in (prepared.training[index] for index in order)
    ]
    request = {
        "model": str(MODEL_FOLDER), "rows": rows, "out": str(folder / f"trl-{variant}"), "variant": variant,
        "epochs": 1 if variant == "same-order" else epochs, "first": str(folder / "first"),
        "learning_rate": job.settings.learning_rate, "seed": job.settings.seed,
        "batch": BATCH, "threads": THREADS,
    }  # fmt: skip
    (folder / "peer.json").write_text(json.dumps(request))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [python, str(PEER), str(folder / "peer.json")], check=False, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return {"peer": f"trl {variant}", "error": done.stderr.strip().splitlines()[-1]}
    return {"peer": f"trl {variant}", **json.loads(done.stdout.strip().splitlines()[-1])}


def validation_loss(job: JobFile, prepared: Prepared, adapter: Path) -> float:
    model = load_base(job.base, dtype=torch.float32, device=torch.device("cpu"))
    inject(model, settings=job.settings)
    load_adapter(adapter, model, base=job.base)
    assert prepared.validation is not None
    rows = np.arange(len(prepared.validation))
    scores = score_rows(model, prepared.validation, rows, device=torch.device("cpu"), max_tokens=4096)
    return scores.metrics().loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has TRL")
    parser.add_argument(
        "--variants", nargs="+", default=["padded", "by-length", "same-order"], help="settings of the peer to try"
    )
    parser.add_argument("--learning-rate", type=float, default=DEMO_SETTINGS["learning_rate"])
    parser.add_argument("--name", default="training-cpu", help="of the result file")
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = Path(temporary) / f"seed-{seed}"
            job = make_job(folder, seed=seed, learning_rate=options.learning_rate)
            prepared = prepared_of(job)
            ours = run_ours(folder, job)
            ours["validation_loss"] = validation_loss(job, prepared, folder / "artifact")
            table.append({"seed": seed, **ours})
            for variant in options.variants:
                peer = run_peer(folder, job, prepared, python=options.peer_python, variant=variant)
                if "error" not in peer:
                    peer["validation_loss"] = validation_loss(job, prepared, folder / f"trl-{variant}")
                table.append({"seed": seed, **peer})
            for row in table[-1 - len(options.variants) :]:
                print(json.dumps(row), flush=True)
    summary = summarise(table)
    print(json.dumps(summary, indent=2))
    document = {"learning_rate": options.learning_rate, "summary": summary, "runs": table}
    print(f"kept as {save(options.name, document, libraries=('torch', 'transformers', 'tunesmith'))}")


def summarise(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds by peer; ratios of ours to the fastest peer, and to the peer that shares our order."""

    def means(field: str) -> dict[str, float]:
        peers = sorted({row["peer"] for row in table if field in row})
        return {
            peer: float(np.mean([row[field] for row in table if row["peer"] == peer and field in row]))
            for peer in peers
        }

    speed, loss = means("learned_tokens_per_second"), means("validation_loss")
    fastest = max((peer for peer in speed if peer != "tunesmith"), key=speed.__getitem__)
    summary: dict[str, Any] = {
        "fastest_peer": fastest,
        "speed_ratio": speed["tunesmith"] / speed[fastest],
        "mean_learned_tokens_per_second": speed,
        "mean_validation_loss": loss,
    }
    if "trl same-order" in loss:
        summary["loss_ratio_same_order"] = loss["tunesmith"] / loss["trl same-order"]
    return summary


if __name__ == "__main__":
    main()
