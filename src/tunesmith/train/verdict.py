"""The verdict: base against tuned on the same held-out rows, in pairs, with an interval.

Arithmetic over per-row sums only (numpy); the rows were scored elsewhere. The interval is the percentile bootstrap
over rows (Efron and Tibshirani 1993, chapter 13): rows, not tokens, are drawn, since tokens of a row go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.spec.verdict import MINIMUM_ROWS, Outcome, PairedScore, Verdict
from tunesmith.train.evaluation import RowScores

RESAMPLES = 2000
COVERAGE = (2.5, 97.5)
END_TOKEN_LEARNED = 0.9  # share of rows whose end token is predicted; below it, answers run on


def paired_interval(
    base_R: np.ndarray, tuned_R: np.ndarray, *, weights_R: np.ndarray, seed: int
) -> tuple[float, float, float, tuple[float, float]]:
    """Ratio of sums for base and tuned, their difference (tuned - base), and its 95% interval.

    base_R, tuned_R: sums of each row; weights_R: what they are divided by (tokens, or ones).
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x7E5D]))
    num_rows = len(base_R)
    gain_R = tuned_R.astype(np.float64) - base_R
    differences = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = generator.integers(0, num_rows, num_rows)
        differences[index] = gain_R[drawn].sum() / weights_R[drawn].sum()
    low, high = np.percentile(differences, COVERAGE)
    total = float(weights_R.sum())
    base, tuned = float(base_R.sum()) / total, float(tuned_R.sum()) / total
    difference = tuned - base
    # Rounding may put a difference that is the same in every row a hair outside of its own interval.
    return base, tuned, difference, (min(float(low), difference), max(float(high), difference))


def _score(base_R: np.ndarray, tuned_R: np.ndarray, *, weights_R: np.ndarray, seed: int) -> PairedScore:
    base, tuned, difference, interval = paired_interval(base_R, tuned_R, weights_R=weights_R, seed=seed)
    return PairedScore(base=base, tuned=tuned, difference=difference, interval=interval)


def not_measured(reason: str, *, rows: int, measured_on: str) -> Verdict:
    return Verdict(
        outcome=Outcome.NOT_MEASURED,
        reasons=[reason],
        rows=rows,
        measured_on=measured_on,
        base_loss=None,
        tuned_loss=None,
        difference=None,
        interval=None,
    )


def dead_adapter(reason: str, *, rows: int, measured_on: str) -> Verdict:
    """An adapter that cannot work: non-finite values, or all of its output matrices zero."""
    return not_measured(reason, rows=rows, measured_on=measured_on).model_copy(update={"outcome": Outcome.NOT_USABLE})


def judge(
    base: RowScores,
    tuned: RowScores,
    *,
    measured_on: str,
    chose_epoch: bool,
    seed: int,
    exact: tuple[Sequence[bool], Sequence[bool]] | None,
    exact_note: str | None,
) -> Verdict:
    """Outcome and reasons. Rules:

    - the whole interval of the loss difference above 0: not usable;
    - token accuracy or exact match down with the whole interval: worse;
    - the whole interval of the loss difference below 0: improved;
    - else: no measurable improvement.
    """
    rows = len(base.nll_R)
    if rows < MINIMUM_ROWS:
        return not_measured(
            f"{rows} {measured_on} row(s): fewer than {MINIMUM_ROWS} say nothing about other rows.",
            rows=rows,
            measured_on=measured_on,
        )
    base_loss, tuned_loss, difference, interval = paired_interval(
        base.nll_R, tuned.nll_R, weights_R=base.tokens_R, seed=seed
    )
    accuracy = _score(base.right_R, tuned.right_R, weights_R=base.tokens_R, seed=seed)
    exact_match = None
    if exact is not None:
        before, after = (np.asarray(answers, dtype=np.float64) for answers in exact)
        exact_match = _score(before, after, weights_R=np.ones(len(before)), seed=seed)
    if interval[0] > 0:
        outcome = Outcome.NOT_USABLE
    elif accuracy.interval[1] < 0 or (exact_match is not None and exact_match.interval[1] < 0):
        outcome = Outcome.WORSE
    elif interval[1] < 0:
        outcome = Outcome.IMPROVED
    else:
        outcome = Outcome.NO_IMPROVEMENT
    reasons = [
        f"Loss {base_loss:.4f} -> {tuned_loss:.4f} nats a token on {rows} {measured_on} rows "
        f"(difference {difference:+.4f}, 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}).",
        f"Token accuracy {accuracy.base:.1%} -> {accuracy.tuned:.1%} "
        f"(interval {accuracy.interval[0]:+.1%} to {accuracy.interval[1]:+.1%}).",
    ]
    if exact_match is not None:
        reasons.append(
            f"Greedy answers equal to the completion: {exact_match.base:.1%} -> {exact_match.tuned:.1%} "
            f"of {len(exact[0]) if exact else 0} rows."
        )
    if exact_note:
        reasons.append(exact_note)
    end_share = float(np.mean(tuned.end_is_right_R))
    if end_share < END_TOKEN_LEARNED:
        reasons.append(f"The end token is predicted on only {end_share:.0%} of the rows: answers may run on.")
    if outcome is Outcome.NO_IMPROVEMENT:
        reasons.append("The interval holds 0: more rows, more epochs or another learning rate may tell more.")
    if abs(difference) < 0.001 * max(base_loss, 1e-9):
        reasons.append(
            "The change is tiny: the adapter has hardly moved. A higher learning rate or more epochs may help."
        )
    if chose_epoch:
        reasons.append(
            "The same rows chose the best epoch, which flatters a little: --test-dataset measures on unseen rows."
        )
    return Verdict(
        outcome=outcome,
        reasons=reasons,
        rows=rows,
        measured_on=measured_on,
        base_loss=base_loss,
        tuned_loss=tuned_loss,
        difference=difference,
        interval=interval,
        token_accuracy=accuracy,
        exact_match=exact_match,
    )
