"""Packing: rows of a step are put into packed rows of at most `sequence_length` tokens, without padding.

In: lengths. Out: which rows lie in which packed row. Best fit, longest first (best-fit decreasing, Johnson 1974):
at most 11/9 of the optimum, and the same for equal input. Attention never crosses a border between rows; that is the
business of `Batch.boundaries`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack(lengths: Sequence[int] | NDArray[np.int32], *, sequence_length: int) -> list[list[int]]:
    """Packed rows as lists of positions in `lengths`, each of at most `sequence_length` tokens.

    A row goes where it leaves the least room; among equals into the packed row opened first. Raises ValueError if a
    row is longer than `sequence_length`: the policy for such rows has been applied before.
    """
    sizes: list[int] = np.asarray(lengths, np.int64).tolist()
    order = sorted(range(len(sizes)), key=lambda position: -sizes[position])  # stable
    packed: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, packed row), sorted
    for position in order:
        length = sizes[position]
        if length > sequence_length:
            raise ValueError(f"a row of {length} tokens does not fit into {sequence_length}")
        slot = bisect_left(rooms, (length, -1))
        if slot == len(rooms):
            packed.append([position])
            insort(rooms, (sequence_length - length, len(packed) - 1))
        else:
            room, number = rooms.pop(slot)
            packed[number].append(position)
            insort(rooms, (room - length, number))
    return packed
