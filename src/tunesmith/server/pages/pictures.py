"""Pictures of the pages, drawn on the server as SVG, so that they are there without a script: curves and lineage.

In: series of points, or a lineage graph. Out: markup whose every text is escaped. Colours are classes of
`static/css/catalog.css`: nothing here has a style of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from markupsafe import Markup

from tunesmith.server.pages import shown
from tunesmith.server.pages.words import CHARTS
from tunesmith.spec.catalog import LineageGraph, LineageNode, VersionMetrics
from tunesmith.spec.verdict import Verdict
from tunesmith.text import visible

WIDTH, HEIGHT = 640, 300
NARROW = (420, 240)  # of two charts beside each other in a column: their words stay as large as elsewhere
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """points: (x, y). tone: a class of the style sheet. is_marked: each point is a dot that tells its value."""

    name: str
    tone: str
    points: Sequence[tuple[float, float]]
    is_marked: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    told: Callable[[float], str],
    x_told: str = CHARTS["step"],
    best: float | None = None,
    from_zero: bool = False,
    warned: tuple[float, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    last_x: float = 0.0,
) -> Markup:
    """told: a y value in words. x_told: what an x is called beside a dot. best: an x that gets an upright line; warned:
    another one that says why. last_x: how far right it reaches at least.
    """
    width, height = size
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup("")
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    y_ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    low, high = y_ticks[0], y_ticks[-1]
    first, last = min(xs), max(*xs, last_x)

    def at_x(x: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def at_y(y: float) -> float:
        return height - BOTTOM - (height - TOP - BOTTOM) * ((y - low) / (high - low) if high > low else 0.5)

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label),
        Markup('<g class="grid">'),
    ]
    for y in y_ticks:
        parts.append(
            Markup('<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text x="{3}" y="{4:.1f}">{5}</text>').format(
                LEFT, width - RIGHT, at_y(y), LEFT - 8, at_y(y) + 5, told(y)
            )
        )
    parts.append(Markup('</g><g class="axis">'))
    for x in _whole_ticks(first, last):
        parts.append(Markup('<text x="{:.1f}" y="{}">{:,}</text>').format(at_x(x), height - BOTTOM + 20, round(x)))
    parts.append(
        Markup('<text class="axis-name" x="{}" y="{}">{}</text></g>').format(width - RIGHT, height - 2, x_label)
    )
    if best is not None and first <= best <= last:
        parts.append(
            Markup('<line class="best" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                at_x(best), TOP, height - BOTTOM
            )
        )
    if warned is not None and first <= warned[0] <= last:
        x, is_right = at_x(warned[0]), warned[0] > (first + last) / 2
        parts.append(Markup('<g class="warned{}">').format(" left" if is_right else ""))
        parts.append(Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, TOP, height - BOTTOM))
        parts.append(
            # above the plot: the curves leave no place in it that is always free
            Markup('<text x="{:.1f}" y="{}">{}</text></g>').format(x + (5 if is_right else -5), TOP - 4, warned[1])
        )
    for one in drawn:
        places = [(at_x(x), at_y(y)) for x, y in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Markup('<g class="series {}"><polyline points="{}"/>').format(one.tone, path))
        if one.is_marked or len(one.points) == 1:
            for (x, y), (at, value) in zip(places, one.points, strict=True):
                parts.append(
                    Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}, {} {:,}: {}</title></circle>').format(
                        x, y, one.name, x_told, round(at), told(value)
                    )
                )
        parts.append(Markup("</g>"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def epoch_charts(
    metrics: VersionMetrics, *, of: str, asked_epochs: int, overfits_from: int | None
) -> dict[str, Markup]:
    """The curves of the metrics panel. of: the model version. asked_epochs: they leave room for those to come."""

    def drawn(name: str, title: str, told: Callable[[float], str]) -> Markup:
        series = [
            Series(
                name=split, tone=split, is_marked=True,
                points=[
                    (epoch.epoch, getattr(scores, name))
                    for epoch in metrics.epochs
                    if (scores := getattr(epoch, split)) is not None
                ],
            )
            for split in ("training", "validation")
        ]  # fmt: skip
        return line_chart(
            series, label=CHARTS["of_epochs"].format(title=title, version=of), x_label=CHARTS["epoch"],
            x_told=CHARTS["epoch"], told=told, size=NARROW,
            best=metrics.best_epoch, last_x=asked_epochs,
            warned=(overfits_from, CHARTS["overfitting"]) if overfits_from is not None else None,
        )  # fmt: skip

    return {
        "loss": drawn("loss", CHARTS["loss"], shown.number),
        "token_accuracy": drawn("token_accuracy", CHARTS["token_accuracy"], shown.percent),
    }


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values around the range, at least two."""
    if not (math.isfinite(low) and math.isfinite(high)) or high - low < 1e-12:
        middle = low if math.isfinite(low) else 0.0
        return [middle - 0.5 * (abs(middle) or 1), middle, middle + 0.5 * (abs(middle) or 1)]
    rough = (high - low) / (count - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(start, end + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    """Of steps and epochs: whole numbers within the range."""
    if last <= first:
        return [first]
    found = [tick for tick in _ticks(first, last, count=8) if first <= tick <= last and tick == round(tick)]
    return found or [first, last]


# ---- the verdict's interval: where the difference lies, and whether that leaves out zero


def interval_picture(verdict: Verdict | None) -> Markup:
    """Empty where nothing was measured."""
    if verdict is None or verdict.difference is None or verdict.interval is None:
        return Markup("")
    width, height, edge = 320, 46, 12
    low, high = verdict.interval
    reach = max(abs(low), abs(high), 1e-9) * 1.15

    def at(value: float) -> float:
        return edge + (width - 2 * edge) * (value + reach) / (2 * reach)

    label = f"Difference {verdict.difference:+.4f}, with 95% between {low:+.4f} and {high:+.4f}"
    return Markup(
        '<svg class="interval" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'
        '<line class="axis-line" x1="{3}" x2="{4}" y1="18" y2="18"/>'
        '<line class="zero" x1="{5:.1f}" x2="{5:.1f}" y1="6" y2="30"/>'
        '<line class="range" x1="{6:.1f}" x2="{7:.1f}" y1="18" y2="18"/><circle cx="{8:.1f}" cy="18" r="5.5"/>'
        '<text x="{3}" y="43">better</text><text x="{5:.1f}" y="43" text-anchor="middle">no difference</text>'
        '<text x="{4}" y="43" text-anchor="end">worse</text></svg>'
    ).format(width, height, label, edge, width - edge, at(0), at(low), at(high), at(verdict.difference))


# ---- lineage: a column for each generation, what was used left of what was made

BOX_WIDTH, BOX_HEIGHT = 208, 54
GAP_X, GAP_Y = 64, 18
MARGIN = 8
SHOWN_CHARACTERS = 24
ADDRESSES = {"base": "/models/", "dataset": "/datasets/", "version": "/versions/"}


def lineage_picture(graph: LineageGraph) -> Markup:
    """What the catalog still has is a link to its page."""
    columns = _columns(graph)
    depth = max(columns.values(), default=0)
    stacks: list[list[LineageNode]] = [[] for _ in range(depth + 1)]
    for node in sorted(graph.nodes, key=lambda node: ("base", "version", "dataset").index(node.kind)):
        stacks[columns[node.id]].append(node)
    tallest = max(len(stack) for stack in stacks)
    width = 2 * MARGIN + (depth + 1) * BOX_WIDTH + depth * GAP_X
    height = 2 * MARGIN + tallest * BOX_HEIGHT + (tallest - 1) * GAP_Y
    places: dict[str, tuple[float, float]] = {}
    for column, stack in enumerate(stacks):
        taken = len(stack) * BOX_HEIGHT + (len(stack) - 1) * GAP_Y
        top = MARGIN + (height - 2 * MARGIN - taken) / 2
        for row, node in enumerate(stack):
            places[node.id] = (MARGIN + column * (BOX_WIDTH + GAP_X), top + row * (BOX_HEIGHT + GAP_Y))
    names = {node.id: node.name for node in graph.nodes}
    parts = [
        Markup(
            '<svg class="lineage" viewBox="0 0 {0} {1:.0f}" width="{0}" height="{1:.0f}" role="group" aria-label="{2}">'
        ).format(width, height, CHARTS["lineage"].format(version=graph.model_version))
    ]
    for edge in graph.edges:
        (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
        x1, y1, y2 = x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2
        bend = (x2 - x1) / 2
        parts.append(
            Markup(
                '<path class="edge {}" d="M{:.0f},{:.0f} C{:.0f},{:.0f} {:.0f},{:.0f} {:.0f},{:.0f}">'
                "<title>{} ({}) {}</title></path>"
            ).format(
                edge.role, x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2,
                visible(names[edge.source]), edge.role, visible(names[edge.target]),
            )
        )  # fmt: skip
    for node in graph.nodes:
        parts.append(_box(node, *places[node.id], is_linked=node.reference is not None))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _columns(graph: LineageGraph) -> dict[str, int]:
    """Column of each node: right of all that it was made from; what nothing made stands next to its first use."""
    sources: dict[str, list[str]] = {node.id: [] for node in graph.nodes}
    targets: dict[str, list[str]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        sources[edge.target].append(edge.source)
        targets[edge.source].append(edge.target)
    column = dict.fromkeys(sources, 0)
    for _ in sources:  # a graph without circles settles in as many rounds as it has nodes
        for node, made_from in sources.items():
            column[node] = max((column[source] + 1 for source in made_from), default=column[node])
    for node, used_by in targets.items():
        if used_by and not sources[node]:
            column[node] = min(column[target] for target in used_by) - 1
    return column


def _box(node: LineageNode, x: float, y: float, *, is_linked: bool) -> Markup:
    name, detail = _cut(visible(node.name)), _cut(visible(node.detail), SHOWN_CHARACTERS + 6)
    inside = Markup(
        '<rect x="{0:.0f}" y="{1:.0f}" width="{2}" height="{3}" rx="9"/>'
        '<text class="node-name" x="{4:.0f}" y="{5:.0f}">{6}</text>'
        '<text class="node-detail" x="{4:.0f}" y="{7:.0f}">{8}</text><title>{9}: {10}</title>'
    ).format(
        x, y, BOX_WIDTH, BOX_HEIGHT, x + 14, y + 23, name, y + 41, detail, visible(node.name), visible(node.detail)
    )
    tone = f"node {node.kind}{' asked' if node.is_asked else ''}"
    if not is_linked:
        return Markup('<g class="{}">{}</g>').format(tone, inside)
    address = ADDRESSES[node.kind] + quote(node.reference or "", safe=":@/")
    return Markup('<a class="{}" href="{}">{}</a>').format(tone, address, inside)


def _cut(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
