# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""Many small matrices copied in one launch, scaled and cast: a model's adapters into the weights that products read.

    into_i = (factor_i * from_i) in into's dtype

A model has hundreds of adapter matrices; a launch each would cost milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, kernel, runs_triton, tl

LAUNCH = Launch(rows=1, columns=1024, warps=4, stages=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """source: float32, contiguous, (rows, columns). into: rows may lie apart, columns are adjacent."""

    source: Tensor
    into: Tensor
    factor: float


class Spread:
    """The moves of one model; the tensors must stay where they are."""

    def __init__(self, moves: Sequence[Move]) -> None:
        self.moves = list(moves)
        self._table: Tensor | None = None
        self._factors: Tensor | None = None

    def run(self, factor: float = 1.0) -> None:
        """Make all moves, each factor multiplied by `factor`."""
        if not self.moves:
            return
        first = self.moves[0]
        if not runs_triton(first.source) or not first.source.is_cuda:
            for move in self.moves:
                move.into.copy_(move.source if move.factor * factor == 1 else move.source * (move.factor * factor))
            return
        if self._table is None or self._factors is None:
            self._table, self._factors = self._describe(first.source.device)
        largest = max(move.source.numel() for move in self.moves)
        _spread[(-(-largest // LAUNCH.columns), len(self.moves))](
            self._table, self._factors, factor, first.into, BLOCK=LAUNCH.columns, **LAUNCH.options()
        )

    def _describe(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = [
            [
                move.source.data_ptr(),
                move.into.data_ptr(),
                move.source.numel(),
                move.source.shape[1],
                move.into.stride(0),
            ]
            for move in self.moves
        ]
        return (
            torch.tensor(rows, dtype=torch.int64, device=device),
            torch.tensor([move.factor for move in self.moves], dtype=torch.float32, device=device),
        )


@kernel
def _spread(table_ptr, factors_ptr, factor, like_ptr, BLOCK: tl.constexpr):
    number = tl.program_id(1)
    table_ptr += number * 5
    count = tl.load(table_ptr + 2)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) * BLOCK < count:
        source = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
        into = tl.load(table_ptr + 1).to(like_ptr.dtype)
        columns = tl.load(table_ptr + 3)
        ok = at < count
        value = tl.load(source + at, mask=ok, other=0.0) * (tl.load(factors_ptr + number) * factor)
        tl.store(into + (at // columns) * tl.load(table_ptr + 4) + at % columns, value, mask=ok)
