"""Two model versions side by side: scores, settings, data, curves over each other, answers to the same prompts.

The running losses of long runs take a while to read, the first time: the page comes without them, and htmx asks for
them as a part of it. Without a script a link does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from markupsafe import Markup
from pydantic import Field

from tunesmith.errors import Unknown
from tunesmith.server.api import versions as routes
from tunesmith.server.pages import shown
from tunesmith.server.pages.page import View, is_part, page, query_text
from tunesmith.server.pages.pictures import Series, line_chart
from tunesmith.server.pages.words import CHARTS
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CompareQuery, VersionQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import Comparison, VersionDetail

POINTS = 300
CHOICES = 100
SIDES = ("left", "right")


class CompareForm(Spec):
    """Empty fields: the page asks which two."""

    left: str = Field("", max_length=140)
    right: str = Field("", max_length=140)
    whole: Literal["", "yes"] = Field("", description="With every curve, however long it takes to read.")


def compare_page(call: CallNow, query: Annotated[CompareForm, Query()]) -> View:
    choices = routes.list_versions(call, VersionQuery.model_validate({"limit": CHOICES})).versions
    names = [each.model_version for each in choices]
    context = {"query": query, "names": names, "comparison": None}
    if not (query.left and query.right):
        return View(template="versions/compare.html", context=context)
    found = routes.compare_versions(call, CompareQuery(left=query.left, right=query.right))
    if is_part(call.request):
        return View(template="versions/steps.html", context={"chart": running_chart(call, found)})
    sides = (found.left, found.right)
    bases = list(dict.fromkeys(side.version.base_name for side in sides))
    samples = found.left.samples or found.right.samples
    context |= {
        "comparison": found,
        "scored": scored_chart(found),
        "running": running_chart(call, found) if query.whole or _are_quick(call, found) else None,
        "address": "/versions/compare?" + query_text(left=query.left, right=query.right),
        "bases": bases,
        "models": [*bases, *dict.fromkeys(side.version.model_version for side in sides)],
        "prompts": [sample.prompt for sample in samples],
        "wanted": [sample.expected for sample in samples],
        "told": {"loss": shown.loss, "token_accuracy": shown.percent, "completion_accuracy": shown.percent},
    }
    return View(template="versions/compare.html", context=context)


def scored_chart(found: Comparison) -> Markup:
    """Both validation losses by epoch, one over the other."""
    series = [
        Series(
            name=side.version.model_version, tone=tone, is_marked=True,
            points=[
                (epoch.epoch, epoch.validation.loss) for epoch in side.metrics.epochs if epoch.validation is not None
            ],
        )
        for tone, side in _sides(found)
    ]  # fmt: skip
    label = CHARTS["validation_of_two"].format(versions=_both(found))
    return line_chart(series, label=label, x_label=CHARTS["epoch"], x_told=CHARTS["epoch"], told=shown.number)


def running_chart(call: Call, found: Comparison) -> Markup:
    """Both runs' loss by step, one over the other."""
    series = [
        Series(name=side.version.model_version, tone=tone, points=_steps(call, side)) for tone, side in _sides(found)
    ]
    label = CHARTS["running_of_two"].format(versions=_both(found))
    return line_chart(series, label=label, x_label=CHARTS["step"], told=shown.number)


def _sides(found: Comparison) -> list[tuple[str, VersionDetail]]:
    return list(zip(SIDES, (found.left, found.right), strict=True))


def _both(found: Comparison) -> str:
    return CHARTS["two"].format(left=found.left.version.model_version, right=found.right.version.model_version)


def _are_quick(call: Call, found: Comparison) -> bool:
    with call.database.read() as connection:
        return all(
            side.version.job_id is None or call.service.curves.is_quick(connection, side.version.job_id)
            for _, side in _sides(found)
        )


def _steps(call: Call, detail: VersionDetail) -> list[tuple[float, float]]:
    if detail.version.job_id is None:
        return []
    try:
        with call.database.read() as connection:
            curves = call.service.curves.read(connection, detail.version.job_id, points=POINTS)
    except Unknown:
        return []
    return list(zip(curves.step, curves.loss, strict=True))


ROUTES = [page("/versions/compare", compare_page, permission="version.read", summary="Compare two model versions")]
