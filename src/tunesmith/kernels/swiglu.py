# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""SwiGLU with its adapter: x = silu(gate) * up and the down projection's inner values in one pass.

    forward   x = silu(g) * p;   u = drop(x) A^T / keep                              (Shazeer 2020)
    backward  d = dx + drop(du A) / keep
              dg = d * p * (sig + silu * (1 - sig));   dp = d * silu
              dA += du^T drop(x) / keep;   dB of gate and up, before their scaling: dg^T u_gate, dp^T u_up

x is made again in the backward pass: only gate and up are kept. The gradients of gate's and up's B are collected here
because dg and dp are in registers.

Dimensions: T tokens (a multiple of ROW_MULTIPLE), F features of gate and of up, R padded rank, L width of the wide
buffer [x | u | 0].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith.kernels.backend import (
    Launch,
    fitting,
    kernel,
    made_once,
    odd_keys,
    pinned,
    runs_triton,
    sigmoid,
    site_hash,
    tl,
)
from tunesmith.kernels.lora import Gradient, Projection, add_parts, project_reference, split_tokens

# H200, 8,192 tokens of 14,336 features, rank 32 (benchmarks/bench_kernels.py)
FORWARD = Launch(rows=32, columns=256, warps=4, stages=3)
BACKWARD = Launch(rows=16, columns=64, warps=4, stages=4, registers=128)
SPLITS = 4  # of the tokens in the backward pass; with more, sums to be added cost more than programs side by side bring


def swiglu_reference(gate_up_TH: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
    """(x, u)."""
    gate_TF, up_TF = gate_up_TH.float().chunk(2, 1)
    x_TF = (torch.nn.functional.silu(gate_TF) * up_TF).to(gate_up_TH.dtype)
    return x_TF, project_reference(x_TF, projection)


def swiglu_project(
    gate_up_TH: Tensor, projection: Projection, *, width: int, launch: Launch = FORWARD
) -> tuple[Tensor, Tensor]:
    """([x | u | 0] of `width` columns, u alone). gate_up_TH: gate and up side by side, (T, 2 F), contiguous."""
    T, F = gate_up_TH.shape[0], gate_up_TH.shape[1] // 2
    wide_TL = torch.empty(T, width, dtype=gate_up_TH.dtype, device=gate_up_TH.device)
    if not runs_triton(gate_up_TH):
        x_TF, u_TR = swiglu_reference(gate_up_TH, projection)
        wide_TL[:, :F] = x_TF
        wide_TL[:, F : F + projection.rank] = u_TR
        wide_TL[:, F + projection.rank :] = 0
        return wide_TL, u_TR
    inner_TR = torch.empty(T, projection.rank, dtype=gate_up_TH.dtype, device=gate_up_TH.device)
    launch = fitting(launch, columns=F)
    _forward[(T // launch.rows,)](
        gate_up_TH, wide_TL, inner_TR, projection.a_IK, projection.places_T, projection.site, projection.scale,
        F=F, LDX=width, R=projection.rank, THRESHOLD=projection.threshold, BM=launch.rows, BK=launch.columns,
        PAD=width - F - projection.rank, **launch.options(),
    )  # fmt: skip
    return wide_TL, inner_TR


def swiglu_backward_reference(
    dx_TF: Tensor, du_TR: Tensor, gate_up_TH: Tensor, inner_TI: Tensor, projection: Projection
) -> tuple[Tensor, Tensor]:
    """(gradient of gate and up, (3 R, F): dA of down, dB^T of gate, dB^T of up)."""
    R = projection.rank
    du_TR = du_TR[:, :R]
    gate_TF, up_TF = gate_up_TH.float().chunk(2, 1)
    sigmoid_TF = torch.sigmoid(gate_TF)
    silu_TF = gate_TF * sigmoid_TF
    x_TF = (silu_TF * up_TF).to(gate_up_TH.dtype)
    through_TF = (du_TR @ projection.a_IK).float().mul_(projection.scale)
    if projection.probability:
        mask_TF = projection.mask(0)
        x_TF, through_TF = x_TF * mask_TF, through_TF * mask_TF
    d_TF = dx_TF.float() + through_TF
    d_gate_TF = (d_TF * up_TF * (sigmoid_TF + silu_TF * (1 - sigmoid_TF))).to(gate_up_TH.dtype)
    d_up_TF = (d_TF * silu_TF).to(gate_up_TH.dtype)
    gradients = [
        (du_TR.t() @ x_TF).float().mul_(projection.scale),
        (inner_TI[:, :R].t() @ d_gate_TF).float(),
        (inner_TI[:, R:].t() @ d_up_TF).float(),
    ]
    return torch.cat([d_gate_TF, d_up_TF], 1), torch.cat(gradients)


def swiglu_backward(
    dx_TF: Tensor,
    du_TR: Tensor,
    gate_up_TH: Tensor,
    inner_TI: Tensor,
    projection: Projection,
    gradients: Sequence[Gradient | None],
    *,
    launch: Launch = BACKWARD,
) -> Tensor:
    """Gradient of gate and up, (T, 2 F). `gradients` grow by dA of down, dB^T of gate and dB^T of up, in this order.

    dx_TF, du_TR: may be column slices of one tensor; du's first R columns count. inner_TI: u of gate and up, (T, 2 R).
    """
    T, F = gate_up_TH.shape[0], gate_up_TH.shape[1] // 2
    R = projection.rank
    if not runs_triton(gate_up_TH):
        d_TH, sums_3RF = swiglu_backward_reference(dx_TF, du_TR, gate_up_TH, inner_TI, projection)
        add_parts(sums_3RF.unsqueeze(0), gradients, rank=R)
        return d_TH
    launch = fitting(launch, columns=F)
    splits, per_split = split_tokens(T, rows=launch.rows, splits=SPLITS)
    d_TH = torch.empty_like(gate_up_TH)
    parts = torch.empty(splits, 3 * R, F, dtype=torch.float32, device=gate_up_TH.device)
    _backward[(F // launch.columns, splits)](
        dx_TF, du_TR, gate_up_TH, inner_TI, projection.a_IK, d_TH, parts, projection.places_T, projection.site,
        projection.scale, per_split, T,
        LDDX=dx_TF.stride(0), LDDU=du_TR.stride(0), F=F, R=R, THRESHOLD=projection.threshold, BM=launch.rows,
        BK=launch.columns, **launch.options(),
    )  # fmt: skip
    add_parts(parts, gradients, rank=R)
    return d_TH


@kernel(do_not_specialize=["site"])
def _forward(
    gate_up_ptr, wide_ptr, inner_ptr, a_ptr, places_ptr, site, scale,
    F: tl.constexpr, LDX: tl.constexpr, R: tl.constexpr, THRESHOLD: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    PAD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    rows = tl.arange(0, BM)
    gate_up_ptr += first * (2 * F)
    wide_ptr += first * LDX
    if THRESHOLD > 0:
        keys = odd_keys(tl.load(places_ptr + first + rows))
    inner = tl.arange(0, R)
    u = tl.zeros((BM, R), tl.float32)
    for k in range(0, F, BK):
        columns = k + tl.arange(0, BK)
        at = gate_up_ptr + rows[:, None] * (2 * F) + columns[None, :]
        gate = tl.load(at).to(tl.float32)
        x = made_once(gate * sigmoid(gate) * tl.load(at + F).to(tl.float32)).to(wide_ptr.dtype.element_ty)
        tl.store(wide_ptr + rows[:, None] * LDX + columns[None, :], x)
        if THRESHOLD > 0:
            x = tl.where(site_hash(keys, odd_keys(columns + site)) >= THRESHOLD, x, 0.0)
        u = tl.dot(x, tl.load(a_ptr + inner[None, :] * F + columns[:, None]), u, input_precision="ieee")
    tl.store(wide_ptr + rows[:, None] * LDX + F + inner[None, :], u * scale)
    tl.store(inner_ptr + (first + rows[:, None]) * R + inner[None, :], u * scale)
    for k in range(0, PAD, 16):
        at = k + tl.arange(0, 16)
        place = wide_ptr + rows[:, None] * LDX + F + R + at[None, :]
        tl.store(place, tl.zeros((BM, 16), tl.float32), mask=(at < PAD)[None, :])


@kernel(do_not_specialize=["site", "per_split", "tokens"])
def _backward(
    dx_ptr, du_ptr, gate_up_ptr, inner_ptr, a_ptr, out_ptr, parts_ptr, places_ptr, site, scale, per_split,
    tokens,
    LDDX: tl.constexpr, LDDU: tl.constexpr, F: tl.constexpr, R: tl.constexpr, THRESHOLD: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BK + tl.arange(0, BK)
    split = tl.program_id(1).to(tl.int64)
    rank = tl.arange(0, R)
    rows = tl.arange(0, BM)
    column_keys = odd_keys(columns + site)
    a = tl.load(a_ptr + rank[:, None] * F + columns[None, :])
    da = tl.zeros((BK, R), tl.float32)  # transposed sums: see `lora._backward`
    db_gate = tl.zeros((BK, R), tl.float32)
    db_up = tl.zeros((BK, R), tl.float32)
    begin = split * per_split
    dx_ptr += begin * LDDX
    du_ptr += begin * LDDU
    gate_up_ptr += begin * (2 * F)
    out_ptr += begin * (2 * F)
    inner_ptr += begin * (2 * R)
    places_ptr += begin
    count = tl.minimum(per_split, tokens - begin).to(tl.int32)
    for m in range(0, count, BM):
        local = m + rows
        at = local[:, None] * (2 * F) + columns[None, :]
        du = tl.load(du_ptr + local[:, None] * LDDU + rank[None, :])
        through = tl.dot(du, a, input_precision="ieee")
        gate = pinned(tl.load(gate_up_ptr + at).to(tl.float32), through)
        up = tl.load(gate_up_ptr + at + F).to(tl.float32)
        open_ = sigmoid(gate)
        silu = gate * open_
        x = silu * up
        if THRESHOLD > 0:
            keep = site_hash(odd_keys(tl.load(places_ptr + local)), column_keys) >= THRESHOLD
            x = tl.where(keep, x, 0.0)
            through = tl.where(keep, through, 0.0)
        da = tl.dot(tl.trans(x.to(a.dtype)), du, da, input_precision="ieee")
        d = tl.load(dx_ptr + local[:, None] * LDDX + columns[None, :]).to(tl.float32) + through * scale
        d_gate = (d * up * (open_ + silu * (1.0 - open_))).to(a.dtype)
        d_up = (d * silu).to(a.dtype)
        tl.store(out_ptr + at, d_gate)
        tl.store(out_ptr + at + F, d_up)
        u = inner_ptr + local[:, None] * (2 * R) + rank[None, :]
        db_gate = tl.dot(tl.trans(d_gate), tl.load(u), db_gate, input_precision="ieee")
        db_up = tl.dot(tl.trans(d_up), tl.load(u + R), db_up, input_precision="ieee")
    parts = parts_ptr + split * (3 * R * F) + rank[:, None] * F + columns[None, :]
    tl.store(parts, tl.trans(da) * scale)
    tl.store(parts + R * F, tl.trans(db_gate))
    tl.store(parts + 2 * R * F, tl.trans(db_up))
