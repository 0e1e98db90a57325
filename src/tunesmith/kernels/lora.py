# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""The adapters of projections that share an input: inner values forward, input gradient and dA backward.

    forward   u_j = drop_j(x) A_j^T / keep
    backward  dx += sum_j drop_j(du_j A_j) / keep;   dA_j += du_j^T drop_j(x) / keep        (du_j = s dy_j B_j)

The masks are a hash of place, feature and step (`dropout.site_mask`), made again in the backward pass: none is stored.
The source of x is x itself or, after a norm, h, whose x = h * rstd * w is made again in the same pass. The products
with B belong to the caller, who folds them into the base's own (`models/decoder.py`).

Dimensions: T tokens (a multiple of ROW_MULTIPLE), K features, G projections (1 to 3), R their padded rank, I = G R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.kernels.backend import (
    Launch,
    fitting,
    jit,
    kernel,
    made_once,
    odd_keys,
    pinned,
    runs_triton,
    site_hash,
    tl,
    triton,
)
from tunesmith.kernels.dropout import site_bits, site_keep_rate, site_mask, site_threshold

# H200, 8,192 tokens of 4,096 and 2,048 features, rank 32 (benchmarks/bench_kernels.py)
FORWARD = Launch(rows=64, columns=64, warps=4, stages=3)
GATHER = Launch(rows=16, columns=64, warps=4, stages=1)
BACKWARD = Launch(rows=64, columns=64, warps=4, stages=3)
BACKWARD_OF_ONE = Launch(rows=64, columns=64, warps=4, stages=3, registers=128)  # projection
FEATURE_SPLITS = 2  # of a token's features in the forward pass; 1 and 4 are slower
SPLITS = 8  # of the tokens in the backward pass: enough programs for 132 multiprocessors; 4 and 16 are slower
SPLITS_OF_ONE = 16  # projection of few features: its programs take fewer registers, so more of them run side by side
FEW_FEATURES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What the adapters of one site need beside their input.

    a_IK: A of the projections, one below the other, in the activations' dtype. places_T: int32, each token's place in
    the step, moved by the step's key (`dropout.step_places`). site: `dropout.site_key`. probability: 0 outside of
    training.
    """

    a_IK: Tensor
    count: int
    rank: int
    places_T: Tensor
    site: int
    probability: float

    @property
    def bits(self) -> int:
        return site_bits(self.count)

    @property
    def threshold(self) -> int:
        return site_threshold(self.probability, self.count)

    @property
    def scale(self) -> float:
        return 1.0 / site_keep_rate(self.probability, self.count)

    def mask(self, index: int) -> Tensor:
        """(T, K) bool of projection `index`."""
        return site_mask(
            self.places_T,
            site=self.site,
            num_features=self.a_IK.shape[1],
            count=self.count,
            index=index,
            probability=self.probability,
        )

    def rows(self, index: int) -> slice:
        return slice(index * self.rank, (index + 1) * self.rank)

    @staticmethod
    def none(tensor: Tensor) -> Projection:
        """No adapter, for kernels that are handed one whatever comes."""
        return Projection(a_IK=tensor, count=0, rank=16, places_T=tensor, site=0, probability=0.0)


def project_reference(x_TK: Tensor, projection: Projection) -> Tensor:
    """(T, I): the u_j side by side."""
    u: list[Tensor] = []
    for index in range(projection.count):
        kept_TK = x_TK * projection.mask(index) if projection.probability else x_TK
        u.append((kept_TK @ projection.a_IK[projection.rows(index)].t()).mul_(projection.scale))
    return torch.cat(u, 1)


def project(
    source_TK: Tensor,
    projection: Projection,
    *,
    width: int,
    rstd_T: Tensor | None = None,
    weight_K: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """([x | u | 0] of `width` columns, u alone). source_TK: x, or h where rstd and the norm's weight are given."""
    T, K = source_TK.shape
    inner = projection.count * projection.rank
    wide_TL = torch.empty(T, width, dtype=source_TK.dtype, device=source_TK.device)
    inner_TI = torch.empty(T, inner, dtype=source_TK.dtype, device=source_TK.device)
    if not runs_triton(source_TK):
        x_TK = _source(source_TK, rstd_T, weight_K)
        if projection.count:
            inner_TI.copy_(project_reference(x_TK, projection))
        wide_TL[:, :K] = x_TK
        wide_TL[:, K : K + inner] = inner_TI
        wide_TL[:, K + inner :] = 0
        return wide_TL, inner_TI
    parts_STI = _parts(source_TK, projection, wide_TL=wide_TL, rstd_T=rstd_T, weight_K=weight_K, launch=launch)
    _gather[(T // GATHER.rows,)](
        parts_STI, wide_TL, inner_TI, projection.scale, T,
        K=K, LDX=width, INNER=inner, S=len(parts_STI), BM=GATHER.rows, BI=GATHER.columns, **GATHER.options(),
    )  # fmt: skip
    return wide_TL, inner_TI


def project_alone(x_TK: Tensor, projection: Projection, *, launch: Launch | None = None) -> Tensor:
    """(T, I): u without a copy of x beside it."""
    if not runs_triton(x_TK):
        return project_reference(x_TK, projection)
    T, inner = x_TK.shape[0], projection.count * projection.rank
    inner_TI = torch.empty(T, inner, dtype=x_TK.dtype, device=x_TK.device)
    parts_STI = _parts(x_TK, projection, launch=launch)
    _gather[(T // GATHER.rows,)](
        parts_STI, inner_TI, inner_TI, projection.scale, T,
        K=0, LDX=inner, INNER=inner, S=len(parts_STI), BM=GATHER.rows, BI=GATHER.columns, **GATHER.options(),
    )  # fmt: skip
    return inner_TI


def _parts(
    source_TK: Tensor,
    projection: Projection,
    *,
    wide_TL: Tensor | None = None,
    rstd_T: Tensor | None = None,
    weight_K: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """(S, T, I) float32: u, not scaled, of each share of the features; x goes into `wide_TL` on the way."""
    T, K = source_TK.shape
    launch = fitting(launch or FORWARD, columns=K)
    splits, per_split = _split_features(K, columns=launch.columns)
    parts_STI = torch.empty(splits, T, projection.count * projection.rank, dtype=torch.float32, device=source_TK.device)
    _forward[(T // launch.rows, splits)](
        source_TK, source_TK if rstd_T is None else rstd_T, source_TK if weight_K is None else weight_K,
        source_TK if wide_TL is None else wide_TL, parts_STI, projection.a_IK, projection.places_T, projection.site, T,
        LDS=source_TK.stride(0), K=K, KS=per_split, LDX=0 if wide_TL is None else wide_TL.shape[1],
        G=projection.count, R=projection.rank, BITS=projection.bits, THRESHOLD=projection.threshold,
        HAS_NORM=rstd_T is not None, BM=launch.rows, BK=launch.columns, **launch.options(),
    )  # fmt: skip
    return parts_STI


def _split_features(features: int, *, columns: int) -> tuple[int, int]:
    """(splits, features of each), in whole tiles of `columns`."""
    splits = next(count for count in (FEATURE_SPLITS, 1) if features % (count * columns) == 0)
    return splits, features // splits


def _source(source_TK: Tensor, rstd_T: Tensor | None, weight_K: Tensor | None) -> Tensor:
    if rstd_T is None or weight_K is None:
        return source_TK
    return (source_TK.float() * rstd_T[:, None] * weight_K.float()).to(source_TK.dtype)


def project_backward_reference(
    dx_TK: Tensor | None,
    du_TI: Tensor,
    source_TK: Tensor,
    projection: Projection,
    *,
    rstd_T: Tensor | None = None,
    weight_K: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    x_TK = _source(source_TK, rstd_T, weight_K)
    da: list[Tensor] = []
    through_TK: Tensor | None = None
    for index in range(projection.count):
        rows = projection.rows(index)
        mask_TK = projection.mask(index) if projection.probability else None
        kept_TK = x_TK if mask_TK is None else x_TK * mask_TK
        da.append((du_TI[:, rows].t() @ kept_TK).float().mul_(projection.scale))
        if dx_TK is not None:
            part_TK = (du_TI[:, rows] @ projection.a_IK[rows]).float().mul_(projection.scale)
            part_TK = part_TK if mask_TK is None else part_TK.mul_(mask_TK)
            through_TK = part_TK if through_TK is None else through_TK.add_(part_TK)
    if dx_TK is None or through_TK is None:
        return None, torch.cat(da)
    return through_TK.add_(dx_TK).to(source_TK.dtype), torch.cat(da)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """Where a sum goes: into_rK += factor * sum. float32, the first r of R ranks; may be a transposed view."""

    into_rK: Tensor
    factor: float = 1.0


def project_backward(
    dx_TK: Tensor | None,
    du_TI: Tensor,
    source_TK: Tensor,
    projection: Projection,
    gradients: Sequence[Gradient | None],
    *,
    rstd_T: Tensor | None = None,
    weight_K: Tensor | None = None,
    is_own: bool = False,
    launch: Launch | None = None,
) -> Tensor | None:
    """dx with the adapters' part added (None if dx is None); dA_j is added to `gradients[j]`, unless that is None.

    dx_TK, du_TI: may be column slices of one tensor. du_TI: its first I columns count. source_TK: x, or h where rstd
    and the norm's weight are given. is_own: dx_TK, then of K columns, may be written over.
    """
    T, K = source_TK.shape
    if not runs_triton(source_TK):
        out_TK, da_IK = project_backward_reference(
            dx_TK, du_TI, source_TK, projection, rstd_T=rstd_T, weight_K=weight_K
        )
        add_parts(da_IK.unsqueeze(0), gradients, rank=projection.rank)
        return out_TK
    launch = fitting(launch or (BACKWARD_OF_ONE if projection.count == 1 else BACKWARD), columns=K)
    wanted = SPLITS_OF_ONE if projection.count == 1 and K < FEW_FEATURES else SPLITS
    splits, per_split = split_tokens(T, rows=launch.rows, splits=wanted)
    out_TK = dx_TK
    if dx_TK is not None and not is_own:
        out_TK = torch.empty(T, K, dtype=source_TK.dtype, device=source_TK.device)
    parts_SIK = torch.empty(splits, *projection.a_IK.shape, dtype=torch.float32, device=source_TK.device)
    _backward[(K // launch.columns, splits)](
        source_TK if dx_TK is None else dx_TK, du_TI, source_TK,
        source_TK if rstd_T is None else rstd_T, source_TK if weight_K is None else weight_K,
        projection.a_IK, source_TK if out_TK is None else out_TK, parts_SIK, projection.places_T,
        projection.site, projection.scale, per_split, T,
        LDDX=0 if dx_TK is None else dx_TK.stride(0), LDDU=du_TI.stride(0), K=K, G=projection.count,
        R=projection.rank, BITS=projection.bits, THRESHOLD=projection.threshold, HAS_NORM=rstd_T is not None,
        NEEDS_DX=dx_TK is not None, BM=launch.rows, BK=launch.columns, **launch.options(),
    )  # fmt: skip
    add_parts(parts_SIK, gradients, rank=projection.rank)
    return out_TK


def split_tokens(tokens: int, *, rows: int, splits: int) -> tuple[int, int]:
    """(splits, tokens of each but the last, which may be shorter), in whole tiles of `rows`."""
    tiles = tokens // rows
    per_split = -(-tiles // splits)
    return -(-tiles // per_split), per_split * rows


def add_parts(parts_SIK: Tensor, gradients: Sequence[Gradient | None], *, rank: int) -> None:
    """gradients[j] += its factor * (parts summed over S)[j R : j R + r], in one pass over the parts."""
    splits, _, K = parts_SIK.shape
    if not runs_triton(parts_SIK):
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                first = index * rank
                total_rK = parts_SIK[:, first : first + gradient.into_rK.shape[0]].sum(0)
                gradient.into_rK.add_(total_rK, alpha=gradient.factor)
        return
    filled = [*gradients, *([None] * (3 - len(gradients)))]
    into = [parts_SIK if gradient is None else gradient.into_rK for gradient in filled]
    strides = [(0, 0) if gradient is None else gradient.into_rK.stride() for gradient in filled]
    wanted = [gradient is not None for gradient in filled]
    kept = next((gradient.into_rK.shape[0] for gradient in filled if gradient is not None), 0)
    _add_parts[(triton.cdiv(K, 64), len(gradients))](
        parts_SIK, *into, *(0.0 if gradient is None else gradient.factor for gradient in filled), kept, splits,
        *strides[0], *strides[1], *strides[2], *wanted, K=K, G=len(gradients), R=rank, BK=64,
        **Launch(rank, 64, 4, 1).options(),
    )  # fmt: skip


@kernel(do_not_specialize=["site", "tokens"])
def _forward(
    source_ptr, rstd_ptr, weight_ptr, wide_ptr, parts_ptr, a_ptr, places_ptr, site, tokens,
    LDS: tl.constexpr, K: tl.constexpr, KS: tl.constexpr, LDX: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    BITS: tl.constexpr, THRESHOLD: tl.constexpr, HAS_NORM: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens, KS features. LDX: 0 where x is copied nowhere."""
    first = tl.program_id(0).to(tl.int64) * BM
    begin = tl.program_id(1) * KS
    rows = tl.arange(0, BM)
    source_ptr += first * LDS
    wide_ptr += first * LDX
    if HAS_NORM:
        rstd = tl.load(rstd_ptr + first + rows)
    if THRESHOLD > 0:
        keys = odd_keys(tl.load(places_ptr + first + rows))
    inner = tl.arange(0, R)
    u0 = tl.zeros((BM, R), tl.float32)
    u1 = tl.zeros((BM, R), tl.float32)
    u2 = tl.zeros((BM, R), tl.float32)
    for k in range(begin, begin + KS, BK):
        columns = k + tl.arange(0, BK)
        x = tl.load(source_ptr + rows[:, None] * LDS + columns[None, :])
        if HAS_NORM:
            weight = tl.load(weight_ptr + columns).to(tl.float32)
            x = made_once(x.to(tl.float32) * rstd[:, None] * weight[None, :]).to(x.dtype)
        if LDX > 0:
            tl.store(wide_ptr + rows[:, None] * LDX + columns[None, :], x)
        if G > 0:
            a = a_ptr + inner[None, :] * K + columns[:, None]
            kept = x
            if THRESHOLD > 0:
                bits = site_hash(keys, odd_keys(columns + site))
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
    part = parts_ptr + (tl.program_id(1) * tokens.to(tl.int64) + first + rows[:, None]) * (G * R) + inner[None, :]
    if G > 0:
        tl.store(part, u0)
    if G > 1:
        tl.store(part + R, u1)
    if G > 2:
        tl.store(part + 2 * R, u2)


@kernel(do_not_specialize=["tokens"])
def _gather(
    parts_ptr, wide_ptr, inner_ptr, scale, tokens,
    K: tl.constexpr, LDX: tl.constexpr, INNER: tl.constexpr, S: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """The inner values, summed over the splits, and zeros beside them up to the wide buffer's end."""
    rows = (tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM))[:, None]
    for first in range(0, LDX - K, BI):
        columns = (first + tl.arange(0, BI))[None, :]
        total = tl.zeros((BM, BI), tl.float32)
        for s in range(S):
            at = parts_ptr + (s * tokens.to(tl.int64) + rows) * INNER + columns
            total += tl.load(at, mask=columns < INNER, other=0.0)
        total *= scale
        tl.store(wide_ptr + rows * LDX + K + columns, total, mask=columns < LDX - K)
        tl.store(inner_ptr + rows * INNER + columns, total, mask=columns < INNER)


@kernel(do_not_specialize=["site", "per_split", "tokens"])
def _backward(
    dx_ptr, du_ptr, source_ptr, rstd_ptr, weight_ptr, a_ptr, out_ptr, parts_ptr, places_ptr, site, scale,
    per_split, tokens,
    LDDX: tl.constexpr, LDDU: tl.constexpr, K: tl.constexpr, G: tl.constexpr, R: tl.constexpr, BITS: tl.constexpr,
    THRESHOLD: tl.constexpr, HAS_NORM: tl.constexpr, NEEDS_DX: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program: BK columns, the tokens of one split. A stays in registers, and so do the sums of dA^T.

    Transposed, because the matrix units of Hopper take 64 rows of a result at least, and R may be 16.
    """
    columns = tl.program_id(0) * BK + tl.arange(0, BK)
    split = tl.program_id(1).to(tl.int64)
    inner = tl.arange(0, R)
    rows = tl.arange(0, BM)
    column_keys = odd_keys(columns + site)
    a0 = tl.load(a_ptr + inner[:, None] * K + columns[None, :])
    da0 = tl.zeros((BK, R), tl.float32)
    if G > 1:
        a1 = tl.load(a_ptr + (R + inner[:, None]) * K + columns[None, :])
        da1 = tl.zeros((BK, R), tl.float32)
    if G > 2:
        a2 = tl.load(a_ptr + (2 * R + inner[:, None]) * K + columns[None, :])
        da2 = tl.zeros((BK, R), tl.float32)
    if HAS_NORM:
        weight = tl.load(weight_ptr + columns).to(tl.float32)
    begin = split * per_split
    dx_ptr += begin * LDDX
    du_ptr += begin * LDDU
    source_ptr += begin * K
    out_ptr += begin * K
    rstd_ptr += begin
    places_ptr += begin
    count = tl.minimum(per_split, tokens - begin).to(tl.int32)  # offsets of 32 bits from here on: half the additions
    for m in range(0, count, BM):
        local = m + rows
        at = local[:, None] * K + columns[None, :]
        du = du_ptr + local[:, None] * LDDU + inner[None, :]
        u = tl.load(du)
        if NEEDS_DX:
            through = tl.dot(u, a0, input_precision="ieee")
        x = tl.load(source_ptr + at)
        if HAS_NORM:
            x = (x.to(tl.float32) * tl.load(rstd_ptr + local)[:, None] * weight[None, :]).to(x.dtype)
        kept = x
        if THRESHOLD > 0:
            bits = site_hash(odd_keys(tl.load(places_ptr + local)), column_keys)
            if NEEDS_DX:
                bits = pinned(bits, through)
            keep = bits >= THRESHOLD
            kept = tl.where(keep, x, 0.0)
            if NEEDS_DX:
                through = tl.where(keep, through, 0.0)
        da0 = tl.dot(tl.trans(kept), u, da0, input_precision="ieee")
        if G > 1:
            u = tl.load(du + R)
            if NEEDS_DX:
                part = tl.dot(u, a1, input_precision="ieee")
            if THRESHOLD > 0:
                keep = (bits << BITS) >= THRESHOLD
                kept = tl.where(keep, x, 0.0)
                if NEEDS_DX:
                    part = tl.where(keep, part, 0.0)
            if NEEDS_DX:
                through += part
            da1 = tl.dot(tl.trans(kept), u, da1, input_precision="ieee")
        if G > 2:
            u = tl.load(du + 2 * R)
            if NEEDS_DX:
                part = tl.dot(u, a2, input_precision="ieee")
            if THRESHOLD > 0:
                keep = (bits << (2 * BITS)) >= THRESHOLD
                kept = tl.where(keep, x, 0.0)
                if NEEDS_DX:
                    part = tl.where(keep, part, 0.0)
            if NEEDS_DX:
                through += part
            da2 = tl.dot(tl.trans(kept), u, da2, input_precision="ieee")
        if NEEDS_DX:
            out = tl.load(dx_ptr + local[:, None] * LDDX + columns[None, :]).to(tl.float32) + through * scale
            tl.store(out_ptr + at, out)
    parts = parts_ptr + split * (G * R * K) + inner[:, None] * K + columns[None, :]
    tl.store(parts, tl.trans(da0) * scale)
    if G > 1:
        tl.store(parts + R * K, tl.trans(da1) * scale)
    if G > 2:
        tl.store(parts + 2 * R * K, tl.trans(da2) * scale)


@kernel(do_not_specialize=["splits"])
def _add_parts(
    parts_ptr, into0, into1, into2, factor0, factor1, factor2, kept, splits,
    SR0: tl.constexpr, SK0: tl.constexpr, SR1: tl.constexpr, SK1: tl.constexpr, SR2: tl.constexpr, SK2: tl.constexpr,
    WANTED0: tl.constexpr, WANTED1: tl.constexpr, WANTED2: tl.constexpr,
    K: tl.constexpr, G: tl.constexpr, R: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program: BK columns of one gradient."""
    columns = (tl.program_id(0) * BK + tl.arange(0, BK))[None, :]
    rank = tl.arange(0, R)[:, None]
    index = tl.program_id(1)
    total = _sum_parts(parts_ptr + (index * R + rank) * K + columns, columns < K, G * R * K, splits)
    ok = (columns < K) & (rank < kept)
    if WANTED0 and index == 0:
        _add(into0 + rank * SR0 + columns * SK0, total * factor0, ok)
    if WANTED1 and index == 1:
        _add(into1 + rank * SR1 + columns * SK1, total * factor1, ok)
    if WANTED2 and index == 2:
        _add(into2 + rank * SR2 + columns * SK2, total * factor2, ok)


@jit
def _add(at, total, ok):
    tl.store(at, tl.load(at, mask=ok, other=0.0) + total, mask=ok)


@jit
def _sum_parts(at, ok, stride, splits):
    total = tl.load(at, mask=ok, other=0.0)
    for s in range(1, splits):
        total += tl.load(at + s * stride, mask=ok, other=0.0)
    return total
