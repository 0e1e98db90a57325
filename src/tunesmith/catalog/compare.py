"""Two model versions side by side: what differs in settings and data, their scores, and whether those compare."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tunesmith.catalog.versions import describe_version
from tunesmith.spec.catalog import Comparison, Difference, Lineage, LineageDataset, ScorePair, VersionDetail
from tunesmith.spec.datasets import Notice
from tunesmith.spec.metrics import SplitMetrics

SCORES = ("loss", "token_accuracy", "completion_accuracy")


def compare_versions(connection: sa.Connection, left: str, right: str, *, project: str) -> Comparison:
    """Raises as `versions.find_version`."""
    pair = (
        describe_version(connection, left, project=project),
        describe_version(connection, right, project=project),
    )
    same_rows = _same_validation_rows(*pair)
    best = [_best_validation(detail) for detail in pair]
    return Comparison(
        left=pair[0],
        right=pair[1],
        settings=_differences(*(_settings(detail) for detail in pair)),
        data=_differences(*(_data(detail) for detail in pair)),
        scores=[_pair(name, *best) for name in SCORES],
        same_validation_rows=same_rows,
        notices=_notices(pair, same_rows),
    )


def _settings(detail: VersionDetail) -> dict[str, Any]:
    return detail.lineage.settings.as_json() if detail.lineage is not None else {}


def _data(detail: VersionDetail) -> dict[str, Any]:
    lineage = detail.lineage
    if lineage is None:
        return {"base": detail.version.base_name, "parent": detail.version.parent}
    found: dict[str, Any] = {"base": lineage.base_name, "base_digest": lineage.base_digest, "parent": lineage.parent}
    for dataset in lineage.datasets:
        found[f"{dataset.role} content_hash"] = dataset.content_hash
        found[f"{dataset.role} name"] = dataset.name
        found[f"{dataset.role} rows"] = dataset.rows
    if detail.metrics.rows is not None:
        found |= {f"rows {name}": count for name, count in detail.metrics.rows.as_json().items()}
    return found


def _differences(left: dict[str, Any], right: dict[str, Any]) -> list[Difference]:
    names = [*left, *(name for name in right if name not in left)]
    return [
        Difference(name=name, left=left.get(name), right=right.get(name))
        for name in names
        if left.get(name) != right.get(name)
    ]


def _best_validation(detail: VersionDetail) -> SplitMetrics | None:
    for epoch in detail.metrics.epochs:
        if epoch.epoch == detail.metrics.best_epoch:
            return epoch.validation
    return None


def _pair(name: str, left: SplitMetrics | None, right: SplitMetrics | None) -> ScorePair:
    one, other = (None if scores is None else float(getattr(scores, name)) for scores in (left, right))
    difference = None if one is None or other is None else other - one
    return ScorePair(name=name, left=one, right=other, difference=difference)


def _same_validation_rows(left: VersionDetail, right: VersionDetail) -> bool | None:
    if left.lineage is None or right.lineage is None:
        return None
    if _best_validation(left) is None or _best_validation(right) is None:
        return None
    return _validation_key(left.lineage) == _validation_key(right.lineage)


def _validation_key(lineage: Lineage) -> tuple[Any, ...]:
    """What decides which rows were held out, and how they became tokens."""
    by_role: dict[str, LineageDataset] = {dataset.role: dataset for dataset in lineage.datasets}
    settings = lineage.settings
    rendered = (settings.render, settings.sequence_length, settings.too_long)
    if "validation" in by_role:
        return ("own", by_role["validation"].content_hash, *rendered)
    training = by_role["training"].content_hash if "training" in by_role else None
    return ("split", training, settings.validation_fraction, settings.seed, *rendered)


def _notices(pair: tuple[VersionDetail, VersionDetail], same_rows: bool | None) -> list[Notice]:
    told: list[Notice] = []
    for detail in pair:
        if detail.lineage is None:
            told.append(
                Notice(
                    code="LINEAGE_UNKNOWN",
                    message=f"{detail.version.model_version} has no lineage: its settings and data are not compared.",
                )
            )
    if same_rows is False:
        told.append(
            Notice(
                code="SCORES_NOT_COMPARABLE",
                message="The two versions were scored on different validation rows: their scores do not compare.",
                hint="Train both with the same --test-dataset: then both are scored on its rows.",
            )
        )
    return told
