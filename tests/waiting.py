"""How a test waits: for a condition, with a patience that only a fault uses up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 180.0  # on two cores in company a thing may take ten times as long as alone


def until(
    condition: Callable[[], T],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    told: Callable[[], object] = lambda: "",
) -> T:
    """The first true value of the condition. told: what a failure should show beside `what` never came."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s\n{told()}"
        time.sleep(0.01)
    return value
