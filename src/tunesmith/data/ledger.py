"""The fate of every input row, as compact arrays, and as ledger rows when the artifact is written.

In: what `prepare` decided, one code a row. Out: `LedgerRow`s in file order, and the counts. Nine bytes a row, so that
a dataset of many millions of rows stays small in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.spec.artifacts import Fate, LedgerRow

TRAINED, VALIDATION, DUPLICATE, TOO_LONG, IN_TRAINING = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLedger:
    """One dataset's rows. fates: uint8 codes of this module; tokens_lost: uint32; first: index of the first equal row.

    elsewhere: index of the equal row in the training dataset (-1: none), for a validation dataset. limit: the sequence
    length. All arrays in file order.
    """

    dataset: str
    index: NDArray[Any]
    fates: NDArray[np.uint8]
    tokens_lost: NDArray[np.uint32]
    first: NDArray[np.int32]
    elsewhere: NDArray[np.int32] | None
    training_index: NDArray[Any]
    limit: int

    def rows(self) -> Iterator[LedgerRow]:
        for number, fate in enumerate(self.fates.tolist()):
            yield self._row(number, fate)

    def _row(self, number: int, fate: int) -> LedgerRow:
        line = int(self.index["line"][number])
        lost = int(self.tokens_lost[number])
        first = int(self.first[number])
        duplicate_of = int(self.index["line"][first]) if first != number else None
        reason = f"equal to line {duplicate_of} of the same file" if duplicate_of is not None else None
        if fate == TOO_LONG:
            length = int(self.index["length"][number])
            return LedgerRow(
                dataset=self.dataset,
                line=line,
                fate=Fate.DROPPED,
                reason=f"too long: {length} tokens, the limit is {self.limit}",
                tokens_lost=length,
                duplicate_of=duplicate_of,
            )
        if fate == IN_TRAINING:
            assert self.elsewhere is not None
            twin = int(self.training_index["line"][int(self.elsewhere[number])])
            return LedgerRow(
                dataset=self.dataset,
                line=line,
                fate=Fate.DROPPED,
                reason="also in the training dataset",
                duplicate_of=twin,
            )
        if fate == DUPLICATE:
            return LedgerRow(
                dataset=self.dataset, line=line, fate=Fate.DUPLICATE, reason=reason, duplicate_of=duplicate_of
            )
        if lost:
            reason = f"cut to {self.limit} tokens" + (f"; {reason}" if reason else "")
        kept = Fate.VALIDATION if fate == VALIDATION else Fate.CUT if lost else Fate.TRAINED
        return LedgerRow(
            dataset=self.dataset, line=line, fate=kept, reason=reason, tokens_lost=lost, duplicate_of=duplicate_of
        )
