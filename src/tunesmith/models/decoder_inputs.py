"""A batch as the decoder reads it: padded to sizes that come back, its tails found, on the device.

`lay` puts all of a `Batch` into two arrays, one copy to the device each; `Laid.inputs` takes them apart there. Batches
of one `Form` differ in values alone, so what was recorded for one is replayed for all of them (`models/replay.py`).

Sizes are rounded up on a grid: of a size that was not seen before, products are looked up and their kernel loaded,
which takes tenths of a second. Full packed rows lose nothing by it.

Dimensions: T tokens (padded), Q tokens the last layer goes on with, N labelled positions, E half a head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.batch import IGNORE_INDEX, Batch
from tunesmith.kernels.backend import ROW_MULTIPLE
from tunesmith.kernels.dropout import step_places
from tunesmith.kernels.varlen_attention import Documents, tables

TAIL_MULTIPLE = 512
LABELS_MULTIPLE = 256
BLOCKS_MULTIPLE = 64  # a block of nothing is a program that ends at once
# sizes from one power of two to the next
TOKEN_STEPS = 16
LABEL_STEPS = 8  # a tenth of a small model's work goes by them
OTHER_STEPS = 4


class Form(NamedTuple):
    """What a pass launches depends on nothing else of a batch. blocks: rows of the four tables of attention's tiles.

    is_windowed: a document is longer than the model's sliding window.
    """

    tokens: int
    tail: int
    labels: int
    blocks: tuple[int, ...]
    is_windowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One batch on the device. tail_Q: the tokens that the last layer goes on with, a suffix of each document.

    places_T: each token's place in the step, moved by the step's key. labelled_N: which of tail_Q carry a label, filled
    up to a multiple; labels_N, IGNORE_INDEX in the filling. positions_N: the labelled ones' places among the T tokens.
    """

    tokens_T: Tensor
    places_T: Tensor
    cos_TE: Tensor
    sin_TE: Tensor
    documents: Documents
    tail_Q: Tensor
    tail_documents: Documents
    labelled_N: Tensor
    positions_N: Tensor
    labels_N: Tensor
    is_windowed: bool

    @property
    def angles(self) -> tuple[Tensor, Tensor]:
        return self.cos_TE, self.sin_TE

    @property
    def tail_angles(self) -> tuple[Tensor, Tensor]:
        return self.cos_TE[self.tail_Q], self.sin_TE[self.tail_Q]


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """wide: int64, narrow: int32, both flat and on the device. boundaries, queries: of documents, for plain references.

    num_labels: without the filling.
    """

    form: Form
    wide: Tensor
    narrow: Tensor
    boundaries: np.ndarray
    queries: np.ndarray
    num_labels: int

    def clone(self) -> Laid:
        return replace(self, wide=self.wide.clone(), narrow=self.narrow.clone())

    def copy_(self, other: Laid) -> None:
        """Take over the values of a batch of the same form."""
        self.wide.copy_(other.wide)
        self.narrow.copy_(other.narrow)

    def inputs(self, frequencies_E: Tensor, angle_scale: float, *, step: Tensor | int = 0) -> Inputs:
        """step: `dropout.step_key`, or what holds it on the device."""
        T, Q, N, blocks, is_windowed = self.form
        tokens_T, tail_Q, labelled_N, positions_N, labels_N = self.wide.split([T, Q, N, N, N])
        positions_T, places_T, *flat = self.narrow.split([T, T, *(6 * count for count in blocks)])
        angles_TE = positions_T.float()[:, None] * frequencies_E
        query_blocks, key_blocks, tail_query_blocks, tail_key_blocks = (table.view(-1, 6) for table in flat)
        return Inputs(
            tokens_T=tokens_T,
            places_T=step_places(places_T, step),
            cos_TE=angles_TE.cos() * angle_scale,
            sin_TE=angles_TE.sin() * angle_scale,
            documents=Documents(self.boundaries, self.boundaries, query_blocks, key_blocks),
            tail_Q=tail_Q,
            tail_documents=Documents(self.queries, self.boundaries, tail_query_blocks, tail_key_blocks),
            labelled_N=labelled_N,
            positions_N=positions_N,
            labels_N=labels_N,
            is_windowed=is_windowed,
        )


def lay(batch: Batch, *, device: torch.device, window: int | None) -> Laid:
    """Pad with a document of its own, find the tails, and move all to the device at once. window: of any layer."""
    boundaries = batch.boundaries.astype(np.int64)
    real = int(boundaries[-1])
    padding = rounded(real, multiple=ROW_MULTIPLE, steps=TOKEN_STEPS) - real
    if padding:
        boundaries = np.append(boundaries, real + padding)
    labels = np.append(batch.labels_T, np.full(padding, IGNORE_INDEX))
    labelled = np.flatnonzero(labels != IGNORE_INDEX)
    count = rounded(max(1, len(labelled)), multiple=LABELS_MULTIPLE, steps=LABEL_STEPS)
    filling = np.zeros(count - len(labelled), np.int64)
    lengths = _tail_lengths(boundaries, labelled)
    queries = np.append(0, np.cumsum(lengths))
    tail = np.arange(queries[-1]) + np.repeat(boundaries[1:] - queries[1:], lengths)
    place = np.zeros(real + padding, np.int64)
    place[tail] = np.arange(len(tail))
    blocks = [_with_empty_blocks(table) for table in (*tables(boundaries, boundaries), *tables(queries, boundaries))]
    wide = [
        np.append(batch.tokens_T, np.zeros(padding, np.int64)),
        tail,
        np.append(place[labelled], filling),
        np.append(labelled, filling),
        np.append(labels[labelled], filling + IGNORE_INDEX),
    ]
    narrow = [
        np.append(batch.positions_T, np.arange(padding)),
        np.arange(real + padding) + batch.offset_in_step,
        *(table.ravel() for table in blocks),
    ]
    return Laid(
        form=Form(
            tokens=real + padding,
            tail=len(tail),
            labels=count,
            blocks=tuple(len(table) for table in blocks),
            is_windowed=window is not None and window < int(np.diff(boundaries).max()),
        ),
        wide=_moved(wide, np.int64, device),
        narrow=_moved(narrow, np.int32, device),
        boundaries=boundaries,
        queries=queries,
        num_labels=len(labelled),
    )


def rounded(size: int, *, multiple: int, steps: int) -> int:
    """`size` or more: a multiple of `multiple`, and one of at most `steps` sizes from a power of two to the next."""
    octave = 1 << (size - 1).bit_length() if size > 1 else 1  # the power of two at or above
    multiple = max(multiple, octave // 2 // steps)
    return -(-size // multiple) * multiple


def _with_empty_blocks(table: np.ndarray) -> np.ndarray:
    missing = rounded(len(table), multiple=BLOCKS_MULTIPLE, steps=OTHER_STEPS) - len(table)
    return np.concatenate([table, np.zeros((missing, 6), table.dtype)])


def _moved(parts: list[np.ndarray], dtype: type, device: torch.device) -> Tensor:
    """Parts on the device, in one copy that nothing waits for."""
    packed = torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))
    if device.type == "cuda":
        packed = packed.pin_memory()
    return packed.to(device, non_blocking=True)


def _tail_lengths(boundaries: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Tokens of each document from its first label on (at least its last token), lengthened to a rounded sum.

    Where that is more than there is, to all tokens.
    """
    starts, ends = boundaries[:-1], boundaries[1:]
    found = np.searchsorted(labelled, starts)
    first = np.append(labelled, boundaries[-1])[found]
    lengths = ends - np.minimum(np.maximum(first, starts), ends - 1)
    room = (ends - starts) - lengths
    total = int(lengths.sum())
    missing = rounded(total, multiple=TAIL_MULTIPLE, steps=OTHER_STEPS) - total
    for number in np.argsort(-room, kind="stable").tolist():
        if not missing:
            break
        more = min(missing, int(room[number]))
        lengths[number] += more
        missing -= more
    return lengths
