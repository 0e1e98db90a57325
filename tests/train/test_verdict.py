"""The verdict's rules on made-up rows, and its interval against a case with a known answer."""

import numpy as np
import pytest

from tunesmith.spec.verdict import Outcome
from tunesmith.train.evaluation import RowScores
from tunesmith.train.verdict import judge, paired_interval

ROWS = 60


def scores(loss: float, accuracy: float = 0.5, *, rows: int = ROWS, noise: float = 0.1, seed: int = 0) -> RowScores:
    generator = np.random.default_rng(seed)
    tokens_R = generator.integers(5, 30, rows)
    return RowScores(
        nll_R=tokens_R * (loss + noise * generator.standard_normal(rows)),
        tokens_R=tokens_R,
        right_R=np.round(tokens_R * accuracy).astype(np.int64),
        end_is_right_R=np.ones(rows, dtype=bool),
    )


def verdict_of(base: RowScores, tuned: RowScores, **changes: object):
    options = {"measured_on": "validation", "chose_epoch": False, "seed": 0, "exact": None, "exact_note": None}
    return judge(base, tuned, **{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "tuned", "outcome"),
    [
        (scores(3.0), scores(2.0, 0.8), Outcome.IMPROVED),
        (scores(2.0), scores(3.0, 0.5), Outcome.NOT_USABLE),
        (scores(2.0), scores(2.0, 0.5), Outcome.NO_IMPROVEMENT),
        (scores(2.0), scores(2.0, 0.1), Outcome.WORSE),
        (scores(2.0, 0.9), scores(1.5, 0.2), Outcome.WORSE),
        (scores(2.0, rows=7), scores(1.0, rows=7), Outcome.NOT_MEASURED),
    ],
)
def test_outcome(base: RowScores, tuned: RowScores, outcome: Outcome) -> None:
    verdict = verdict_of(base, tuned)
    assert verdict.outcome is outcome
    assert verdict.reasons


def test_not_measured_has_no_figures() -> None:
    verdict = verdict_of(scores(2.0, rows=3), scores(1.0, rows=3))
    assert (verdict.base_loss, verdict.tuned_loss, verdict.difference, verdict.interval) == (None, None, None, None)


def test_losses_are_token_weighted_and_the_difference_lies_in_its_interval() -> None:
    base, tuned = scores(3.0), scores(2.0, seed=0)
    verdict = verdict_of(base, tuned)
    assert verdict.base_loss == pytest.approx(base.nll_R.sum() / base.tokens_R.sum())
    assert verdict.difference == pytest.approx(verdict.tuned_loss - verdict.base_loss)
    assert verdict.interval is not None and verdict.interval[0] <= verdict.difference <= verdict.interval[1]


def test_interval_has_the_width_that_theory_gives() -> None:
    generator = np.random.default_rng(1)
    gain = generator.normal(0.0, 1.0, 400)
    *_, (low, high) = paired_interval(np.zeros(400), gain, weights_R=np.ones(400), seed=0)
    expected = 2 * 1.96 * gain.std() / 20  # two-sided normal interval of a mean of 400
    assert high - low == pytest.approx(expected, rel=0.1)


def test_interval_is_the_same_for_the_same_seed() -> None:
    base, tuned = scores(2.0), scores(1.9, seed=3)
    assert verdict_of(base, tuned, seed=5).interval == verdict_of(base, tuned, seed=5).interval
    assert verdict_of(base, tuned, seed=5).interval != verdict_of(base, tuned, seed=6).interval


def test_reasons_tell_of_an_end_token_not_learned_and_of_rows_that_chose_the_epoch() -> None:
    tuned = scores(2.0, 0.8)
    runs_on = RowScores(
        nll_R=tuned.nll_R, tokens_R=tuned.tokens_R, right_R=tuned.right_R, end_is_right_R=np.zeros(ROWS, dtype=bool)
    )
    text = " ".join(verdict_of(scores(3.0), runs_on, chose_epoch=True).reasons)
    assert "end token" in text
    assert "--test-dataset" in text
    assert "end token" not in " ".join(verdict_of(scores(3.0), tuned).reasons)


def test_exact_match_going_down_is_worse_even_if_the_loss_fell() -> None:
    exact = ([True] * 40, [False] * 40)
    verdict = verdict_of(scores(3.0), scores(2.0, 0.8), exact=exact)
    assert verdict.outcome is Outcome.WORSE
    assert verdict.exact_match is not None and verdict.exact_match.difference == -1
