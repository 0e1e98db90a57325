"""Index arithmetic of packed documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.models.packing import Packing, visible

CPU = torch.device("cpu")


def boundaries(lengths: list[int]) -> list[int]:
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    return edges


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(1, 4))
def test_gather_then_scatter_is_the_identity(lengths: list[int], heads: int) -> None:
    packing = Packing(boundaries(lengths), device=CPU)
    rows = torch.arange(packing.num_tokens * heads)
    padded = torch.cat([rows[bucket.gather(heads)] for bucket in packing.buckets])
    assert torch.equal(padded[packing.scatter(heads)], rows)
    real = sum(len(bucket.gather(heads)) - len(bucket.padding(heads)) for bucket in packing.buckets)
    assert real == packing.num_tokens * heads


def test_padding_never_reaches_into_another_document() -> None:
    packing = Packing(boundaries([3, 5, 4]), device=CPU)
    (bucket,) = packing.buckets
    assert bucket.token_nL.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 11, 11], [0, 1, 2, 2, 2]]
    assert bucket.real_nL.sum(1).tolist() == [5, 4, 3]


def test_work_grows_with_documents_and_not_with_the_packed_length() -> None:
    lengths = [10 + 3 * number for number in range(60)]
    packing = Packing(boundaries(lengths), device=CPU)
    padded_pairs = sum(bucket.num_documents * bucket.longest**2 for bucket in packing.buckets)
    assert padded_pairs < 1.5 * sum(length**2 for length in lengths)
    assert len(packing.buckets) < 20


@pytest.mark.parametrize("wrong", [[], [0], [1, 3], [0, 0], [0, 4, 3]])
def test_boundaries_must_start_at_zero_and_grow(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="boundaries"):
        Packing(wrong, device=CPU)


def test_a_window_counts_the_query_itself() -> None:
    assert visible(4, window=2, device=CPU).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
