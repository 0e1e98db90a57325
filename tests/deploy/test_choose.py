"""Drawing: reproducible, within top-p, and by the model's own shares."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tunesmith.deploy.choose import Chooser
from tunesmith.errors import JobFailed
from tunesmith.spec.serving import Sampling

LOGITS = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3]))


def drawn(count: int, *, choice: int = 0, **sampling: float) -> list[int]:
    chooser = Chooser(Sampling.model_validate(sampling), choice=choice)
    return [chooser.choose(LOGITS) for _ in range(count)]


def test_no_temperature_takes_the_likeliest() -> None:
    assert set(drawn(20, temperature=0)) == {1}


def test_a_seed_repeats_and_other_seeds_and_choices_differ() -> None:
    first = drawn(60, seed=7)
    assert first == drawn(60, seed=7)
    assert first != drawn(60, seed=8)
    assert first != drawn(60, seed=7, choice=1)
    assert drawn(60) != drawn(60)


def test_shares_are_those_of_the_model() -> None:
    counts = Counter(drawn(4000, seed=1))
    for token, share in enumerate([0.05, 0.5, 0.15, 0.3]):
        assert abs(counts[token] / 4000 - share) < 0.03  # four standard deviations


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {1}), (0.5, {1}), (0.51, {1, 3}), (0.9, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_likeliest_that_make_up_the_share(top_p: float, kept: set[int]) -> None:
    assert set(drawn(400, seed=1, top_p=top_p)) == kept


def test_a_temperature_near_zero_is_no_division_fault() -> None:
    assert set(drawn(20, temperature=1e-320, seed=1)) == {1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_output_that_is_no_number_is_refused(temperature: float) -> None:
    chooser = Chooser(Sampling(temperature=temperature), choice=0)
    with pytest.raises(JobFailed) as refused:
        chooser.choose(torch.tensor([0.0, float("nan")]))
    assert refused.value.code == "OUTPUT_NOT_FINITE"
