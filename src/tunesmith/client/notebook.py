"""What a notebook shows of model versions, metrics, comparisons, dataset reports and plans.

In: what the client returned. Out: HTML without script, style sheet or anything loaded, curves as SVG; every text is
escaped. The nouns of `spec/` know nothing of this: IPython is told by type, once a client is opened in it. A terminal
shows what it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tunesmith.client.display import COLUMNS, cells, table_html, text_html
from tunesmith.spec.api import PlanView
from tunesmith.spec.catalog import Comparison, VersionDetail, VersionMetrics
from tunesmith.spec.datasets import DatasetReport
from tunesmith.spec.metrics import EpochMetrics, overfits_from
from tunesmith.spec.plan import Plan
from tunesmith.spec.verdict import Verdict

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 200, 52, 10, 26, 24
# told apart by lightness, too, on white and on dark paper; words take the notebook's own colour
COLOURS = {"training": "#8a8f98", "validation": "#0f8a90"}
SHOWN_FINDINGS = 10
TOKENS = "Tokens predicted right"


def register() -> None:
    """Tells a running IPython how our nouns look. Elsewhere nothing is imported, and nothing happens."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    formatter: Any = shell.display_formatter.formatters["text/html"]
    for noun, drawn in DRAWN.items():
        formatter.for_type(noun, drawn)


class PlanDocument(dict[str, Any]):
    """A plan as the service told it, which a notebook shows as tables."""

    def _repr_html_(self) -> str:
        return plan_html(PlanView.model_validate(dict(self)))


def version_html(detail: VersionDetail) -> str:
    version = detail.version
    facts = [("state", version.shown_state), ("base", version.base_name), ("aliases", ", ".join(version.aliases))]
    if detail.lineage is not None:
        facts += [(f"{each.role} rows", f"{each.name} ({each.rows:,})") for each in detail.lineage.datasets]
    facts += [("results", version.artifact_uri or version.results_uri)]
    words = f" {text_html(version.name)}" if version.name else ""
    return _box(
        f"<p><b>{text_html(version.model_version)}</b>{words}</p>",
        f"<p>{text_html(version.description)}</p>" if version.description else "",
        _facts(facts),
        _verdict(detail.verdict),
        _metrics(detail.metrics),
    )


def metrics_html(metrics: VersionMetrics) -> str:
    return _box(_metrics(metrics))


def comparison_html(found: Comparison) -> str:
    names = (found.left.version.model_version, found.right.version.model_version)
    told = [(each.name, _number(each.left), _number(each.right), _number(each.difference)) for each in found.scores]
    differing = [(each.name, str(each.left), str(each.right)) for each in (*found.settings, *found.data)]
    return _box(
        table_html(("score on the validation rows", *names, "difference"), told),
        table_html(("what differs", *names), differing) if differing else "",
        _list(notice.message for notice in found.notices),
    )


def report_html(report: DatasetReport) -> str:
    facts = [("rows", f"{report.rows:,}"), ("kind", report.kind or ""), ("duplicates", f"{report.duplicates:,}")]
    if report.tokens is not None:
        facts += [
            ("tokens", f"{report.tokens.total:,}"), ("tokens to learn", f"{report.tokens.to_learn:,}"),
            ("row lengths", ", ".join(f"{at} %: {length:,}" for at, length in report.tokens.percentiles.items())),
        ]  # fmt: skip
    parts = [f"<p><b>{text_html(report.path)}</b></p>", _facts(facts)]
    for kind, count, findings in (
        ("errors", report.num_errors, report.errors), ("warnings", report.num_warnings, report.warnings),
    ):  # fmt: skip
        if count:
            shown = findings[:SHOWN_FINDINGS]
            left = f", the first {len(shown)}" if count > len(shown) else ""
            rows = [("" if each.line is None else str(each.line), each.message, each.hint or "") for each in shown]
            parts += [f"<p>{count:,} {kind}{left}</p>", table_html(("line", "what", "way out"), rows)]
    return _box(*parts)


def plan_html(view: PlanView) -> str:
    plan: Plan = view.plan
    chosen = plan.settings.as_json()
    facts = [
        ("device", plan.device_name), ("steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} an epoch)"),
        ("tokens an epoch", f"{plan.tokens_per_epoch:,}"), ("adapter", f"{plan.trainable_parameters:,} parameters"),
        ("memory at the peak", f"{_size(plan.peak_memory_bytes)} of {_size(plan.free_memory_bytes)} that are free"),
        ("disk", _size(plan.disk_bytes)), ("time", f"{plan.seconds:,.0f} s: {plan.seconds_reason}"),
        ("version set", view.version_set),
    ]  # fmt: skip
    reasons = [(name, str(chosen.get(name, "")), reason) for name, reason in plan.reasons.items()]
    return _box(
        _facts(facts),
        _list(notice.message for notice in view.notices),
        table_html(("setting", "chosen", "because"), reasons),
    )


DRAWN: dict[type[Any], Callable[[Any], str]] = {
    VersionDetail: version_html,
    VersionMetrics: metrics_html,
    Comparison: comparison_html,
    DatasetReport: report_html,
}


# ---- parts


def _box(*parts: str) -> str:
    return '<div class="tunesmith">' + "".join(parts) + "</div>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{text_html(name)}</th><td>{text_html(told)}</td></tr>" for name, told in facts if told)
    return f"<table><tbody>{rows}</tbody></table>"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{text_html(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"<p><b>{text_html(verdict.outcome.value)}</b>. {text_html(' '.join(verdict.reasons))}</p>"


def _metrics(metrics: VersionMetrics) -> str:
    if not metrics.epochs:
        return "<p>The scores appear at the end of each epoch.</p>"
    rows = [cells(epoch) for epoch in metrics.epochs]
    first = overfits_from(metrics.epochs)
    return "".join(
        (
            f"<p>{_curve(metrics, 'loss', 'Loss', '{:.3f}')} {_curve(metrics, 'token_accuracy', TOKENS, '{:.0%}')}</p>",
            f"<p>From epoch {first} on it overfits: the validation loss rose, the training loss fell.</p>"
            if first
            else "",
            table_html(COLUMNS, rows),
        )
    )


def _curve(metrics: VersionMetrics, name: str, title: str, form: str) -> str:
    """Training and validation by epoch, a dot each; the best epoch has an upright line."""
    lines = {split: _points(metrics.epochs, split, name) for split in COLOURS}
    every = [value for points in lines.values() for _, value in points]
    low, high = min(every), max(every)
    room = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    low, high = low - room, high + room
    last = max(epoch.epoch for epoch in metrics.epochs) or 1

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * epoch / last

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{title} by epoch" font-size="11" fill="currentColor">',
        f'<text x="{LEFT}" y="14" font-weight="bold">{title}</text>',
        f'<text x="{WIDTH - RIGHT}" y="14" text-anchor="end"><tspan fill="{COLOURS["training"]}">training</tspan> '
        f'<tspan fill="{COLOURS["validation"]}">validation</tspan></text>',
    ]
    for share in (0.0, 0.5, 1.0):
        value = low + (high - low) * share
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" '
            f'stroke-opacity="0.15"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{form.format(value)}</text>"
        )
    for epoch in sorted({0, last // 2, last}):
        parts.append(f'<text x="{x(epoch):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{epoch}</text>')
    if metrics.best_epoch is not None:
        at = f"{x(metrics.best_epoch):.1f}"
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="currentColor" stroke-opacity="0.5" '
            f'stroke-dasharray="3 3"><title>best epoch: {metrics.best_epoch}</title></line>'
        )
    for split, points in lines.items():
        path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
        colour = COLOURS[split]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for epoch, value in points:
            parts.append(
                f'<circle cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}">'
                f"<title>{split}, epoch {epoch}: {form.format(value)}</title></circle>"
            )
    return "".join(parts) + "</svg>"


def _points(epochs: Sequence[EpochMetrics], split: str, name: str) -> list[tuple[int, float]]:
    found = [(epoch.epoch, getattr(epoch, split)) for epoch in epochs]
    return [(number, getattr(scores, name)) for number, scores in found if scores is not None]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
