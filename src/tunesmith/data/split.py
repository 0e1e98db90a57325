"""Which rows are training, validation and test: by content, so that equal rows never straddle the border.

In: content hashes of rows (two uint64 each, in file order). Out: index arrays. Pure functions of their arguments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.rows import split_needs_two

Hashes = NDArray[np.uint64]  # (rows, 2)


def first_equal(hashes: Hashes) -> NDArray[np.int32]:
    """For each row the index of the first row with the same content (its own, if it is the first)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: within equal rows the file's order stays
    is_first = np.zeros(len(order), bool)
    is_first[:1] = True
    for half in range(2):  # one after the other: for tens of millions of rows each copy counts
        ordered = hashes[order, half]
        is_first[1:] |= ordered[1:] != ordered[:-1]
    leaders = order[is_first].astype(np.int32)
    result = np.empty(len(order), np.int32)
    result[order] = leaders[np.cumsum(is_first, dtype=np.int32) - 1]
    return result


def seeded(hashes: Hashes, *, seed: int) -> NDArray[np.uint64]:
    """A number for each row from its content and the seed (splitmix64's finaliser, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = hashes[:, 0] ^ (hashes[:, 1] * np.uint64(0x9E3779B97F4A7C15))
        x = x + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def split_off(hashes: Hashes, first: NDArray[np.int32], *, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the rows that are validation: round(fraction x groups) groups, at least one, never all.

    first: `first_equal(hashes)`. The groups with the smallest seeded hashes are taken, so the split does not depend on
    the order of the rows. Raises InputRefused if there is only one group.
    """
    leaders = np.flatnonzero(first == np.arange(len(first)))
    if len(leaders) < 2:
        raise split_needs_two(len(hashes), fraction=fraction)
    count = min(max(1, round(fraction * len(leaders))), len(leaders) - 1)
    ranks = np.lexsort((hashes[leaders, 1], hashes[leaders, 0], seeded(hashes[leaders], seed=seed)))
    is_chosen = np.zeros(len(hashes), bool)
    is_chosen[leaders[ranks[:count]]] = True
    return is_chosen[first]


def also_in(hashes: Hashes, others: Hashes) -> NDArray[np.int32]:
    """For each row the index of the first equal row of `others`, or -1."""
    first = first_equal(np.concatenate([others, hashes]))[len(others) :]
    return np.where(first < len(others), first, np.int32(-1))
