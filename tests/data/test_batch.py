"""Order, packing, and what a batch holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.batch import (
    IGNORE_INDEX,
    Batch,
    Example,
    epoch_order,
    evaluation_batches,
    num_steps,
    padded,
    rows_of_step,
    step_batches,
)
from tunesmith.data.pack import pack

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=40)


@dataclass
class FewExamples:
    """Examples whose tokens tell where they stand: row * 1000 + position."""

    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        length = int(self.lengths[index])
        learned = (np.arange(length) * 7 + index) % 3 > 0
        return Example(tokens=index * 1000 + np.arange(length, dtype=np.int64), learned=learned, line=index + 1)


def examples_of(lengths: list[int]) -> FewExamples:
    return FewExamples(np.array(lengths, np.int32))


@given(LENGTHS, st.integers(40, 90))
def test_packing_keeps_every_row_once_and_the_length(lengths: list[int], sequence_length: int) -> None:
    packed = pack(lengths, sequence_length=sequence_length)
    assert sorted(position for row in packed for position in row) == list(range(len(lengths)))
    assert all(sum(lengths[position] for position in row) <= sequence_length for row in packed)
    assert packed == pack(lengths, sequence_length=sequence_length)
    # best fit opens a new packed row only if none has room: two packed rows together never fit into one
    totals = sorted(sum(lengths[position] for position in row) for row in packed)
    assert len(totals) < 2 or totals[0] + totals[1] > sequence_length


def test_packing_fills_the_tightest_room() -> None:
    assert pack([6, 5, 4, 3, 2], sequence_length=10) == [[0, 2], [1, 3, 4]]


def test_packing_refuses_a_row_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="11 tokens"):
        pack([3, 11], sequence_length=10)


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(1, 1000))
def test_order_is_a_permutation_and_a_pure_function(num_rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_rows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_rows))
    order[:] = 0  # what a caller does with it changes nothing
    assert sorted(epoch_order(num_rows, seed=seed, epoch=epoch).tolist()) == list(range(num_rows))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch).tolist()) for seed in range(3) for epoch in range(1, 4)}
    assert len(orders) == 9


def test_order_is_the_same_on_every_machine_and_in_every_release() -> None:
    assert epoch_order(8, seed=0, epoch=1).tolist() == ORDER_OF_EIGHT


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 4), st.integers(0, 99))
def test_every_row_once_an_epoch(num_rows: int, global_batch_size: int, epochs: int, seed: int) -> None:
    steps = num_steps(num_rows, global_batch_size=global_batch_size, epochs=epochs)
    seen: dict[int, list[int]] = {epoch: [] for epoch in range(1, epochs + 1)}
    for step in range(1, steps + 1):
        epoch, rows = rows_of_step(num_rows, seed=seed, step=step, global_batch_size=global_batch_size)
        assert 0 < len(rows) <= global_batch_size
        seen[epoch] += rows.tolist()
    assert all(sorted(rows) == list(range(num_rows)) for rows in seen.values())


def test_short_last_batch_is_a_step_and_an_epoch_starts_a_new_one() -> None:
    assert num_steps(10, global_batch_size=4, epochs=2) == 6
    sizes = [len(rows_of_step(10, seed=0, step=step, global_batch_size=4)[1]) for step in range(1, 7)]
    assert sizes == [4, 4, 2, 4, 4, 2]


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        rows_of_step(10, seed=0, step=0, global_batch_size=4)


@given(LENGTHS, st.integers(40, 90), st.integers(1, 6))
def test_batches_do_not_depend_on_the_micro_batch_size(
    lengths: list[int], sequence_length: int, micro_batch_size: int
) -> None:
    examples = examples_of(lengths)
    rows = epoch_order(len(lengths), seed=1, epoch=1)
    whole = step_batches(examples, rows, sequence_length=sequence_length, micro_batch_size=10_000)
    parts = step_batches(examples, rows, sequence_length=sequence_length, micro_batch_size=micro_batch_size)
    assert len(whole) == 1
    for name in ("tokens_T", "labels_T", "positions_T", "rows"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(whole[0], name).tolist()
    assert sum(part.num_learned for part in parts) == whole[0].num_learned
    offset = 0
    for part in parts:
        assert part.offset_in_step == offset
        offset += len(part.tokens_T)
    assert all(len(part.tokens_T) <= sequence_length * micro_batch_size for part in parts)
    for part in parts:
        _require_sound(part, examples)


@given(LENGTHS, st.integers(1, 100))
def test_evaluation_batches_hold_every_row_once_longest_first(lengths: list[int], max_tokens: int) -> None:
    examples = examples_of(lengths)
    batches = evaluation_batches(examples, np.arange(len(lengths)), max_tokens=max_tokens)
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch.tokens_T) <= max_tokens or len(batch.rows) == 1
        _require_sound(batch, examples)


def _require_sound(batch: Batch, examples: FewExamples) -> None:
    """Labels are the next token of the same document, and only where it is learned; positions restart."""
    assert batch.boundaries.dtype == np.int32 and batch.boundaries[0] == 0
    assert batch.boundaries[-1] == len(batch.tokens_T) == len(batch.labels_T) == len(batch.positions_T)
    for number, row in enumerate(batch.rows.tolist()):
        start, end = batch.boundaries[number], batch.boundaries[number + 1]
        example = examples[row]
        assert batch.tokens_T[start:end].tolist() == example.tokens.tolist()
        assert batch.positions_T[start:end].tolist() == list(range(end - start))
        for position in range(end - start):
            label = batch.labels_T[start + position]
            is_learned = position + 1 < end - start and example.learned[position + 1]
            assert label == (example.tokens[position + 1] if is_learned else IGNORE_INDEX)
    assert batch.num_learned == int((batch.labels_T != IGNORE_INDEX).sum())


ORDER_OF_EIGHT = [2, 0, 4, 1, 7, 5, 3, 6]


@given(LENGTHS, st.integers(1, 16))
def test_padding_adds_a_document_that_nobody_learns_and_leaves_the_rest(lengths: list[int], multiple: int) -> None:
    [batch] = evaluation_batches(examples_of(lengths), range(len(lengths)), max_tokens=10_000)
    made = padded(batch, multiple=multiple)
    count = len(batch.tokens_T)
    assert len(made.tokens_T) % multiple == 0 and len(made.tokens_T) - count < multiple
    for name in ("tokens_T", "labels_T", "positions_T"):
        assert np.array_equal(getattr(made, name)[:count], getattr(batch, name))
    assert (made.labels_T[count:] == IGNORE_INDEX).all()
    edges = batch.boundaries.tolist()
    assert made.boundaries.tolist() == (edges if count % multiple == 0 else [*edges, len(made.tokens_T)])
    assert np.array_equal(made.positions_T[count:], np.arange(len(made.tokens_T) - count))
    assert (made.num_learned, made.offset_in_step) == (batch.num_learned, batch.offset_in_step)
    assert np.array_equal(made.rows, batch.rows)
