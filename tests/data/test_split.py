"""The split by content."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.split import also_in, first_equal, split_off
from tunesmith.errors import InputRefused

CONTENTS = st.lists(st.integers(0, 12), min_size=2, max_size=60)


def hashes_of(contents: list[int]) -> NDArray[np.uint64]:
    """Well mixed 16-byte hashes, two uint64 a row, as content hashes are."""
    table = np.random.Generator(np.random.Philox(key=5)).integers(0, 2**63, (64, 2), dtype=np.uint64)
    return table[contents]


@given(CONTENTS)
def test_first_equal_is_the_first_row_of_the_same_content(contents: list[int]) -> None:
    assert first_equal(hashes_of(contents)).tolist() == [contents.index(content) for content in contents]


def test_hashes_that_share_a_half_are_not_equal() -> None:
    hashes = np.array([[1, 2], [1, 3], [1, 2], [2, 2]], np.uint64)
    assert first_equal(hashes).tolist() == [0, 1, 0, 3]


@given(CONTENTS, st.floats(0.001, 0.999), st.integers(0, 2**32 - 1))
def test_equal_rows_are_on_one_side_and_both_sides_have_rows(contents: list[int], fraction: float, seed: int) -> None:
    groups = len(set(contents))
    hashes = hashes_of(contents)
    if groups < 2:
        with pytest.raises(InputRefused):
            split_off(hashes, first_equal(hashes), fraction=fraction, seed=seed)
        return
    chosen = split_off(hashes, first_equal(hashes), fraction=fraction, seed=seed)
    inside = {content for content, is_chosen in zip(contents, chosen, strict=True) if is_chosen}
    outside = {content for content, is_chosen in zip(contents, chosen, strict=True) if not is_chosen}
    assert not inside & outside and inside and outside
    assert len(inside) == min(max(1, round(fraction * groups)), groups - 1)


@given(CONTENTS, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_rows(contents: list[int], seed: int, random: object) -> None:
    if len(set(contents)) < 2:
        return
    shuffled = sorted(contents, key=lambda _: random.random())  # type: ignore[attr-defined]
    sides = []
    for order in (contents, shuffled):
        hashes = hashes_of(order)
        chosen = split_off(hashes, first_equal(hashes), fraction=0.3, seed=seed)
        sides.append({content for content, is_chosen in zip(order, chosen, strict=True) if is_chosen})
    assert sides[0] == sides[1]


def test_split_depends_on_the_seed() -> None:
    hashes = hashes_of(list(range(60)))
    first = first_equal(hashes)
    sides = {tuple(split_off(hashes, first, fraction=0.2, seed=seed).tolist()) for seed in range(8)}
    assert len(sides) == 8


def test_one_row_with_a_split_is_refused_and_says_the_way_out() -> None:
    hashes = hashes_of([3])
    with pytest.raises(InputRefused) as refused:
        split_off(hashes, first_equal(hashes), fraction=0.1, seed=0)
    assert refused.value.code == "SPLIT_NEEDS_TWO" and "--validation-fraction 0.1" in refused.value.message
    assert "--validation-fraction 0" in (refused.value.hint or "")


@given(CONTENTS, CONTENTS)
def test_also_in_finds_the_first_twin(contents: list[int], others: list[int]) -> None:
    expected = [others.index(content) if content in others else -1 for content in contents]
    assert also_in(hashes_of(contents), hashes_of(others)).tolist() == expected
