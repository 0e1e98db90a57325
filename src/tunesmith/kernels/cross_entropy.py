# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""Cross-entropy of a block of logits: each row's loss and hit, and the logits overwritten by their gradient.

    loss_n = log sum_v exp(z_nv) - z_n,label;   z_nv <- (softmax(z)_nv - [v = label]) * factor
    is_right_n: the label is the arg-max of the row (of equal largest logits, the first)

Online softmax (Milakov and Gimelshein 2018), sums in float32. A row with a negative label has no loss and no gradient.

Dimensions: N rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, kernel, runs_triton, tl

BLOCK = 4096  # of the vocabulary in one pass of the loop


def cross_entropy_reference(logits_NV: Tensor, labels_N: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    z_NV = logits_NV.float()
    lse_N = z_NV.logsumexp(-1)
    live_N = labels_N >= 0
    label_N1 = labels_N.clamp_min(0)[:, None]
    loss_N = (lse_N - z_NV.gather(1, label_N1)[:, 0]) * live_N
    is_right_N = (z_NV.argmax(-1) == labels_N) & live_N
    if factor is not None:
        gradient_NV = torch.exp(z_NV - lse_N[:, None])
        gradient_NV.scatter_add_(1, label_N1, gradient_NV.new_full((), -1.0).expand(label_N1.shape))
        logits_NV.copy_(gradient_NV * (live_N * factor)[:, None])
    return loss_N, is_right_N


def cross_entropy(logits_NV: Tensor, labels_N: Tensor, *, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """(loss (N,) float32 in nats, is_right (N,) bool). logits become factor * their gradient, unless it is None.

    factor: one float32 value where the logits are.
    """
    if not runs_triton(logits_NV):
        return cross_entropy_reference(logits_NV, labels_N, factor)
    N, V = logits_NV.shape
    loss_N = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
    is_right_N = torch.empty(N, dtype=torch.bool, device=logits_NV.device)
    _cross_entropy[(N,)](
        logits_NV, labels_N, loss_N, is_right_N, loss_N if factor is None else factor, V,
        NEEDS_GRADIENT=factor is not None, BLOCK=BLOCK, **Launch(1, BLOCK, 8, 1).options(),
    )  # fmt: skip
    return loss_N, is_right_N


@kernel(do_not_specialize=["labels_ptr", "factor_ptr"])  # they begin anywhere in the batch's one copy
def _cross_entropy(
    logits_ptr, labels_ptr, loss_ptr, right_ptr, factor_ptr, V, NEEDS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    logits_ptr += row * V
    largest = -float("inf")
    where = 0
    total = 0.0
    for v in range(0, V, BLOCK):
        at = v + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + at, mask=at < V, other=-float("inf")).to(tl.float32)
        top = tl.max(z, 0)
        if top > largest:
            where = v + tl.argmax(z, 0)
            total = total * tl.exp(largest - top)
            largest = top
        total += tl.sum(tl.exp(z - largest), 0)
    live = label >= 0
    value = tl.load(logits_ptr + tl.maximum(label, 0)).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(live, largest + tl.log(total) - value, 0.0))
    tl.store(right_ptr + row, live & (where == label))
    if NEEDS_GRADIENT:
        tl.debug_barrier()  # `value` has been read before the row is overwritten
        factor = tl.where(live, tl.load(factor_ptr), 0.0)
        for v in range(0, V, BLOCK):
            at = v + tl.arange(0, BLOCK)
            z = tl.load(logits_ptr + at, mask=at < V, other=0.0).to(tl.float32)
            gradient = (tl.exp(z - largest) / total - tl.where(at == label, 1.0, 0.0)) * factor
            tl.store(logits_ptr + at, gradient, mask=at < V)
