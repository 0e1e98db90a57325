# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""RMS norm with the residual added before it and the adapters' inner values made in the same pass.

    h' = h + delta;  rstd = 1 / sqrt(mean(h'^2) + eps);  x = h' * rstd * w          (Zhang and Sennrich 2019)
    u_j = drop_j(x) A_j^T / keep                                                    for the projections j that read x
    backward: with g = dx * w, n = h' * rstd:  dh = rstd * (g - n * mean(g * n)) + residual

x and the u_j are written side by side into one wide buffer [x | u_0 .. | 0]: one product with [W | s B | 0] then gives
base and adapter together (`models/decoder.py`). Sums are float32 whatever the dtype.

Dimensions: T tokens (a multiple of ROW_MULTIPLE), K features, G projections, R their padded rank, L width of the wide
buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, fitting, jit, odd_keys, runs_triton, site_hash, tl, triton
from tunesmith.kernels.lora import Projection, project_reference

# H200, 8,192 tokens of 4,096 and 2,048 features, rank 32 (benchmarks/bench_kernels.py)
FORWARD = Launch(rows=16, columns=256, warps=4, stages=2)
FORWARD_OF_THREE = Launch(rows=32, columns=256, warps=4, stages=2)  # projections


class Normed(NamedTuple):
    """h_TK: h + delta. wide_TL: [x | u | 0]. inner_TI: the u_j alone, (T, G R). rstd_T: float32."""

    h_TK: Tensor
    wide_TL: Tensor
    inner_TI: Tensor
    rstd_T: Tensor


def rms_norm_reference(
    h_TK: Tensor, delta_TK: Tensor | None, weight_K: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(h + delta, x, rstd)."""
    h_TK = h_TK if delta_TK is None else h_TK + delta_TK
    rstd_T = torch.rsqrt(h_TK.float().square().mean(-1) + eps)
    return h_TK, (h_TK.float() * rstd_T[:, None] * weight_K.float()).to(h_TK.dtype), rstd_T


def rms_norm_backward_reference(
    dx_TK: Tensor, h_TK: Tensor, weight_K: Tensor, rstd_T: Tensor, residual_TK: Tensor | None
) -> Tensor:
    n_TK, g_TK = h_TK.float() * rstd_T[:, None], dx_TK.float() * weight_K.float()
    dh_TK = rstd_T[:, None] * (g_TK - n_TK * (g_TK * n_TK).mean(-1, keepdim=True))
    return (dh_TK if residual_TK is None else dh_TK + residual_TK.float()).to(h_TK.dtype)


def rms_norm_project(
    h_TK: Tensor,
    delta_TK: Tensor | None,
    weight_K: Tensor,
    projection: Projection | None,
    *,
    eps: float,
    width: int,
    launch: Launch | None = None,
) -> Normed:
    """Norm of h + delta and, where `projection` is given, the inner values. width: L, at least K + G R."""
    T, K = h_TK.shape
    wide_TL = torch.empty(T, width, dtype=h_TK.dtype, device=h_TK.device)
    inner = 0 if projection is None else projection.count * projection.rank
    inner_TI = torch.empty(T, inner, dtype=h_TK.dtype, device=h_TK.device)
    if not runs_triton(h_TK):
        h_TK, x_TK, rstd_T = rms_norm_reference(h_TK, delta_TK, weight_K, eps=eps)
        wide_TL[:, :K] = x_TK
        if projection is not None:
            inner_TI.copy_(project_reference(x_TK, projection))
            wide_TL[:, K : K + inner] = inner_TI
        wide_TL[:, K + inner :] = 0
        return Normed(h_TK, wide_TL, inner_TI, rstd_T)
    is_of_three = projection is not None and projection.count == 3
    launch = fitting(launch or (FORWARD_OF_THREE if is_of_three else FORWARD), columns=K)
    rstd_T = torch.empty(T, dtype=torch.float32, device=h_TK.device)
    out_TK = h_TK if delta_TK is None else torch.empty_like(h_TK)
    given = projection if projection is not None else Projection.none(weight_K)
    _forward[(T // launch.rows,)](
        h_TK, h_TK if delta_TK is None else delta_TK, out_TK, weight_K, wide_TL, inner_TI, rstd_T,
        given.a_IK, given.places_T, given.step, given.site, eps, given.scale,
        K=K, LDX=width, G=given.count, R=given.rank, BITS=given.bits, THRESHOLD=given.threshold,
        HAS_DELTA=delta_TK is not None, BM=launch.rows, BK=launch.columns, PAD=width - K - inner, **launch.options(),
    )  # fmt: skip
    return Normed(out_TK, wide_TL, inner_TI, rstd_T)


def rms_norm_backward(
    dx_TK: Tensor, h_TK: Tensor, weight_K: Tensor, rstd_T: Tensor, residual_TK: Tensor | None
) -> Tensor:
    """Gradient of h: through the norm, and `residual` (the gradient that goes past it) added."""
    if not runs_triton(h_TK):
        return rms_norm_backward_reference(dx_TK, h_TK, weight_K, rstd_T, residual_TK)
    T, K = h_TK.shape
    dh_TK = torch.empty_like(h_TK)
    block = triton.next_power_of_2(K)
    _backward[(T,)](
        dx_TK, h_TK, weight_K, rstd_T, h_TK if residual_TK is None else residual_TK, dh_TK,
        K=K, HAS_RESIDUAL=residual_TK is not None, BLOCK=block,
        **Launch(1, block, 8 if K > 2048 else 4, 1).options(),
    )  # fmt: skip
    return dh_TK


@jit(do_not_specialize=["step", "site"])
def _forward(
    h_ptr, delta_ptr, out_ptr, weight_ptr, wide_ptr, inner_ptr, rstd_ptr, a_ptr, places_ptr, step, site, eps, scale,
    K: tl.constexpr, LDX: tl.constexpr, G: tl.constexpr, R: tl.constexpr, BITS: tl.constexpr, THRESHOLD: tl.constexpr,
    HAS_DELTA: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    rows = tl.arange(0, BM)
    h_ptr += first * K
    delta_ptr += first * K
    out_ptr += first * K
    wide_ptr += first * LDX
    square = tl.zeros((BM,), tl.float32)
    for k in range(0, K, BK):
        at = rows[:, None] * K + (k + tl.arange(0, BK))[None, :]
        h = tl.load(h_ptr + at).to(tl.float32)
        if HAS_DELTA:
            total = (h + tl.load(delta_ptr + at).to(tl.float32)).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + at, total)
            h = total.to(tl.float32)
        square += tl.sum(h * h, 1)
    rstd = tl.rsqrt(square / K + eps)
    tl.store(rstd_ptr + first + rows, rstd)
    tl.debug_barrier()  # the second pass reads what other threads of this program wrote
    if THRESHOLD > 0:
        keys = odd_keys(tl.load(places_ptr + first + rows), step)
    inner = tl.arange(0, R)
    u0 = tl.zeros((BM, R), tl.float32)
    u1 = tl.zeros((BM, R), tl.float32)
    u2 = tl.zeros((BM, R), tl.float32)
    for k in range(0, K, BK):
        columns = k + tl.arange(0, BK)
        h = tl.load(out_ptr + rows[:, None] * K + columns[None, :]).to(tl.float32)
        x = (h * rstd[:, None] * tl.load(weight_ptr + columns).to(tl.float32)[None, :]).to(wide_ptr.dtype.element_ty)
        tl.store(wide_ptr + rows[:, None] * LDX + columns[None, :], x)
        if G > 0:
            a = a_ptr + inner[None, :] * K + columns[:, None]
            kept = x
            if THRESHOLD > 0:
                bits = site_hash(keys, odd_keys(columns, site))
                kept = tl.where(bits >= THRESHOLD, x, 0.0)
            u0 = tl.dot(kept, tl.load(a), u0, input_precision="ieee")
            if G > 1:
                if THRESHOLD > 0:
                    kept = tl.where((bits << BITS) >= THRESHOLD, x, 0.0)
                u1 = tl.dot(kept, tl.load(a + R * K), u1, input_precision="ieee")
            if G > 2:
                if THRESHOLD > 0:
                    kept = tl.where((bits << (2 * BITS)) >= THRESHOLD, x, 0.0)
                u2 = tl.dot(kept, tl.load(a + 2 * R * K), u2, input_precision="ieee")
    if G > 0:
        wide = wide_ptr + rows[:, None] * LDX + K + inner[None, :]
        alone = inner_ptr + (first + rows[:, None]) * (G * R) + inner[None, :]
        tl.store(wide, u0 * scale)
        tl.store(alone, u0 * scale)
        if G > 1:
            tl.store(wide + R, u1 * scale)
            tl.store(alone + R, u1 * scale)
        if G > 2:
            tl.store(wide + 2 * R, u2 * scale)
            tl.store(alone + 2 * R, u2 * scale)
    for k in range(0, PAD, 16):
        at = k + tl.arange(0, 16)
        place = wide_ptr + rows[:, None] * LDX + K + G * R + at[None, :]
        tl.store(place, tl.zeros((BM, 16), tl.float32), mask=(at < PAD)[None, :])


@jit
def _backward(
    dx_ptr, h_ptr, weight_ptr, rstd_ptr, residual_ptr, out_ptr,
    K: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    ok = columns < K
    rstd = tl.load(rstd_ptr + row)
    n = tl.load(h_ptr + row * K + columns, mask=ok, other=0.0).to(tl.float32) * rstd
    g = tl.load(dx_ptr + row * K + columns, mask=ok, other=0.0).to(tl.float32)
    g *= tl.load(weight_ptr + columns, mask=ok, other=0.0).to(tl.float32)
    out = rstd * (g - n * (tl.sum(g * n, 0) / K))
    if HAS_RESIDUAL:
        out += tl.load(residual_ptr + row * K + columns, mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * K + columns, out, mask=ok)
