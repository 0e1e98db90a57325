"""The counter-based masks: a pure function of their integers, at the right rate, independent where they must be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tunesmith.kernels.dropout import MULTIPLIER, column_keys, keep_mask, keep_rate, mix, row_keys, threshold

CPU = torch.device("cpu")


def mask(
    *, seed: int = 0, step: int = 1, module: int = 0, offset: int = 0, rows: int = 100, features: int = 64,
    probability: float = 0.05, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    return keep_mask(
        row_keys(seed=seed, step=step, offset=offset, count=rows, device=CPU),
        column_keys(module_index=module, num_features=features, device=CPU),
        num_features=features,
        probability=probability,
        dtype=dtype,
    )


def correlation(first: Tensor, second: Tensor) -> float:
    """In standard deviations of the estimate: far from 0 only where the masks depend on each other."""
    a, b = first - first.mean(), second - second.mean()
    return float((a * b).mean() / (a.std() * b.std()) * math.sqrt(a.numel()))


def test_mask_equals_a_plain_python_formula() -> None:
    def signed(value: int) -> int:
        value &= (1 << 64) - 1
        return value - (1 << 64) if value >= 1 << 63 else value

    start = mix(mix(7) ^ 3)
    found = mask(seed=7, step=3, module=5, offset=11, rows=4, features=10, probability=0.3)
    golden = 0x9E3779B97F4A7C15
    for row in range(4):
        row_key = signed(mix((start + golden * (11 + row)) & ((1 << 64) - 1)) | 1)
        for feature in range(10):
            column = mix((mix(mix(0x7475_6E65) + 5) + golden * (feature // 4)) & ((1 << 64) - 1)) | 1
            block = signed(row_key * signed(column))
            block = signed((block ^ (block >> 32)) * MULTIPLIER)
            lane = (block >> (16 * (feature % 4))) & 0xFFFF
            lane = lane - 65_536 if lane >= 32_768 else lane
            assert found[row, feature] == float(lane >= threshold(0.3) - 32_768)


def test_one_pass_equals_its_parts_at_their_offsets() -> None:
    whole = mask(rows=96, offset=40)
    for parts in (2, 4, 8):
        size = 96 // parts
        joined = torch.cat([mask(rows=size, offset=40 + start) for start in range(0, 96, size)])
        assert torch.equal(joined, whole)


def test_same_integers_give_the_same_mask_in_every_dtype() -> None:
    assert torch.equal(mask(), mask())
    assert torch.equal(mask(dtype=torch.bfloat16).float(), mask())


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.0001, 0.9])
def test_share_of_dropped_features_is_the_probability(probability: float) -> None:
    rows, features = 4_000, 512
    dropped = 1 - float(mask(rows=rows, features=features, probability=probability).mean())
    deviation = math.sqrt(probability * (1 - probability) / (rows * features))
    assert abs(dropped - (1 - keep_rate(probability))) < 4 * deviation
    assert abs(1 - keep_rate(probability) - probability) < 1e-5


def test_every_lane_and_column_has_the_same_rate() -> None:
    rows = 20_000
    rates = 1 - mask(rows=rows, features=256).mean(0)
    deviation = math.sqrt(0.05 * 0.95 / rows)
    assert float((rates - 0.05).abs().max()) < 5 * deviation
    assert float(rates.std()) < 1.2 * deviation


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 2}, {"module": 1}, {"offset": 1}, {"offset": 2_000}])
def test_masks_of_other_places_are_independent(other: dict[str, int]) -> None:
    first, second = mask(rows=2_000, features=256), mask(rows=2_000, features=256, **other)
    assert not torch.equal(first, second)
    assert abs(correlation(first, second)) < 4


def test_columns_and_rows_of_one_mask_are_independent() -> None:
    found = torch.cat([mask(rows=5_000, features=128, module=module, probability=0.3) for module in range(2)], dim=1)
    for matrix in (found, found.T[:, :3_000].contiguous()):
        centred = (matrix - matrix.mean(0)) / matrix.std(0)
        table = centred.T @ centred / math.sqrt(matrix.shape[0])
        table.fill_diagonal_(0)
        pairs = table.numel() / 2
        # At 0.3 counts of coincidences are near normal (at 0.05 they are Poisson, with a long tail): the largest of
        # many lies near sqrt(2 ln n), the spread of all of them is 1.
        assert float(table.abs().max()) < math.sqrt(2 * math.log(pairs)) + 2
        assert abs(float(table.std()) - 1) < 0.05


def test_odd_feature_counts_are_prefixes_of_the_next_whole_block() -> None:
    assert torch.equal(mask(features=61), mask(features=64)[:, :61])
    assert mask(features=61).is_contiguous()


def test_tiny_probabilities_still_drop_and_impossible_ones_are_refused() -> None:
    assert threshold(1e-9) == 1
    assert threshold(0.0) == 0 and keep_rate(0.0) == 1.0
    for wrong in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="not in"):
            threshold(wrong)
