# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""Causal attention within documents laid end to end: forward, and backward with the rotation of q and k undone.

    out_t = softmax_{s <= t, s in t's document, t - s < window}(scale q_t k_s) v_s
    backward, with P the weights: dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O));  dQ = scale dS K;  dK = scale dS^T Q

Queries may be the last tokens of each document only: `Documents` holds boundaries of queries and of keys. A tile holds
all query heads that share a key head, so keys and values are read once for them and their gradients need no second
sum. Tiles come in the order of their work, the most first, so that those which end last are short.
Maths: FlashAttention (Dao et al. 2022), algorithms 1 and 4. On a GPU without Triton: torch's own kernel.

Dimensions: T tokens, Q queries (Q <= T), H query heads, G key-value heads, D head_dim, E = D / 2; n documents.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, jit, kernel, runs_triton, tl, triton
from tunesmith.kernels.rope import rotate_backward

# rows: tokens of queries in a tile; columns: keys. H200, dialogues and long documents, 32 query heads on 8, 16,384
# tokens with D = 64 and 8,192 with D = 128
FORWARD = Launch(rows=16, columns=32, warps=4, stages=3)
QUERY_BACKWARD = Launch(rows=16, columns=32, warps=4, stages=2)
QUERY_BACKWARD_OF_SMALL = Launch(rows=16, columns=32, warps=4, stages=3, registers=104)  # heads: D up to SMALL_HEAD
SMALL_HEAD = 64
KEY_BACKWARD = Launch(rows=32, columns=64, warps=4, stages=3)  # rows: tokens times the heads that share a key head

# Tables lie one after the other in one copy and begin anywhere: else a kernel for each kind of place would be compiled.
_NOT_SPECIALIZED = ("blocks_ptr", "window")


class Documents(NamedTuple):
    """Boundaries of the documents, on the host, and the tables of tiles, on the device.

    queries, keys: (n + 1,) cumulative. query_blocks: (blocks, 6) int32 for FORWARD.rows tokens a tile: first query, how
    many, the place of the first among its document's keys, the document's first key, its keys, and how many of those
    have no query. key_blocks: (blocks, 6) for KEY_BACKWARD.columns keys a tile: first key, how many, its place in the
    document, the document's first query, its queries, and the same. In any order; a block of none is passed by.
    """

    queries: np.ndarray
    keys: np.ndarray
    query_blocks: Tensor
    key_blocks: Tensor


def tables(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`query_blocks` and `key_blocks` of `Documents`, on the host."""
    num_queries, num_keys = np.diff(queries), np.diff(keys)
    document, offset = _blocks(num_queries, FORWARD.rows)
    query_blocks = np.stack(
        [
            queries[:-1][document] + offset,
            np.minimum(FORWARD.rows, num_queries[document] - offset),
            (num_keys - num_queries)[document] + offset,
            keys[:-1][document],
            num_keys[document],
            (num_keys - num_queries)[document],
        ],
        1,
    )
    document, offset = _blocks(num_keys, KEY_BACKWARD.columns)
    key_blocks = np.stack(
        [
            keys[:-1][document] + offset,
            np.minimum(KEY_BACKWARD.columns, num_keys[document] - offset),
            offset,
            queries[:-1][document],
            num_queries[document],
            (num_keys - num_queries)[document],
        ],
        1,
    )
    return _heaviest_first(query_blocks, seen=query_blocks[:, 2] + query_blocks[:, 1]), _heaviest_first(
        key_blocks, seen=key_blocks[:, 4] - np.maximum(0, key_blocks[:, 2] - key_blocks[:, 5])
    )


def _heaviest_first(blocks: np.ndarray, *, seen: np.ndarray) -> np.ndarray:
    """seen: how many tokens of the other kind the tile goes over."""
    return blocks[np.argsort(-seen, kind="stable")]


def _blocks(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, offset in it) of each block of `size` tokens."""
    counts = -(-lengths // size)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return document, number * size


def attend(
    q_QHD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, *, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """(out (Q, H, D) contiguous, log-sum-exp (Q, H) float32). `window`: None, or how many tokens a query sees.

    Inputs may be column slices of one tensor. Raises ValueError for a head_dim below 16 or no power of two.
    """
    Q, H, D = q_QHD.shape
    G = k_TGD.shape[1]
    if not runs_triton(q_QHD):
        return attend_reference(q_QHD, k_TGD, v_TGD, documents, scale=scale, window=window)
    out_QHD = torch.empty(Q, H, D, dtype=q_QHD.dtype, device=q_QHD.device)
    lse_QH = torch.empty(Q, H, dtype=torch.float32, device=q_QHD.device)
    _attend[(len(documents.query_blocks), G)](
        q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, documents.query_blocks, scale * math.log2(math.e), window or 0,
        q_QHD.stride(0), k_TGD.stride(0), v_TGD.stride(0),
        H=H, REP=H // G, RP=triton.next_power_of_2(H // G), D=D, WINDOWED=window is not None,
        BT=FORWARD.rows, BN=FORWARD.columns, **FORWARD.options(),
    )  # fmt: skip
    return out_QHD, lse_QH


def attend_backward(
    d_QHD: Tensor,
    q_QHD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_QHD: Tensor,
    lse_QH: Tensor,
    documents: Documents,
    *,
    scale: float,
    window: int | None,
    d_q: Tensor,
    d_kv: Tensor,
    query_angles: tuple[Tensor, Tensor] | None,
    key_angles: tuple[Tensor, Tensor] | None,
) -> None:
    """Gradients into d_q (Q, H D) and d_kv (T, 2 G D: keys, then values), which may be column slices.

    query_angles, key_angles: (cos, sin) float32 (Q, E) and (T, E) of the rotation to undo; None leaves it as it is.
    """
    Q, H, D = q_QHD.shape
    G = k_TGD.shape[1]
    size = G * D
    if not runs_triton(q_QHD):
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (q_QHD, k_TGD, v_TGD)]
            out, _ = attend_reference(leaves[0], leaves[1], leaves[2], documents, scale=scale, window=window)
        dq, dk, dv = torch.autograd.grad(out, leaves, d_QHD)
        for gradient, into, heads, angles in ((dq, d_q, H, query_angles), (dk, d_kv, G, key_angles)):
            flat = gradient.reshape(gradient.shape[0], -1)
            if angles is None:
                into[:, : heads * D] = flat
            else:
                rotate_backward(flat, into, *angles, heads=heads)
        d_kv[:, size:] = dv.reshape(dv.shape[0], -1)
        return
    delta_QH = torch.empty(Q, H, dtype=torch.float32, device=q_QHD.device)
    cos, sin = (q_QHD, q_QHD) if query_angles is None else query_angles
    common: dict[str, Any] = {
        "H": H, "REP": H // G, "RP": triton.next_power_of_2(H // G), "D": D, "WINDOWED": window is not None
    }  # fmt: skip
    launch = QUERY_BACKWARD if D > SMALL_HEAD else QUERY_BACKWARD_OF_SMALL
    _backward_queries[(len(documents.query_blocks), G)](
        d_QHD, q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, delta_QH, d_q, cos, sin, documents.query_blocks, scale,
        scale * math.log2(math.e), window or 0, q_QHD.stride(0), k_TGD.stride(0), v_TGD.stride(0), d_q.stride(0),
        ROTATED=query_angles is not None, BT=launch.rows, BN=launch.columns, **common, **launch.options(),
    )  # fmt: skip
    cos, sin = (q_QHD, q_QHD) if key_angles is None else key_angles
    _backward_keys[(len(documents.key_blocks), G)](
        d_QHD, q_QHD, k_TGD, v_TGD, lse_QH, delta_QH, d_kv, cos, sin, documents.key_blocks, scale,
        scale * math.log2(math.e), window or 0, q_QHD.stride(0), k_TGD.stride(0), v_TGD.stride(0), d_kv.stride(0),
        size, ROTATED=key_angles is not None, BT=max(1, KEY_BACKWARD.rows // common["RP"]),
        BN=KEY_BACKWARD.columns, **common, **KEY_BACKWARD.options(),
    )  # fmt: skip


def attend_reference(
    q_QHD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, *, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """In float32, a document at a time, with whole score matrices."""
    repeats = q_QHD.shape[1] // k_TGD.shape[1]
    queries, keys = documents.queries.tolist(), documents.keys.tolist()
    outs: list[Tensor] = []
    sums: list[Tensor] = []
    for number in range(len(keys) - 1):
        q = q_QHD[queries[number] : queries[number + 1]].float()
        part = slice(keys[number], keys[number + 1])
        k, v = (tensor[part].float().repeat_interleave(repeats, 1) for tensor in (k_TGD, v_TGD))
        place = torch.arange(k.shape[0], device=q.device)
        distance = place[k.shape[0] - q.shape[0] :, None] - place[None, :]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        scores = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~seen, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        sums.append(scores.logsumexp(-1).t())
    return torch.cat(outs).to(q_QHD.dtype), torch.cat(sums)


@jit
def _vectors(ptr, rows, stride, D: tl.constexpr, ok):
    """Head vectors at `rows` elements from ptr: (len(rows), D), 0 where not ok."""
    return tl.load(ptr + (rows * stride)[:, None] + tl.arange(0, D)[None, :], mask=ok[:, None], other=0.0)


@jit
def _turned_back(d, cos_ptr, sin_ptr, rows, E: tl.constexpr, ok):
    """Both halves of gradients (M, 2 E) with the rotation of tokens `rows` undone."""
    d1, d2 = tl.split(tl.permute(tl.reshape(d, (d.shape[0], 2, E)), (0, 2, 1)))
    angle = rows[:, None] * E + tl.arange(0, E)[None, :]
    cos = tl.load(cos_ptr + angle, mask=ok[:, None], other=0.0)
    sin = tl.load(sin_ptr + angle, mask=ok[:, None], other=0.0)
    return d1 * cos + d2 * sin, d2 * cos - d1 * sin


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, blocks_ptr, scale, window, SQ, SK, SV,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, WINDOWED: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    blocks_ptr += tl.program_id(0) * 6
    group = tl.program_id(1)
    first = tl.load(blocks_ptr).to(tl.int64)
    count = tl.load(blocks_ptr + 1)
    if count == 0:
        return
    place = tl.load(blocks_ptr + 2)
    key = tl.load(blocks_ptr + 3).to(tl.int64)
    row = tl.arange(0, BT * RP)
    token, head = row // RP, row % RP
    ok = (token < count) & (head < REP)
    value = tl.arange(0, D)
    q_ptr += first * SQ + group * REP * D
    q = tl.load(q_ptr + (token * SQ + head * D)[:, None] + value[None, :], mask=ok[:, None], other=0.0)
    k_ptr += key * SK + group * D
    v_ptr += key * SV + group * D
    largest = tl.full((BT * RP,), -float("inf"), tl.float32)
    total = tl.zeros((BT * RP,), tl.float32)
    out = tl.zeros((BT * RP, D), tl.float32)
    end = place + count
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, place - window + 1) // BN * BN
    for n in range(begin, end, BN):
        column = n + tl.arange(0, BN)
        k = _vectors(k_ptr, column, SK, D, column < end)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        distance = (place + token)[:, None] - column[None, :]
        seen = distance >= 0
        if WINDOWED:
            seen = seen & (distance < window)
        scores = tl.where(seen, scores, -1.0e30)
        top = tl.maximum(largest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - top[:, None])
        if WINDOWED:  # else the first tile has a key that is seen, and what is not seen is far below its score
            weights = tl.where(seen, weights, 0.0)
        fade = tl.exp2(largest - top)
        largest = top
        total = total * fade + tl.sum(weights, 1)
        v = _vectors(v_ptr, column, SV, D, column < end)
        out = tl.dot(weights.to(v.dtype), v, out * fade[:, None], input_precision="ieee")
    out_ptr += first * (H * D) + group * REP * D
    tl.store(out_ptr + (token * (H * D) + head * D)[:, None] + value[None, :], out / total[:, None], mask=ok[:, None])
    # kept in nats; 0.693 = ln 2
    tl.store(
        lse_ptr + (first + token) * H + group * REP + head, (largest + tl.log2(total)) * 0.6931471805599453, mask=ok
    )


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _backward_queries(
    d_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr, cos_ptr, sin_ptr, blocks_ptr, scale, scale_2,
    window, SQ, SK, SV, SD,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, WINDOWED: tl.constexpr,
    ROTATED: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    blocks_ptr += tl.program_id(0) * 6
    group = tl.program_id(1)
    first = tl.load(blocks_ptr).to(tl.int64)
    count = tl.load(blocks_ptr + 1)
    if count == 0:
        return
    place = tl.load(blocks_ptr + 2)
    key = tl.load(blocks_ptr + 3).to(tl.int64)
    row = tl.arange(0, BT * RP)
    token, head = row // RP, row % RP
    ok = (token < count) & (head < REP)
    value = tl.arange(0, D)
    q_ptr += first * SQ + group * REP * D
    q = tl.load(q_ptr + (token * SQ + head * D)[:, None] + value[None, :], mask=ok[:, None], other=0.0)
    packed = first * (H * D) + group * REP * D + (token * (H * D) + head * D)[:, None] + value[None, :]
    d = tl.load(d_ptr + packed, mask=ok[:, None], other=0.0)
    out = tl.load(out_ptr + packed, mask=ok[:, None], other=0.0)
    delta = tl.sum(d.to(tl.float32) * out.to(tl.float32), 1)
    statistic = (first + token) * H + group * REP + head
    tl.store(delta_ptr + statistic, delta, mask=ok)
    lse = tl.load(lse_ptr + statistic, mask=ok, other=0.0) * 1.4426950408889634
    k_ptr += key * SK + group * D
    v_ptr += key * SV + group * D
    dq = tl.zeros((BT * RP, D), tl.float32)
    end = place + count
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, place - window + 1) // BN * BN
    for n in range(begin, end, BN):
        column = n + tl.arange(0, BN)
        k = _vectors(k_ptr, column, SK, D, column < end)
        v = _vectors(v_ptr, column, SV, D, column < end)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        through = tl.dot(d, tl.trans(v), input_precision="ieee")
        distance = (place + token)[:, None] - column[None, :]
        seen = distance >= 0
        if WINDOWED:
            seen = seen & (distance < window)
        weights = tl.where(seen, tl.exp2(scores * scale_2 - lse[:, None]), 0.0)
        dq = tl.dot((weights * (through - delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    dq *= scale
    dq_ptr += first * SD + group * REP * D
    at = (token * SD + head * D)[:, None]
    if ROTATED:
        d1, d2 = _turned_back(dq, cos_ptr + first * (D // 2), sin_ptr + first * (D // 2), token, D // 2, ok)
        half = tl.arange(0, D // 2)[None, :]
        tl.store(dq_ptr + at + half, d1, mask=ok[:, None])
        tl.store(dq_ptr + at + D // 2 + half, d2, mask=ok[:, None])
    else:
        tl.store(dq_ptr + at + value[None, :], dq, mask=ok[:, None])


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _backward_keys(
    d_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dkv_ptr, cos_ptr, sin_ptr, blocks_ptr, scale, scale_2, window,
    SQ, SK, SV, SD, size,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, WINDOWED: tl.constexpr,
    ROTATED: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    blocks_ptr += tl.program_id(0) * 6
    group = tl.program_id(1)
    key = tl.load(blocks_ptr).to(tl.int64)
    count = tl.load(blocks_ptr + 1)
    if count == 0:
        return
    place = tl.load(blocks_ptr + 2)
    first = tl.load(blocks_ptr + 3).to(tl.int64)
    queries = tl.load(blocks_ptr + 4)
    # the document's query number i is its token number `missing + i`
    missing = tl.load(blocks_ptr + 5)
    column = tl.arange(0, BN)
    ok = column < count
    value = tl.arange(0, D)
    k = _vectors(k_ptr + key * SK + group * D, column, SK, D, ok)
    v = _vectors(v_ptr + key * SV + group * D, column, SV, D, ok)
    dk = tl.zeros((BN, D), tl.float32)
    dv = tl.zeros((BN, D), tl.float32)
    row = tl.arange(0, BT * RP)
    token, head = row // RP, row % RP
    q_ptr += first * SQ + group * REP * D
    d_ptr += first * (H * D) + group * REP * D
    lse_ptr += first * H + group * REP
    delta_ptr += first * H + group * REP
    begin = tl.maximum(0, place - missing) // BT * BT
    end = queries
    if WINDOWED:
        end = tl.minimum(queries, place + count - 1 + window - missing)
    for t in range(begin, end, BT):
        live = (t + token < queries) & (head < REP)
        q = tl.load(q_ptr + ((t + token) * SQ + head * D)[:, None] + value[None, :], mask=live[:, None], other=0.0)
        d = tl.load(d_ptr + ((t + token) * (H * D) + head * D)[:, None] + value[None, :], mask=live[:, None], other=0.0)
        statistic = (t + token) * H + head
        lse = tl.load(lse_ptr + statistic, mask=live, other=0.0) * 1.4426950408889634
        delta = tl.load(delta_ptr + statistic, mask=live, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        through = tl.dot(v, tl.trans(d), input_precision="ieee")
        distance = (missing + t + token)[None, :] - (place + column)[:, None]
        seen = (distance >= 0) & live[None, :]
        if WINDOWED:
            seen = seen & (distance < window)
        weights = tl.where(seen, tl.exp2(scores * scale_2 - lse[None, :]), 0.0)
        dv = tl.dot(weights.to(d.dtype), d, dv, input_precision="ieee")
        dk = tl.dot((weights * (through - delta[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    dk *= scale
    dkv_ptr += key * SD + group * D
    at = (column * SD)[:, None]
    if ROTATED:
        d1, d2 = _turned_back(dk, cos_ptr + key * (D // 2), sin_ptr + key * (D // 2), column, D // 2, ok)
        half = tl.arange(0, D // 2)[None, :]
        tl.store(dkv_ptr + at + half, d1, mask=ok[:, None])
        tl.store(dkv_ptr + at + D // 2 + half, d2, mask=ok[:, None])
    else:
        tl.store(dkv_ptr + at + value[None, :], dk, mask=ok[:, None])
    tl.store(dkv_ptr + size + at + value[None, :], dv, mask=ok[:, None])
