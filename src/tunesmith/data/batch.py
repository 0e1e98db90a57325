"""Batches: the order of rows, and the rows of one step as tokens, shifted labels, positions and boundaries.

In: an ExampleSet and settings. Out: `Batch`es, each one sequence of documents without padding (T tokens). Order is a
pure function of (seed, epoch); a place in the run is counted in rows, so micro-batches may change at a resume.
Nothing here is random beyond `epoch_order`, and nothing here is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.pack import pack

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row: tokens (L,) int64, learned (L,) bool, and its line in the dataset's file."""

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]
    line: int


class Examples(Protocol):
    """What batching needs of an ExampleSet."""

    @property
    def lengths(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One forward pass: documents one after the other.

    tokens_T, labels_T, positions_T: (T,) int64. labels_T[t] is the token to predict at t, already shifted;
    IGNORE_INDEX where nothing is learned, and at the last token of each document.
    boundaries: (num_documents + 1,) int32, cumulative. rows: the example index of each document.
    offset_in_step: tokens of the step before this batch. num_learned: labels that count.
    """

    tokens_T: NDArray[np.int64]
    labels_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    boundaries: NDArray[np.int32]
    rows: NDArray[np.int64]
    offset_in_step: int
    num_learned: int


def epoch_order(num_rows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of rows in `epoch` (from 1): a permutation that depends on nothing but the arguments."""
    return _order(num_rows, seed, epoch).copy()


@lru_cache(maxsize=2)  # a step asks for the order of its whole epoch; drawing it takes 20 ms for a million rows
def _order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(num_rows).astype(np.int64, copy=False)


def steps_per_epoch(num_rows: int, *, global_batch_size: int) -> int:
    return -(-num_rows // global_batch_size)


def num_steps(num_rows: int, *, global_batch_size: int, epochs: int) -> int:
    """Steps of a run; the short last batch of an epoch is a step."""
    return steps_per_epoch(num_rows, global_batch_size=global_batch_size) * epochs


def rows_of_step(num_rows: int, *, seed: int, step: int, global_batch_size: int) -> tuple[int, NDArray[np.int64]]:
    """(epoch, example indices) of `step`; steps and epochs count from 1, each epoch starts a new step."""
    if step < 1:
        raise ValueError(f"steps count from 1, not {step}")
    epochs_before, place = divmod(step - 1, steps_per_epoch(num_rows, global_batch_size=global_batch_size))
    order = _order(num_rows, seed, epochs_before + 1)
    return epochs_before + 1, order[place * global_batch_size : (place + 1) * global_batch_size].copy()


def step_batches(
    examples: Examples, rows: NDArray[np.int64] | Sequence[int], *, sequence_length: int, micro_batch_size: int
) -> list[Batch]:
    """The rows of one step, packed into rows of `sequence_length`, at most `micro_batch_size` packed rows a batch.

    Each batch has about as many: a last one of a single row would leave a GPU idle. The documents' order, and so each
    one's place in the step, does not depend on `micro_batch_size`.
    """
    rows = np.asarray(rows, np.int64)
    packed = pack(examples.lengths[rows], sequence_length=sequence_length)
    batches: list[Batch] = []
    offset = 0
    size = -(-len(packed) // -(-len(packed) // micro_batch_size))
    for start in range(0, len(packed), size):
        members = [position for row in packed[start : start + size] for position in row]
        batches.append(batch_of(examples, rows[members], offset_in_step=offset))
        offset += len(batches[-1].tokens_T)
    return batches


def evaluation_batches(examples: Examples, rows: NDArray[np.int64] | Sequence[int], *, max_tokens: int) -> list[Batch]:
    """Rows sorted by length (longest first), each batch of at most `max_tokens` tokens (or one row)."""
    rows = np.asarray(rows, np.int64)
    lengths = examples.lengths[rows]
    batches: list[Batch] = []
    members: list[int] = []
    size = offset = 0
    for position in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[position])
        if members and size + length > max_tokens:
            batches.append(batch_of(examples, rows[members], offset_in_step=offset))
            offset += size
            members, size = [], 0
        members.append(position)
        size += length
    if members:
        batches.append(batch_of(examples, rows[members], offset_in_step=offset))
    return batches


def padded(batch: Batch, *, multiple: int) -> Batch:
    """The batch with a document more, of token 0 and never learned, so that its tokens are a multiple of `multiple`.

    A GPU's kernels work on blocks of rows, and its allocator gives memory of few sizes again. The row is not counted:
    `rows` stays as it is, and so do the documents before it.
    """
    missing = -len(batch.tokens_T) % multiple
    if not missing:
        return batch
    end = np.int32(batch.boundaries[-1] + missing)
    return replace(
        batch,
        tokens_T=np.concatenate([batch.tokens_T, np.zeros(missing, np.int64)]),
        labels_T=np.concatenate([batch.labels_T, np.full(missing, IGNORE_INDEX, np.int64)]),
        positions_T=np.concatenate([batch.positions_T, np.arange(missing, dtype=np.int64)]),
        boundaries=np.append(batch.boundaries, end),
    )


def batch_of(examples: Examples, rows: NDArray[np.int64], *, offset_in_step: int) -> Batch:
    """These rows one after the other, as one forward pass."""
    documents = [examples[int(row)] for row in rows]
    boundaries = np.zeros(len(documents) + 1, np.int32)
    np.cumsum([len(document.tokens) for document in documents], out=boundaries[1:])
    tokens = np.concatenate([document.tokens for document in documents])
    labels = np.full(len(tokens), IGNORE_INDEX, np.int64)
    positions = np.arange(len(tokens), dtype=np.int64)
    for document, start, end in zip(documents, boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        labels[start : end - 1] = np.where(document.learned[1:], document.tokens[1:], IGNORE_INDEX)
        positions[start:end] -= start
    return Batch(
        tokens_T=tokens,
        labels_T=labels,
        positions_T=positions,
        boundaries=boundaries,
        rows=rows,
        offset_in_step=offset_in_step,
        num_learned=int(np.count_nonzero(labels != IGNORE_INDEX)),
    )
