"""Loss and accuracy over the run as plain SVG: one file, no script, no font of its own, light and dark.

In come series of (x, y) points; out goes text. Gaps and single points are drawn as they are; nothing is smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 48, 44
MAXIMUM_POINTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    is_faint: bool = False
    has_dots: bool = True


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between low and high: 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / wanted or 1.0
    power = 10 ** math.floor(math.log10(raw))
    spacing = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / spacing - 1e-9)
    return [index * spacing for index in range(first, math.floor(high / spacing + 1e-9) + 1)]


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = -(-len(points) // MAXIMUM_POINTS)
    return points if stride <= 1 else [*points[::stride], points[-1]]


def chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, from_zero: bool = True) -> str:
    """An SVG document. Series without points are left out of the picture, not of the legend."""
    xs = [x for one in series for x, _ in one.points] or [0.0]
    ys = [y for one in series for _, y in one.points] or [0.0]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = (0.0 if from_zero else min(ys)), max(ys)
    y_high = y_high + 0.05 * (y_high - y_low) if y_high > y_low else y_low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">',
        "<style>text{fill:#333}.grid{stroke:#8884;stroke-width:1}svg{background:#fff}"
        "@media(prefers-color-scheme:dark){svg{background:#161b22}text{fill:#ccc}}</style>",
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    for y in _ticks(y_low, y_high):
        _, down = place(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{y:.4g}</text>')
    for x in _ticks(x_low, x_high, 8):
        if x == int(x):
            across, _ = place(x, y_low)
            parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.4g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 10}" font-size="11">{escape(y_label)}</text>')
    legend = WIDTH - RIGHT
    for one in reversed(series):
        legend -= 7 * len(one.name) + 26
        parts.append(f'<rect x="{legend}" y="11" width="12" height="4" fill="{one.colour}"/>')
        parts.append(f'<text x="{legend + 16}" y="18">{escape(one.name)}</text>')
    for one in series:
        placed = [place(x, y) for x, y in _thin(one.points)]
        line = " ".join(f"{x},{y}" for x, y in placed)
        style = 'stroke-width="1" stroke-opacity="0.45"' if one.is_faint else 'stroke-width="2"'
        if len(placed) > 1:
            parts.append(f'<polyline points="{line}" fill="none" stroke="{one.colour}" {style}/>')
        if one.has_dots:
            parts.extend(f'<circle cx="{x}" cy="{y}" r="3" fill="{one.colour}"/>' for x, y in placed)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
