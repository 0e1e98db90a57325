"""Values that the catalog's tests are made of."""

from __future__ import annotations

import secrets

from tunesmith.spec.catalog import Lineage, LineageDataset, NewDataset, VersionMetrics
from tunesmith.spec.datasets import DatasetReport, RowCounts, RowKind
from tunesmith.spec.metrics import EpochMetrics, SplitMetrics
from tunesmith.spec.models import LinearModule, ModelFacts
from tunesmith.spec.training import TrainingSettings
from tunesmith.spec.verdict import Outcome, Verdict

TIME = "2026-01-02T03:04:05.678Z"


def job_id() -> str:
    return f"job-{secrets.token_hex(6)}"


def facts(name: str = "base") -> ModelFacts:
    return ModelFacts(
        name=name, path=f"/models/{name}", digest="d" * 64, architecture="LlamaForCausalLM", model_type="llama",
        parameters=1000, weight_bytes=4000, dtype="float32", context_length=128, hidden_size=8, num_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=4, intermediate_size=16, vocabulary_size=50,
        tokenizer_size=50, tied_embeddings=True, has_chat_template=True, end_token="</s>", end_token_id=2,
        bos_token_id=1, pad_token_id=0, licence="apache-2.0",
        linear_modules=[LinearModule(name="model.layers.0.self_attn.q_proj", in_features=8, out_features=8)],
    )  # fmt: skip


def report(rows: int = 10) -> DatasetReport:
    return DatasetReport(
        path="rows.jsonl", kind=RowKind.PROMPT_COMPLETION, rows=rows, bytes=100 * rows, content_hash="c" * 64,
        errors=[], num_errors=0, warnings=[], num_warnings=3, duplicates=0,
    )  # fmt: skip


def dataset(name: str = "rows", **fields: object) -> NewDataset:
    return NewDataset.model_validate(
        {"name": name, "sha256": "a" * 64, "report": report(), "file_name": "rows.jsonl"} | fields
    )


def scores(loss: float) -> SplitMetrics:
    return SplitMetrics(loss=loss, token_accuracy=0.5, completion_accuracy=0.25)


def metrics(*losses: float, best_epoch: int = 1) -> VersionMetrics:
    return VersionMetrics(
        epochs=[
            EpochMetrics(epoch=epoch, training=scores(loss), validation=scores(loss))
            for epoch, loss in enumerate(losses)
        ],
        best_epoch=best_epoch,
        rows=RowCounts(training=9, validation=1, cut=0, dropped=0, duplicates=0),
        tokens_per_second=100.0,
        peak_memory_bytes=1000,
    )


def lineage(content_hash: str = "c" * 64, parent: str | None = None, **settings: object) -> Lineage:
    return Lineage(
        base_name="base", base_digest="d" * 64,
        datasets=[LineageDataset(role="training", name="rows.jsonl", content_hash=content_hash, rows=10)],
        settings=TrainingSettings.model_validate(settings), parent=parent, library_versions={"torch": "2"},
    )  # fmt: skip


def verdict() -> Verdict:
    return Verdict(
        outcome=Outcome.IMPROVED, reasons=["better"], rows=10, measured_on="validation", base_loss=2.0, tuned_loss=1.0,
        difference=-1.0, interval=(-1.2, -0.8),
    )  # fmt: skip
