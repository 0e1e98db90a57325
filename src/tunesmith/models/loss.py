"""The loss head: negative log-likelihood and hits at labelled positions, without ever holding all logits.

In come the hidden states of a packed sequence and shifted labels; out go the summed loss (differentiable with respect
to the hidden states only: the head is frozen) and, per labelled position, its loss and whether the arg-max was right.
Logits exist for one chunk of positions at a time; the gradient of the hidden states is made in the same pass (Liger
Kernel, Hsu et al. 2024, section 3.2), so the backward pass is one product with a scalar. On a GPU one kernel turns
logits into their gradient, unless the head has a scale or a softcap.

Dimensions: T tokens, N labelled positions, n positions of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.backend import runs_triton
from tunesmith.kernels.cross_entropy import cross_entropy

IGNORE_INDEX = -100
# Logits of one chunk: 8 MB stay in a CPU's caches, 256 MB keep a GPU's products large. With the kernel those are in
# half precision and overwritten by their gradient, else in float32 and with copies beside them.
CHUNK_VALUES_CPU = 1 << 21
CHUNK_VALUES_GPU = 1 << 26
CHUNK_VALUES_KERNEL = 1 << 27
TILE_ROWS = 256  # of a GPU's products: a chunk of some more rows would take as long as one of twice the tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The frozen head: logits = softcap * tanh(scale * (h W^T + b) / softcap); without the tanh if softcap is None."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """loss_sum: float32 scalar, differentiable. The others are per labelled position, in order, detached.

    positions_N: int64 indices into the T tokens. nll_N: float32, nats. is_right_N: bool, the label is torch.argmax
    of the logits (of equal largest logits, the first).
    """

    loss_sum: Tensor
    positions_N: Tensor
    nll_N: Tensor
    is_right_N: Tensor


def head_loss(hidden_TD: Tensor, *, head: Head, labels_T: Tensor, chunk_values: int | None = None) -> HeadLoss:
    """Loss of the tokens to learn. labels_T: (T,) int64, already shifted, IGNORE_INDEX where nothing is to learn.

    The caller divides loss_sum by the count of the whole step. A sequence without labels has a loss of 0.
    """
    if hidden_TD.shape[0] != labels_T.shape[0]:
        raise ValueError(f"{hidden_TD.shape[0]} hidden states and {labels_T.shape[0]} labels")
    positions_N = (labels_T != IGNORE_INDEX).nonzero().flatten()
    labels_N = labels_T.index_select(0, positions_N)
    if chunk_values is None:
        chunk_values = chunk_values_of(hidden_TD, with_kernel=_takes_kernel(hidden_TD, head))
    chunk = rows_of_chunk(chunk_values, vocabulary=head.weight_VD.shape[0])
    loss_sum, nll_N, is_right_N = _HeadLoss.apply(hidden_TD, head, positions_N, labels_N, chunk)
    return HeadLoss(loss_sum=loss_sum, positions_N=positions_N, nll_N=nll_N, is_right_N=is_right_N)


def chunk_values_of(hidden_TD: Tensor, *, with_kernel: bool) -> int:
    """Logits that may exist at the same time."""
    if not hidden_TD.is_cuda:
        return CHUNK_VALUES_CPU
    return CHUNK_VALUES_KERNEL if with_kernel else CHUNK_VALUES_GPU


def rows_of_chunk(values: int, *, vocabulary: int) -> int:
    """Positions whose logits are made at a time: whole tiles, where there are that many."""
    rows = max(1, values // vocabulary)
    return rows - rows % TILE_ROWS if rows > TILE_ROWS else rows


def _takes_kernel(hidden_TD: Tensor, head: Head) -> bool:
    return runs_triton(hidden_TD) and head.scale == 1.0 and head.softcap is None


def logits_of(hidden_ND: Tensor, head: Head) -> Tensor:
    """(N, V) float32 logits of a few positions."""
    return _logits(hidden_ND, head)[0]


def _logits(hidden_nD: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    """The logits in float32, and the tanh of the softcap where there is one."""
    logits_nV = torch.nn.functional.linear(hidden_nD, head.weight_VD, head.bias_V).float()
    if head.scale != 1.0:
        logits_nV.mul_(head.scale)
    if head.softcap is None:
        return logits_nV, None
    tanh_nV = logits_nV.div_(head.softcap).tanh_()
    return tanh_nV * head.softcap, tanh_nV


def _scores(
    hidden_nD: Tensor, head: Head, labels_n: Tensor, *, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(nll (n,), is_right (n,), the gradient (n, V) of the product with the head's weight)."""
    labels_n1 = labels_n[:, None]
    logits_nV, tanh_nV = _logits(hidden_nD, head)
    largest_n1, arg_n1 = logits_nV.max(-1, keepdim=True)
    label_n1 = logits_nV.gather(1, labels_n1)
    exponentials_nV = logits_nV.sub_(largest_n1).exp_()
    total_n1 = exponentials_nV.sum(-1, keepdim=True)
    nll_n, is_right_n = (total_n1.log() + largest_n1 - label_n1)[:, 0], (arg_n1 == labels_n1)[:, 0]
    if not needs_gradient:
        return nll_n, is_right_n, None
    # softmax - one-hot, through the softcap and the scale, back to the hidden state.
    gradient_nV = exponentials_nV.div_(total_n1)
    gradient_nV.scatter_add_(1, labels_n1, gradient_nV.new_full((), -1.0).expand(labels_n1.shape))
    if tanh_nV is not None:
        gradient_nV.mul_(tanh_nV.square_().neg_().add_(1.0))
    if head.scale != 1.0:
        gradient_nV.mul_(head.scale)
    return nll_n, is_right_n, gradient_nV.to(head.weight_VD.dtype)


def _scores_by_kernel(
    hidden_nD: Tensor, head: Head, labels_n: Tensor, *, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same for a head without scale and softcap: the gradient takes the logits' place."""
    logits_nV = torch.nn.functional.linear(hidden_nD, head.weight_VD, head.bias_V)
    factor = torch.ones((), device=hidden_nD.device) if needs_gradient else None
    nll_n, is_right_n = cross_entropy(logits_nV, labels_n, factor=factor)
    return nll_n, is_right_n, logits_nV if needs_gradient else None


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head: Head, positions_N: Tensor, labels_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        count = positions_N.shape[0]
        nll_N = torch.empty(count, dtype=torch.float32, device=hidden_TD.device)
        is_right_N = torch.empty(count, dtype=torch.bool, device=hidden_TD.device)
        gradient_TD = torch.zeros_like(hidden_TD) if needs_gradient else None
        scores_of = _scores_by_kernel if _takes_kernel(hidden_TD, head) else _scores
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            hidden_nD = hidden_TD.index_select(0, positions_N[part])
            nll_N[part], is_right_N[part], gradient_nV = scores_of(
                hidden_nD, head, labels_N[part], needs_gradient=needs_gradient
            )
            if gradient_TD is not None and gradient_nV is not None:
                gradient_TD.index_copy_(0, positions_N[part], gradient_nV @ head.weight_VD)
        ctx.save_for_backward(gradient_TD)
        ctx.mark_non_differentiable(nll_N, is_right_N)
        return nll_N.sum(), nll_N, is_right_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_TD,) = ctx.saved_tensors
        return gradient_TD * gradients[0], None, None, None, None
