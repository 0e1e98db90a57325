"""The verdict: is the tuned model better than its base, on rows that both answered?"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tunesmith.spec.base import Spec

MINIMUM_ROWS = 8  # below this a bootstrap interval over rows says nothing


class Outcome(StrEnum):
    IMPROVED = "improved"
    NO_IMPROVEMENT = "no measurable improvement"
    WORSE = "worse"
    NOT_USABLE = "not usable"
    NOT_MEASURED = "not measured"


class PairedScore(Spec):
    """One score of base and tuned on the same rows; `interval` is the 95% bootstrap interval of the difference."""

    base: float
    tuned: float
    difference: float = Field(description="tuned - base.")
    interval: tuple[float, float]


class Verdict(Spec):
    outcome: Outcome
    reasons: list[str]
    rows: int = Field(description="Rows it was measured on.")
    measured_on: str = Field(description="`validation`, `test` or `nothing`.")
    base_loss: float | None
    tuned_loss: float | None
    difference: float | None = Field(description="tuned loss - base loss, in nats a token; below 0 is better.")
    interval: tuple[float, float] | None = Field(
        description="95% bootstrap interval of `difference`, rows resampled in pairs."
    )
    token_accuracy: PairedScore | None = None
    exact_match: PairedScore | None = Field(
        default=None, description="Greedy answers equal to the completion, where generated."
    )
