"""The model card (README.md of an artifact), filled from facts of the run; nothing in it is written by hand.

User text is put into Markdown escaped, so that a description cannot draw headings or links of its own.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tunesmith.spec.datasets import Preparation
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.metrics import SplitMetrics
from tunesmith.spec.training import scaling

if TYPE_CHECKING:
    from tunesmith.train.artifact import Evidence


def _plain(text: str) -> str:
    """User text as Markdown text on one line: what has a meaning in Markdown or HTML is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", " ".join(text.split()))


def _cells(metrics: SplitMetrics | None) -> str:
    if metrics is None:
        return "- | - | -"
    return f"{metrics.loss:.4f} | {metrics.token_accuracy:.1%} | {metrics.completion_accuracy:.1%}"


def _quoted(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def model_card(job: JobFile, *, prepared: Preparation, evidence: Evidence) -> str:
    settings, verdict = job.settings, evidence.verdict
    front = {
        "base_model": job.base.name,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "tunesmith"],
    }
    if job.base.licence:
        front["license"] = job.base.licence
    rows = prepared.counts
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        "",
        f"# {_plain(job.model_version)}",
        "",
        _plain(job.description) or f"A LoRA adapter for {_plain(job.base.name)}.",
        "",
        f"**Verdict: {verdict.outcome.value}**",
        "",
        *(f"- {_plain(reason)}" for reason in verdict.reasons),
        "",
        "## Metrics",
        "",
        "| epoch | training loss | token accuracy | completion accuracy "
        "| validation loss | token accuracy | completion accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {'base' if one.epoch == 0 else one.epoch}{' (kept)' if one.epoch == evidence.best_epoch else ''} "
            f"| {_cells(one.training)} | {_cells(one.validation)} |"
            for one in evidence.epochs
        ),
        "",
        "Loss is the negative log-likelihood of the completion tokens in nats a token; token accuracy the share of "
        "completion tokens whose most likely prediction is right; completion accuracy the share of completions whose "
        "every token is. Training figures are taken on a fixed sample of the training rows, dropout off.",
        "",
        "![Loss](loss.svg)",
        "![Token accuracy](token_accuracy.svg)",
        "![Completion accuracy](completion_accuracy.svg)",
        "",
        "## Data",
        "",
        *(f"- {one.role}: {_plain(one.name)}" for one in job.datasets),
        f"- rows: {rows.training} trained, {rows.validation} for validation, {rows.cut} cut, {rows.dropped} dropped, "
        f"{rows.duplicates} duplicates; `ledger.jsonl` tells the fate of each",
        f"- tokens: {prepared.training.total} in the training rows, {prepared.training.to_learn} of them learned",
        f"- rendered as {prepared.render}, packed rows of at most {prepared.sequence_length} tokens",
        "",
        "## Training",
        "",
        f"- adapter: {settings.adapter}, rank {settings.lora_rank}, alpha {settings.lora_alpha:g} "
        f"(scaling {scaling(settings):g}), dropout {settings.lora_dropout:g}, "
        f"target modules {_plain(_targets(settings.target_modules))}",
        *(
            [f"- went on from the adapter of {_plain(job.initial_adapter.model_version)}"]
            if job.initial_adapter is not None
            else []
        ),
        f"- {settings.epochs} epoch(s) asked for, {settings.global_batch_size} rows a step, "
        f"AdamW at {settings.learning_rate:g} ({settings.learning_rate_schedule}), seed {settings.seed}, "
        f"{settings.precision}",
        f"- {evidence.tokens_per_second:,.0f} tokens a second on {job.device}, "
        f"peak memory {evidence.peak_memory_bytes / 2**30:.2f} GiB",
        f"- computed by the {evidence.path} path: {_plain(evidence.path_reason)}",
        *(f"- {_plain(detail)}" for detail in evidence.path_details),
        f"- base: {_plain(job.base.architecture)}, {job.base.parameters:,} parameters, digest {job.base.digest[:16]}",
        "",
    ]
    if evidence.samples:
        lines += ["## Samples", ""]
        for sample in evidence.samples:
            lines += [
                "Prompt:", "", _quoted(sample.prompt), "", "Expected:", "", _quoted(sample.expected), "",
                "Base:", "", _quoted(sample.base_shown), "", "Tuned:", "", _quoted(sample.tuned_shown), "",
            ]  # fmt: skip
    return "\n".join(lines)


def _targets(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)
