# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
"""Causal attention within documents laid end to end: forward, and backward with the rotation of q and k undone.

    out_t = softmax_{s <= t, s in t's document, t - s < window}(scale q_t k_s) v_s
    backward, with P the weights: dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O));  dQ = scale dS K;  dK = scale dS^T Q

Queries may be the last tokens of each document only: `Documents` holds boundaries of queries and of keys. A tile holds
all query heads that share a key head, so keys and values are read once for them and their gradients need no second
sum. Head vectors are handled as two halves, so that the rotation's inverse is elementwise when gradients are written.
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

# rows: tokens of queries in a tile; columns: keys. H200, 8,192 tokens, dialogues and long documents, 32 query heads on
# 8 (benchmarks/bench_kernels.py)
FORWARD = Launch(rows=16, columns=32, warps=4, stages=3)
QUERY_BACKWARD = Launch(rows=16, columns=32, warps=4, stages=2)
KEY_BACKWARD = Launch(rows=16, columns=64, warps=4, stages=2)


# Tables lie one after the other in one copy and begin anywhere: else a kernel for each kind of place would be compiled.
_NOT_SPECIALIZED = ("blocks_ptr", "window")


class Documents(NamedTuple):
    """Boundaries of the documents, on the host, and the tables of tiles, on the device.

    queries, keys: (n + 1,) cumulative. query_blocks: (blocks, 6) int32 for FORWARD.rows tokens a tile: first query, how
    many, the place of the first among its document's keys, the document's first key, its keys, and how many of those
    have no query. key_blocks: (blocks, 6) for KEY_BACKWARD.columns keys a tile: first key, how many, its place in the
    document, the document's first query, its queries, and the same. A block of none is passed by.
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
    return query_blocks, key_blocks


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
        H=H, REP=H // G, RP=triton.next_power_of_2(H // G), E=D // 2, WINDOWED=window is not None,
        BT=FORWARD.rows, BN=FORWARD.columns if D > 64 else 2 * FORWARD.columns, **FORWARD.options(),
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
        "H": H, "REP": H // G, "RP": triton.next_power_of_2(H // G), "E": D // 2, "WINDOWED": window is not None
    }  # fmt: skip
    _backward_queries[(len(documents.query_blocks), G)](
        d_QHD, q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, delta_QH, d_q, cos, sin, documents.query_blocks, scale,
        scale * math.log2(math.e), window or 0, q_QHD.stride(0), k_TGD.stride(0), v_TGD.stride(0), d_q.stride(0),
        ROTATED=query_angles is not None, BT=FORWARD.rows, BN=QUERY_BACKWARD.columns, **common,
        **QUERY_BACKWARD.options(),
    )  # fmt: skip
    cos, sin = (q_QHD, q_QHD) if key_angles is None else key_angles
    _backward_keys[(len(documents.key_blocks), G)](
        d_QHD, q_QHD, k_TGD, v_TGD, lse_QH, delta_QH, d_kv, cos, sin, documents.key_blocks, scale,
        scale * math.log2(math.e), window or 0, q_QHD.stride(0), k_TGD.stride(0), v_TGD.stride(0), d_kv.stride(0),
        size, ROTATED=key_angles is not None, BT=KEY_BACKWARD.rows, BN=KEY_BACKWARD.columns, **common,
        **KEY_BACKWARD.options(),
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
def _halves(ptr, rows, stride, E: tl.constexpr, ok):
    """Both halves of head vectors at `rows` elements from ptr: (len(rows), E) each, 0 where not ok."""
    at = ptr + (rows * stride)[:, None] + tl.arange(0, E)[None, :]
    return tl.load(at, mask=ok[:, None], other=0.0), tl.load(at + E, mask=ok[:, None], other=0.0)


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, blocks_ptr, scale, window, SQ, SK, SV,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, E: tl.constexpr, WINDOWED: tl.constexpr,
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
    half = tl.arange(0, E)
    at = q_ptr + (first + token)[:, None] * SQ + (group * REP + head)[:, None] * (2 * E) + half[None, :]
    q1 = tl.load(at, mask=ok[:, None], other=0.0)
    q2 = tl.load(at + E, mask=ok[:, None], other=0.0)
    k_ptr += key * SK + group * (2 * E)
    v_ptr += key * SV + group * (2 * E)
    largest = tl.full((BT * RP,), -float("inf"), tl.float32)
    total = tl.zeros((BT * RP,), tl.float32)
    o1 = tl.zeros((BT * RP, E), tl.float32)
    o2 = tl.zeros((BT * RP, E), tl.float32)
    end = place + count
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, place - window + 1) // BN * BN
    for n in range(begin, end, BN):
        column = n + tl.arange(0, BN)
        k1, k2 = _halves(k_ptr, column, SK, E, column < end)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
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
        v1, v2 = _halves(v_ptr, column, SV, E, column < end)
        weights = weights.to(v1.dtype)
        o1 = tl.dot(weights, v1, o1 * fade[:, None], input_precision="ieee")
        o2 = tl.dot(weights, v2, o2 * fade[:, None], input_precision="ieee")
    out = out_ptr + (first + token)[:, None] * (H * 2 * E) + (group * REP + head)[:, None] * (2 * E) + half[None, :]
    tl.store(out, o1 / total[:, None], mask=ok[:, None])
    tl.store(out + E, o2 / total[:, None], mask=ok[:, None])
    # kept in nats; 0.693 = ln 2
    tl.store(
        lse_ptr + (first + token) * H + group * REP + head, (largest + tl.log2(total)) * 0.6931471805599453, mask=ok
    )


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _backward_queries(
    d_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr, cos_ptr, sin_ptr, blocks_ptr, scale, scale_2,
    window, SQ, SK, SV, SD,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, E: tl.constexpr, WINDOWED: tl.constexpr,
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
    half = tl.arange(0, E)
    at = q_ptr + (first + token)[:, None] * SQ + (group * REP + head)[:, None] * (2 * E) + half[None, :]
    q1 = tl.load(at, mask=ok[:, None], other=0.0)
    q2 = tl.load(at + E, mask=ok[:, None], other=0.0)
    packed = (first + token)[:, None] * (H * 2 * E) + (group * REP + head)[:, None] * (2 * E) + half[None, :]
    d1 = tl.load(d_ptr + packed, mask=ok[:, None], other=0.0)
    d2 = tl.load(d_ptr + packed + E, mask=ok[:, None], other=0.0)
    o1 = tl.load(out_ptr + packed, mask=ok[:, None], other=0.0)
    o2 = tl.load(out_ptr + packed + E, mask=ok[:, None], other=0.0)
    delta = tl.sum(d1.to(tl.float32) * o1.to(tl.float32), 1) + tl.sum(d2.to(tl.float32) * o2.to(tl.float32), 1)
    statistic = (first + token) * H + group * REP + head
    tl.store(delta_ptr + statistic, delta, mask=ok)
    lse = tl.load(lse_ptr + statistic, mask=ok, other=0.0) * 1.4426950408889634
    k_ptr += key * SK + group * (2 * E)
    v_ptr += key * SV + group * (2 * E)
    dq1 = tl.zeros((BT * RP, E), tl.float32)
    dq2 = tl.zeros((BT * RP, E), tl.float32)
    end = place + count
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, place - window + 1) // BN * BN
    for n in range(begin, end, BN):
        column = n + tl.arange(0, BN)
        k1, k2 = _halves(k_ptr, column, SK, E, column < end)
        v1, v2 = _halves(v_ptr, column, SV, E, column < end)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
        distance = (place + token)[:, None] - column[None, :]
        seen = distance >= 0
        if WINDOWED:
            seen = seen & (distance < window)
        weights = tl.where(seen, tl.exp2(scores * scale_2 - lse[:, None]), 0.0)
        through = tl.dot(d1, tl.trans(v1), input_precision="ieee")
        through = tl.dot(d2, tl.trans(v2), through, input_precision="ieee")
        ds = (weights * (through - delta[:, None])).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision="ieee")
        dq2 = tl.dot(ds, k2, dq2, input_precision="ieee")
    dq1 *= scale
    dq2 *= scale
    if ROTATED:
        angle = (first + token)[:, None] * E + half[None, :]
        cos = tl.load(cos_ptr + angle, mask=ok[:, None], other=0.0)
        sin = tl.load(sin_ptr + angle, mask=ok[:, None], other=0.0)
        turned = dq1 * cos + dq2 * sin
        dq2 = dq2 * cos - dq1 * sin
        dq1 = turned
    out = dq_ptr + (first + token)[:, None] * SD + (group * REP + head)[:, None] * (2 * E) + half[None, :]
    tl.store(out, dq1, mask=ok[:, None])
    tl.store(out + E, dq2, mask=ok[:, None])


@kernel(do_not_specialize=_NOT_SPECIALIZED)
def _backward_keys(
    d_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dkv_ptr, cos_ptr, sin_ptr, blocks_ptr, scale, scale_2, window,
    SQ, SK, SV, SD, size,
    H: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr, E: tl.constexpr, WINDOWED: tl.constexpr,
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
    half = tl.arange(0, E)
    k1, k2 = _halves(k_ptr + key * SK + group * (2 * E), column, SK, E, ok)
    v1, v2 = _halves(v_ptr + key * SV + group * (2 * E), column, SV, E, ok)
    dk1 = tl.zeros((BN, E), tl.float32)
    dk2 = tl.zeros((BN, E), tl.float32)
    dv1 = tl.zeros((BN, E), tl.float32)
    dv2 = tl.zeros((BN, E), tl.float32)
    row = tl.arange(0, BT * RP)
    token, head = row // RP, row % RP
    q_ptr += first * SQ + group * REP * (2 * E)
    d_ptr += first * (H * 2 * E) + group * REP * (2 * E)
    begin = tl.maximum(0, place - missing) // BT * BT
    end = queries
    if WINDOWED:
        end = tl.minimum(queries, place + count - 1 + window - missing)
    for t in range(begin, end, BT):
        live = (t + token < queries) & (head < REP)
        at = q_ptr + ((t + token) * SQ + head * (2 * E))[:, None] + half[None, :]
        q1 = tl.load(at, mask=live[:, None], other=0.0)
        q2 = tl.load(at + E, mask=live[:, None], other=0.0)
        at = d_ptr + ((t + token) * (H * 2 * E) + head * (2 * E))[:, None] + half[None, :]
        d1 = tl.load(at, mask=live[:, None], other=0.0)
        d2 = tl.load(at + E, mask=live[:, None], other=0.0)
        statistic = (first + t + token) * H + group * REP + head
        lse = tl.load(lse_ptr + statistic, mask=live, other=0.0) * 1.4426950408889634
        delta = tl.load(delta_ptr + statistic, mask=live, other=0.0)
        scores = tl.dot(k1, tl.trans(q1), input_precision="ieee")
        scores = tl.dot(k2, tl.trans(q2), scores, input_precision="ieee")
        distance = (missing + t + token)[None, :] - (place + column)[:, None]
        seen = (distance >= 0) & live[None, :]
        if WINDOWED:
            seen = seen & (distance < window)
        weights = tl.where(seen, tl.exp2(scores * scale_2 - lse[None, :]), 0.0)
        spread = weights.to(d1.dtype)
        dv1 = tl.dot(spread, d1, dv1, input_precision="ieee")
        dv2 = tl.dot(spread, d2, dv2, input_precision="ieee")
        through = tl.dot(v1, tl.trans(d1), input_precision="ieee")
        through = tl.dot(v2, tl.trans(d2), through, input_precision="ieee")
        ds = (weights * (through - delta[None, :])).to(q1.dtype)
        dk1 = tl.dot(ds, q1, dk1, input_precision="ieee")
        dk2 = tl.dot(ds, q2, dk2, input_precision="ieee")
    dk1 *= scale
    dk2 *= scale
    if ROTATED:
        angle = (key + column)[:, None] * E + half[None, :]
        cos = tl.load(cos_ptr + angle, mask=ok[:, None], other=0.0)
        sin = tl.load(sin_ptr + angle, mask=ok[:, None], other=0.0)
        turned = dk1 * cos + dk2 * sin
        dk2 = dk2 * cos - dk1 * sin
        dk1 = turned
    out = dkv_ptr + (key + column)[:, None] * SD + group * (2 * E) + half[None, :]
    tl.store(out, dk1, mask=ok[:, None])
    tl.store(out + E, dk2, mask=ok[:, None])
    tl.store(out + size, dv1, mask=ok[:, None])
    tl.store(out + size + E, dv2, mask=ok[:, None])
