# pyright: reportInvalidTypeForm=false
"""Dropout whose mask is a pure function of (seed, step, module, position in the step, feature).

Two formulas: the one of this page's first part serves modules one by one, on any device; `site_mask` below serves the
fused kernels, where a group of modules that read one input (a site) draws all its masks from one hash.

In come a few integers; out goes a mask of 0 and 1 in the dtype of the activations. No generator, no state and no
stored mask: a resumed run, another micro-batch size and another device draw the very same mask. This file is both the
formula and the reference: integer operations of torch, which wrap modulo 2^64 alike on CPU and GPU.

Formula. Each row (a token) and each block of four features of a module has a 64-bit odd key, made by splitmix64
(Steele, Lea and Flood 2014) from the integers above. One block is z = row * column; z ^= z >> 32; z *= MULTIPLIER
(modulo 2^64, the shift arithmetic), and its four 16-bit lanes decide for four features: kept where the lane is not
below the threshold. Four decisions for one 64-bit hash cost about a twentieth of torch's own Bernoulli draw on a CPU
(measured: 126 against 1,930 microseconds for 800 x 256 on two cores).

Dimensions: N rows (tokens), I input features, C = ceil(I / 4) blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.kernels.backend import Launch, kernel, runs_triton, tl, triton

LANES = 4
_LANE_VALUES = 1 << 16
_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    return value - (1 << 64) if value >= 1 << 63 else value


MULTIPLIER = _signed(0xD6E8FEB86659FD93)


def mix(value: int) -> int:
    """splitmix64's finaliser on one Python integer; the result is an unsigned 64-bit value."""
    value = (value + _GOLDEN) & _MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
    return value ^ (value >> 31)


def _mix_sequence(start: int, first: int, count: int, device: torch.device) -> Tensor:
    """mix(start + _GOLDEN * i) for i in [first, first + count) as int64, each made odd."""
    value = torch.arange(first, first + count, dtype=torch.int64, device=device)
    value = value * _signed(_GOLDEN) + _signed((start + _GOLDEN) & _MASK_64)
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    return (value ^ ((value >> 31) & ((1 << 33) - 1))) | 1


def row_keys(*, seed: int, step: int, offset: int, count: int, device: torch.device) -> Tensor:
    """Keys (N, 1) int64 of the tokens at [offset, offset + count) of a step."""
    return _mix_sequence(mix(mix(seed) ^ step), offset, count, device).unsqueeze(1)


def column_keys(*, module_index: int, num_features: int, device: torch.device) -> Tensor:
    """Keys (1, C) int64 of the feature blocks of one module."""
    blocks = -(-num_features // LANES)
    # The constant keeps modules' keys apart from the rows' ones.
    return _mix_sequence(mix(mix(0x7475_6E65) + module_index), 0, blocks, device).unsqueeze(0)


def threshold(probability: float) -> int:
    """How many of 65,536 lane values mean "drop": the nearest whole number, at least 1 where anything shall be dropped.

    Raises ValueError unless 0 <= probability < 1.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout {probability} is not in [0, 1)")
    if probability == 0:
        return 0
    return min(max(round(probability * _LANE_VALUES), 1), _LANE_VALUES - 1)


def keep_rate(probability: float) -> float:
    """The exact share of features kept (0.05 drops 3,277 of 65,536 = 0.0500031).

    Dividing by it, not by 1 - probability, keeps the expectation of the masked activations exact.
    """
    return 1 - threshold(probability) / _LANE_VALUES


def keep_mask(
    row_keys_N1: Tensor, column_keys_1C: Tensor, *, num_features: int, probability: float, dtype: torch.dtype
):
    """The mask (N, I) of 0 and 1, newly made and contiguous, in `dtype`.

    Floating and not boolean: multiplying by it is six times as fast as masked_fill on a CPU (24 against 150-220
    microseconds for 800 x 256).
    """
    blocks_NC = row_keys_N1 * column_keys_1C
    blocks_NC.bitwise_xor_(blocks_NC >> 32)
    blocks_NC.mul_(MULTIPLIER)
    lanes_NI = blocks_NC.view(torch.int16)[:, :num_features]
    mask_NI = torch.empty(lanes_NI.shape, dtype=dtype, device=blocks_NC.device)
    return torch.ge(lanes_NI, threshold(probability) - _LANE_VALUES // 2, out=mask_NI)


MASK = Launch(rows=16, columns=256, warps=4, stages=1)


def masked(
    x_NI: Tensor, row_keys_N1: Tensor, column_keys_1C: Tensor, *, probability: float, is_own: bool = False
) -> Tensor:
    """x_NI * keep_mask(...), in one pass on a GPU, where the mask is never stored. is_own: x_NI may be written over."""
    N, num_features = x_NI.shape
    if not runs_triton(x_NI):
        mask_NI = keep_mask(
            row_keys_N1, column_keys_1C, num_features=num_features, probability=probability, dtype=x_NI.dtype
        )
        return x_NI.mul_(mask_NI) if is_own else x_NI * mask_NI
    kept_NI = x_NI if is_own else torch.empty((N, num_features), dtype=x_NI.dtype, device=x_NI.device)
    _masked[(triton.cdiv(N, MASK.rows), triton.cdiv(num_features, MASK.columns))](
        x_NI, kept_NI, row_keys_N1, column_keys_1C, N, num_features, *x_NI.stride(), *kept_NI.stride(),
        LIMIT=threshold(probability), BN=MASK.rows, BI=MASK.columns, **MASK.options(),
    )  # fmt: skip
    return kept_NI


@kernel
def _masked(
    x_ptr, out_ptr, rows_ptr, columns_ptr, N, K, LDXN, LDXI, LDON, LDOI,
    LIMIT: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    columns = tl.program_id(1) * BI + tl.arange(0, BI)
    is_inside = (rows < N)[:, None] & (columns < K)[None, :]
    row_keys = tl.load(rows_ptr + rows, mask=rows < N, other=0)
    column_keys = tl.load(columns_ptr + columns // 4, mask=columns < K, other=0)
    z = row_keys[:, None] * column_keys[None, :]
    z = (z ^ (z >> 32)) * -2960836687051489901  # MULTIPLIER
    lane = ((z >> ((columns % 4) * 16).to(tl.int64)[None, :]) + 32768) & 65535  # as an unsigned value: + 2^15 mod 2^16
    x = tl.load(x_ptr + rows[:, None] * LDXN + columns[None, :] * LDXI, mask=is_inside)
    tl.store(out_ptr + rows[:, None] * LDON + columns[None, :] * LDOI, tl.where(lane >= LIMIT, x, 0.0), mask=is_inside)


# ---- the fused kernels' formula
#
# Rows (a token's place in the step plus the step's key) and columns (a feature plus its site's key) have odd 32-bit
# keys, made of these sums, modulo 2^32, by lowbias32 (Wellons 2018). The hash of an element is h = row * column;
# h ^= h >> 16; h *= SITE_MULTIPLIER (modulo 2^32); projection j of the site keeps the element where h << (j * bits) is
# not below the threshold. A site of three has 10 bits a projection, others 16. Six integer operations an element, where
# a hash with a full finaliser takes ten; 32-bit ones, since a GPU has no 64-bit multiplier. Keys are made in the
# kernels, from integers: nothing is stored.

SITE_MULTIPLIER = 0x7FEB352D
_KEY_GOLDEN = 0x9E3779B1
_MASK_32 = (1 << 32) - 1


def site_bits(count: int) -> int:
    """Bits of the hash that decide for one of `count` projections (1 to 3)."""
    return 10 if count == 3 else 16


def site_threshold(probability: float, count: int) -> int:
    """Hashes below it (as unsigned 32-bit values, shifted to the projection's field) drop the element; 0: none does."""
    if not 0 <= probability < 1:
        raise ValueError(f"dropout {probability} is not in [0, 1)")
    if probability == 0:
        return 0
    bits = site_bits(count)
    return min(max(round(probability * (1 << bits)), 1), (1 << bits) - 1) << (32 - bits)


def site_keep_rate(probability: float, count: int) -> float:
    """The exact share of elements kept."""
    return 1 - site_threshold(probability, count) / (1 << 32)


def signed_32(value: int) -> int:
    """The int32 with the low 32 bits of a value: kernels take keys as int32."""
    value &= _MASK_32
    return value - (1 << 32) if value >= 1 << 31 else value


def step_key(*, seed: int, step: int) -> int:
    """What all rows of a step are moved by; a signed 32-bit value."""
    return signed_32(mix(mix(seed) ^ step))


def site_key(index: int) -> int:
    """What all columns of site number `index` are moved by; a signed 32-bit value."""
    return signed_32(mix(mix(0x73697465) + index))


def step_places(places_T: Tensor, step: Tensor | int) -> Tensor:
    """int32 places in a step, moved by its `step_key`: kernels see no number that changes from step to step."""
    return places_T + step


def _keys_32(values: Tensor) -> Tensor:
    """Odd 32-bit keys of integers, as int64."""
    h = (values.long() * _KEY_GOLDEN) & _MASK_32
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK_32
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK_32
    return (h ^ (h >> 16)) | 1


def site_mask(places_T: Tensor, *, site: int, num_features: int, count: int, index: int, probability: float) -> Tensor:
    """(T, K) bool, True where projection `index` of a site of `count` keeps the element.

    places_T: `step_places`. site: `site_key`.
    """
    rows_T = _keys_32(places_T)
    columns_K = _keys_32(torch.arange(num_features, device=places_T.device) + site)
    h = (rows_T[:, None] * columns_K[None, :]) & _MASK_32
    h = ((h ^ (h >> 16)) * SITE_MULTIPLIER) & _MASK_32
    return ((h << (index * site_bits(count))) & _MASK_32) >= site_threshold(probability, count)
