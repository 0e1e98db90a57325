"""Chooses the next token from its logits: the likeliest, or drawn by temperature and top-p from a seeded generator.

Drawing happens in float64 on the CPU, so that a seed gives the same answer on every run of the same machine.

Dimensions: V vocabulary.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

from tunesmith.errors import JobFailed
from tunesmith.spec.serving import Sampling


class Chooser:
    """The choices of one answer."""

    def __init__(self, sampling: Sampling, *, choice: int) -> None:
        """choice: number of the answer among those to one request; each draws from a generator of its own."""
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._generator = torch.Generator()
        root = os.urandom(16) if sampling.seed is None else str(sampling.seed).encode()
        digest = hashlib.blake2b(root + b":%d" % choice, digest_size=8).digest()
        self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def choose(self, logits_V: Tensor) -> int:
        """Raises JobFailed (OUTPUT_NOT_FINITE) where the model's output is no number."""
        best = logits_V.max()
        if not bool(torch.isfinite(best)):
            raise JobFailed(
                "OUTPUT_NOT_FINITE",
                "The model's output is not finite: its weights or its adapter are damaged.",
                field="model",
                hint="Look at the version's verdict, and take another version.",
            )
        if self._temperature == 0:
            return int(logits_V.argmax())
        scaled_V = (logits_V - best).to("cpu", torch.float64) / self._temperature
        share_V = torch.softmax(scaled_V, -1)
        if self._top_p < 1:
            sorted_V, order_V = share_V.sort(descending=True, stable=True)
            is_beyond_V = sorted_V.cumsum(-1) - sorted_V >= self._top_p  # the likeliest token is always kept
            share_V[order_V[is_beyond_V]] = 0.0
        return int(torch.multinomial(share_V, 1, generator=self._generator))
