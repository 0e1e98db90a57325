"""Values as people read them: bytes, times, durations, numbers. Each is a filter of the templates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from tunesmith.server.pages import words

MISSING = "–"
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
TONES = {  # state -> tone of its badge (console.css)
    "ACCEPTED": "idle",
    "IN_PROGRESS": "live",
    "CREATING": "live",
    "WAITING": "idle",
    "RUNNING": "live",
    "CANCELING": "warn",
    "SUCCEEDED": "good",
    "ACTIVE": "good",
    "FAILED": "bad",
    "CANCELED": "off",
    "DELETED": "off",
}
OUTCOMES = {
    "improved": "good",
    "no measurable improvement": "warn",
    "worse": "bad",
    "not usable": "bad",
    "not measured": "off",
}


def tone(state: Any) -> str:
    return TONES[str(state)] if str(state) in TONES else OUTCOMES.get(str(state), "off")


def state_word(state: Any) -> str:
    return words.STATES.get(str(state), str(state))


def size(count: float | None) -> str:
    """Bytes in steps of a thousand, as disks are sold."""
    if count is None:
        return MISSING
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.3g} {UNITS[unit]}"


def number(value: float | None) -> str:
    """With separators; three significant digits for what is no whole number."""
    if value is None:
        return MISSING
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def short(value: float | None) -> str:
    """12.3k, 4.56M: for tiles where the size counts."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:  # what rounds up to the next unit is told in it
            return f"{value / limit:.3g}{unit}"
    return number(value)


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}%"


def loss(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def rate(value: float | None) -> str:
    """A learning rate: 0.0002, 1.5e-05."""
    return MISSING if value is None else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `0.4 s`."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(text: str | None) -> str | Markup:
    """A time element: `2026-11-25 04:12` with the whole of it as its title; a script makes it local and relative."""
    if text is None:
        return MISSING
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(text, text[:16].replace("T", " ") + " UTC")


def seconds_between(start: str | None, end: str | None = None) -> float | None:
    """end: None for now."""
    if start is None:
        return None
    last = datetime.fromisoformat(end) if end is not None else datetime.now(UTC)
    return max(0.0, (last - datetime.fromisoformat(start)).total_seconds())


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


FILTERS: dict[str, Callable[..., Any]] = {
    "tone": tone,
    "state_word": state_word,
    "size": size,
    "number": number,
    "short": short,
    "percent": percent,
    "loss": loss,
    "rate": rate,
    "duration": duration,
    "moment": moment,
    "seconds_until": seconds_between,
    "plural": plural,
}
