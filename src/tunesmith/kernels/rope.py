# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""Rotary positions on the heads of q and k, after a norm of each head where the model has one (Qwen3).

    n = x * rstd * w (with a norm, else n = x);   out = [n1 c - n2 s | n2 c + n1 s]          (Su et al. 2021)
    backward: the rotation by -angle, then the norm's own gradient

The halves of a head are rotated against each other, as transformers lays them out. Angles are float32.

Dimensions: T tokens (a multiple of ROW_MULTIPLE), H heads, D head_dim, E = D / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, kernel, runs_triton, tl

LAUNCH = Launch(rows=32, columns=0, warps=4, stages=1)  # a head is one tile wide


def rotate_reference(
    x_TX: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, heads: int, weight_D: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """(T, H D): the first `heads` heads of x, normed and rotated."""
    T, E = cos_TE.shape
    x_THD = x_TX[:, : heads * 2 * E].reshape(T, heads, 2 * E).float()
    if weight_D is not None:
        x_THD = x_THD * torch.rsqrt(x_THD.square().mean(-1, keepdim=True) + eps) * weight_D.float()
    first, second = x_THD.chunk(2, -1)
    cos, sin = cos_TE[:, None], sin_TE[:, None]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.to(x_TX.dtype).reshape(T, -1)


def rotate(
    x_TX: Tensor,
    out_TX: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    *,
    heads: int,
    weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Write the first `heads` heads of x, normed and rotated, into out's first columns. out may be x."""
    T, E = cos_TE.shape
    if not runs_triton(x_TX):
        rotated = rotate_reference(x_TX, cos_TE, sin_TE, heads=heads, weight_D=weight_D, eps=eps)
        out_TX[:, : heads * 2 * E] = rotated
        return
    _rotate[(T // LAUNCH.rows, heads)](
        x_TX, out_TX, cos_TE, sin_TE, x_TX if weight_D is None else weight_D, eps, x_TX.stride(0), out_TX.stride(0),
        E=E, HAS_NORM=weight_D is not None, BM=LAUNCH.rows, **LAUNCH.options(),
    )  # fmt: skip


def rotate_backward_reference(
    d_TX: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    *,
    heads: int,
    x_TX: Tensor | None = None,
    weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    T, E = cos_TE.shape
    back = rotate_reference(d_TX.float(), cos_TE, -sin_TE, heads=heads)
    if x_TX is None or weight_D is None:
        return back.to(d_TX.dtype)
    x_THD = x_TX[:, : heads * 2 * E].reshape(T, heads, 2 * E).float()
    rstd = torch.rsqrt(x_THD.square().mean(-1, keepdim=True) + eps)
    n, g = x_THD * rstd, back.view(T, heads, 2 * E) * weight_D.float()
    return (rstd * (g - n * (g * n).mean(-1, keepdim=True))).to(d_TX.dtype).reshape(T, -1)


def rotate_backward(
    d_TX: Tensor,
    out_TX: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    *,
    heads: int,
    x_TX: Tensor | None = None,
    weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Gradient of `rotate`'s input, from that of its output, into out's first columns. x: its input, with a norm."""
    T, E = cos_TE.shape
    if not runs_triton(d_TX):
        out_TX[:, : heads * 2 * E] = rotate_backward_reference(
            d_TX, cos_TE, sin_TE, heads=heads, x_TX=x_TX, weight_D=weight_D, eps=eps
        )
        return
    _rotate_backward[(T // LAUNCH.rows, heads)](
        d_TX, out_TX, cos_TE, sin_TE, d_TX if x_TX is None else x_TX, d_TX if weight_D is None else weight_D, eps,
        d_TX.stride(0), out_TX.stride(0), 0 if x_TX is None else x_TX.stride(0),
        E=E, HAS_NORM=weight_D is not None, BM=LAUNCH.rows, **LAUNCH.options(),
    )  # fmt: skip


@kernel
def _rotate(
    x_ptr, out_ptr, cos_ptr, sin_ptr, weight_ptr, eps, LDX, LDO, E: tl.constexpr, HAS_NORM: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    half = tl.arange(0, E)
    head = tl.program_id(1) * (2 * E)
    angle = rows[:, None] * E + half[None, :]
    cos = tl.load(cos_ptr + angle)
    sin = tl.load(sin_ptr + angle)
    x = x_ptr + rows[:, None] * LDX + head + half[None, :]
    first = tl.load(x).to(tl.float32)
    second = tl.load(x + E).to(tl.float32)
    if HAS_NORM:
        rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * E) + eps)
        first *= rstd[:, None] * tl.load(weight_ptr + half).to(tl.float32)[None, :]
        second *= rstd[:, None] * tl.load(weight_ptr + E + half).to(tl.float32)[None, :]
    out = out_ptr + rows[:, None] * LDO + head + half[None, :]
    tl.store(out, first * cos - second * sin)
    tl.store(out + E, second * cos + first * sin)


@kernel
def _rotate_backward(
    d_ptr, out_ptr, cos_ptr, sin_ptr, x_ptr, weight_ptr, eps, LDD, LDO, LDX, E: tl.constexpr, HAS_NORM: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    half = tl.arange(0, E)
    head = tl.program_id(1) * (2 * E)
    angle = rows[:, None] * E + half[None, :]
    cos = tl.load(cos_ptr + angle)
    sin = tl.load(sin_ptr + angle)
    d = d_ptr + rows[:, None] * LDD + head + half[None, :]
    d1 = tl.load(d).to(tl.float32)
    d2 = tl.load(d + E).to(tl.float32)
    first = d1 * cos + d2 * sin
    second = d2 * cos - d1 * sin
    if HAS_NORM:
        x = x_ptr + rows[:, None] * LDX + head + half[None, :]
        n1 = tl.load(x).to(tl.float32)
        n2 = tl.load(x + E).to(tl.float32)
        rstd = tl.rsqrt((tl.sum(n1 * n1, 1) + tl.sum(n2 * n2, 1)) / (2 * E) + eps)[:, None]
        n1 *= rstd
        n2 *= rstd
        first *= tl.load(weight_ptr + half).to(tl.float32)[None, :]
        second *= tl.load(weight_ptr + E + half).to(tl.float32)[None, :]
        mean = ((tl.sum(first * n1, 1) + tl.sum(second * n2, 1)) / (2 * E))[:, None]
        first = rstd * (first - n1 * mean)
        second = rstd * (second - n2 * mean)
    out = out_ptr + rows[:, None] * LDO + head + half[None, :]
    tl.store(out, first)
    tl.store(out + E, second)
