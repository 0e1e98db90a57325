"""Causal attention of documents laid end to end, each with itself alone: torch's flash kernel as one opaque operation.

In: queries (T, H, D), keys and values (T, K, D) with H a multiple of K, the documents' boundaries. Out: (T, H, D).
Query i of a document sees key j of it where j <= i and, with a window, i - j < window. One operation for the compiler,
which then neither looks inside nor compiles anew when boundaries change; grouped heads go to the kernel as they are.

The reference below is the specification and what a CPU runs. Maths: FlashAttention-2, Dao 2023.

Dimensions: T tokens, H query heads, K key-value heads, D head_dim, L tokens of one document.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

NO_WINDOW = -1
LARGEST_HEAD = 256  # values of a head; beyond it the kernel refuses
HALF = (torch.bfloat16, torch.float16)


def has_kernel(query: Tensor) -> bool:
    """Whether torch's flash kernel takes queries like these: half precision on a GPU, heads in eights of values."""
    size = query.shape[-1]
    return query.is_cuda and query.dtype in HALF and size <= LARGEST_HEAD and size % 8 == 0


def document_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    boundaries: Tensor,
    *,
    longest: Tensor,
    scale: float,
    window: int = NO_WINDOW,
) -> Tensor:
    """(T, H, D) in the dtype of the queries; differentiable.

    boundaries: int32 on the device, cumulative from 0 to T; documents of no token may stand at its end. longest: at
    least the tokens of the longest document, an int64 scalar on the CPU (to a compiler a plain number would be a
    constant, and a new one a reason to compile anew). window: keys that a query sees, itself counted, or NO_WINDOW.
    """
    return _attend(q_THD, k_TKD, v_TKD, boundaries, longest, scale, window)[0]


def reference(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, boundaries: Tensor, *, scale: float, window: int = NO_WINDOW
) -> Tensor:
    """The same by plain products, document by document."""
    output_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    for start, end in _documents(boundaries):
        q, k, v = (_heads_first(tensor[start:end], heads=q_THD.shape[1]) for tensor in (q_THD, k_TKD, v_TKD))
        output_THD[start:end] = (_weights(q, k, scale=scale, window=window) @ v).transpose(0, 1)
    return output_THD


def reference_backward(
    g_THD: Tensor, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, boundaries: Tensor, *, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(S): dV = P^T g, dP = g V^T, dS = P * (dP - rowsum(dP * P)); heads of a group are summed."""
    heads = q_THD.shape[1]
    g_q, g_k, g_v = (
        torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in (q_THD, k_TKD, v_TKD)
    )
    for start, end in _documents(boundaries):
        g, q, k, v = (_heads_first(tensor[start:end], heads=heads) for tensor in (g_THD, q_THD, k_TKD, v_TKD))
        weights = _weights(q, k, scale=scale, window=window)
        g_weights = g @ v.transpose(1, 2)
        g_scores = weights * (g_weights - (g_weights * weights).sum(-1, keepdim=True)) * scale
        g_q[start:end] = (g_scores @ k).transpose(0, 1)
        for into, found in ((g_k, g_scores.transpose(1, 2) @ q), (g_v, weights.transpose(1, 2) @ g)):
            into[start:end] = found.transpose(0, 1).unflatten(1, (into.shape[1], -1)).sum(2)
    return g_q, g_k, g_v


def _documents(boundaries: Tensor) -> list[tuple[int, int]]:
    return [(start, end) for start, end in pairwise(boundaries.tolist()) if end > start]


def _heads_first(rows_LHD: Tensor, *, heads: int) -> Tensor:
    """(H, L, D), each key-value head repeated for the query heads of its group."""
    return rows_LHD.repeat_interleave(heads // rows_LHD.shape[1], 1).transpose(0, 1)


def _weights(q_HLD: Tensor, k_HLD: Tensor, *, scale: float, window: int) -> Tensor:
    place = torch.arange(q_HLD.shape[1], device=q_HLD.device)
    distance = place[:, None] - place[None, :]
    seen = (distance >= 0) & ((distance < window) | (window == NO_WINDOW))
    scores = (q_HLD @ k_HLD.transpose(1, 2)).float() * scale
    return scores.masked_fill_(~seen, float("-inf")).softmax(-1).to(q_HLD.dtype)


@torch.library.custom_op("tunesmith::document_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp); the latter is empty where the reference runs."""
    if not has_kernel(q):
        return reference(q, k, v, boundaries, scale=scale, window=window), q.new_empty(0, dtype=torch.float32)
    tokens = int(longest)
    out, log_sum_exp, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, boundaries, boundaries, tokens, tokens, 0.0, window == NO_WINDOW, False, scale=scale,
        **_window_sides(window),
    )  # fmt: skip
    return out, log_sum_exp


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    rows = (q.shape[1], q.shape[0]) if has_kernel(q) else (0,)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("tunesmith::document_attention_backward", mutates_args=())
def _attend_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, boundaries: Tensor, longest: Tensor,
    scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not has_kernel(q):
        return reference_backward(g, q, k, v, boundaries, scale=scale, window=window)
    tokens = int(longest)
    no_random = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the kernel's own dropout is off
    g_q, g_k, g_v = torch.ops.aten._flash_attention_backward(
        g.contiguous(), q, k, v, out, log_sum_exp, boundaries, boundaries, tokens, tokens, 0.0, window == NO_WINDOW,
        no_random, q.new_empty(0), scale=scale, **_window_sides(window),
    )  # fmt: skip
    return g_q, g_k, g_v


@_attend_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, boundaries: Tensor, longest: Tensor,
    scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    new = torch.contiguous_format
    return tuple(torch.empty_like(tensor, memory_format=new) for tensor in (q, k, v))  # type: ignore[return-value]


def _window_sides(window: int) -> dict[str, int]:
    """The kernel counts keys to the left of the query, and none to its right."""
    return {} if window == NO_WINDOW else {"window_size_left": window - 1, "window_size_right": 0}


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, boundaries, longest, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, boundaries, longest)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, log_sum_exp, boundaries, longest = ctx.saved_tensors
    g_q, g_k, g_v = _attend_backward(
        gradients[0], q, k, v, out, log_sum_exp, boundaries, longest, ctx.scale, ctx.window
    )
    return g_q, g_k, g_v, None, None, None, None


torch.library.register_autograd("tunesmith::document_attention", _backward, setup_context=_keep)
