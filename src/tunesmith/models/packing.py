"""How the documents of one packed sequence are put side by side for attention: index arithmetic, made once per batch.

In come the boundaries of the documents; out goes a `Packing`: buckets of documents of similar length, and the indices
that gather packed tokens into padded blocks and back. So the cost of attention grows with the documents' lengths and
never with the square of the packed length. All layers share one Packing; nothing here computes attention.

Dimensions: T tokens of the packed sequence, n documents of a bucket, L its longest document, H heads. "Rows" are
head_dim values of one token and head: a packed tensor is seen as (T * H) rows, a padded block as (n * H * L) rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# One more bucket costs about as much as this many wasted query-key pairs per head (8 heads of 32 on two CPU cores).
SPLIT_PAIRS = 6_000


class Bucket:
    """Documents of similar length, longest first. `token_nL` names the packed token behind each padded place."""

    __slots__ = ("_gather", "_padding", "longest", "num_documents", "real_nL", "token_nL")

    def __init__(self, *, starts: list[int], lengths: list[int], device: torch.device) -> None:
        self.num_documents = len(lengths)
        self.longest = lengths[0]
        step = torch.arange(self.longest)
        length = torch.tensor(lengths)[:, None]
        self.real_nL = (step < length).to(device)
        # Padding repeats the document's last token: finite values, at places that no earlier query looks at.
        self.token_nL = (torch.tensor(starts)[:, None] + torch.minimum(step, length - 1)).to(device)
        self._gather: dict[int, Tensor] = {}
        self._padding: dict[int, Tensor] = {}

    def gather(self, heads: int) -> Tensor:
        """(n * H * L,) packed rows in the order document, head, token."""
        if heads not in self._gather:
            head = torch.arange(heads, device=self.token_nL.device)[None, :, None]
            self._gather[heads] = (self.token_nL[:, None, :] * heads + head).flatten()
        return self._gather[heads]

    def padding(self, heads: int) -> Tensor:
        """Padded rows that stand for no token (their gradient is zero)."""
        if heads not in self._padding:
            padded_nHL = (~self.real_nL)[:, None, :].expand(-1, heads, -1)
            self._padding[heads] = padded_nHL.flatten().nonzero().flatten()
        return self._padding[heads]


class Packing:
    """One packed sequence of documents; `cumulative` is its boundaries as int32 on the device."""

    __slots__ = (
        "_buckets",
        "_masks",
        "_scatter",
        "boundaries",
        "cumulative",
        "device",
        "longest",
        "longest_tensor",
        "num_tokens",
    )

    def __init__(self, boundaries: Sequence[int], *, device: torch.device) -> None:
        """Documents at [boundaries[i], boundaries[i + 1]). Raises ValueError unless they start at 0 and grow."""
        edges = [int(edge) for edge in boundaries]
        lengths = [after - before for before, after in pairwise(edges)]
        if len(edges) < 2 or edges[0] != 0 or min(lengths) < 1:
            raise ValueError(f"boundaries must start at 0 and grow, found {edges[:8]}")
        self.boundaries = tuple(edges)
        self.device = device
        self.longest = max(lengths)
        self.longest_tensor = torch.tensor(self.longest)  # as `kernels/varlen.py` takes it
        self.num_tokens = edges[-1]
        self.cumulative = torch.tensor(edges, dtype=torch.int32).to(device, non_blocking=True)
        self._buckets: list[Bucket] | None = None
        self._scatter: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    @property
    def buckets(self) -> list[Bucket]:
        """Made when first asked for: torch's kernel for packed sequences needs none."""
        if self._buckets is None:
            edges = self.boundaries
            lengths = [after - before for before, after in pairwise(edges)]
            self._buckets = [
                Bucket(
                    starts=[edges[index] for index in group],
                    lengths=[lengths[index] for index in group],
                    device=self.device,
                )
                for group in _groups(lengths)
            ]
        return self._buckets

    def scatter(self, heads: int) -> Tensor:
        """(T * H,) rows of all buckets' padded blocks, laid end to end, in packed order."""
        if heads not in self._scatter:
            scatter = torch.empty(self.num_tokens * heads, dtype=torch.int64, device=self.device)
            first = 0
            for bucket in self.buckets:
                gather = bucket.gather(heads)
                real = bucket.real_nL[:, None, :].expand(-1, heads, -1).flatten()
                block = torch.arange(first, first + len(gather), device=self.device)
                scatter[gather[real]] = block[real]
                first += len(gather)
            self._scatter[heads] = scatter
        return self._scatter[heads]

    def bias(self, longest: int, *, repeats: int, window: int | None) -> Tensor:
        """(repeats * L, L) float32: 0 where a query may look, -inf elsewhere (causal, and within the window)."""
        key = (longest, repeats, window)
        if key not in self._masks:
            seen = visible(longest, window=window, device=self.device)
            bias = torch.zeros(longest, longest, device=self.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = bias.repeat(repeats, 1)
        return self._masks[key]


def visible(longest: int, *, window: int | None, device: torch.device) -> Tensor:
    """(L, L) bool: query i sees key j where j <= i and, with a sliding window, i - j < window."""
    place = torch.arange(longest, device=device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _groups(lengths: list[int]) -> list[list[int]]:
    """Documents by descending length, cut where padding to the longest has wasted as much as a new bucket costs."""
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[list[int]] = []
    wasted = SPLIT_PAIRS
    for index in longest_first:
        if groups:
            wasted += lengths[groups[-1][0]] ** 2 - lengths[index] ** 2
        if wasted >= SPLIT_PAIRS:
            groups.append([])
            wasted = 0
        groups[-1].append(index)
    return groups
