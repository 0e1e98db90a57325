"""The Triton kernels against their references, and those against autograd: interpreted, or on a GPU if there is one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import backend
from tunesmith.kernels.backend import forced, padded_rank
from tunesmith.kernels.cross_entropy import cross_entropy, cross_entropy_reference
from tunesmith.kernels.dropout import masked, site_key, site_mask, step_key, step_places
from tunesmith.kernels.lora import (
    Gradient,
    Projection,
    add_parts,
    project,
    project_alone,
    project_backward,
    project_backward_reference,
    project_reference,
)
from tunesmith.kernels.rms_norm import rms_norm_backward, rms_norm_project
from tunesmith.kernels.rope import rotate, rotate_backward
from tunesmith.kernels.swiglu import swiglu_backward, swiglu_project
from tunesmith.kernels.varlen_attention import Documents, attend, attend_backward, tables

pytestmark = [
    pytest.mark.slow,  # the interpreter takes a second a case
    pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed"),
    # on a GPU: torch's word on a thread of its own that multiplies first
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]

TOKENS = 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter keeps bfloat16 as raw integers and multiplies those: half precision there is float16.
DTYPES = [torch.float32, torch.bfloat16 if DEVICE == "cuda" else torch.float16]
# float32: sums in another order. Half precision: a rounding of a value more or less (2^-8, 2^-11).
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, dtype)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "features"), [(128, 512), (37, 261), (1, 3)])
def test_masking_in_one_pass_draws_the_reference_s_mask(dtype: torch.dtype, tokens: int, features: int) -> None:
    places = step_places(torch.arange(70, 70 + tokens, dtype=torch.int32, device=DEVICE), step_key(seed=5, step=8))
    options: Any = {"site": site_key(3), "probability": 0.3}
    mask = site_mask(places, num_features=features, count=1, index=0, **options)
    x = draw(tokens, features, dtype=dtype)
    for what in ("reference", "kernels"):
        with forced(what):
            assert torch.equal(masked(x, places, **options), x * mask)
            across = draw(features, tokens, dtype=dtype).t()  # another layout than rows side by side
            assert torch.equal(masked(across, places, **options), across * mask)
            own = draw(tokens, features, dtype=dtype)
            assert masked(own, places, is_own=True, **options) is own
        assert torch.equal(own, x * mask)


def projection(
    features: int, *, count: int, rank: int = 16, probability: float = 0.05, dtype: torch.dtype = torch.float32
) -> Projection:
    return Projection(
        a_IK=draw(count * rank, features, seed=11, dtype=dtype, scale=features**-0.5),
        count=count,
        rank=rank,
        places_T=step_places(
            torch.arange(500, 500 + TOKENS, dtype=torch.int32, device=DEVICE), step_key(seed=3, step=9)
        ),
        site=site_key(5),
        probability=probability,
    )


def test_a_trial_says_whether_kernels_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getitem__(self, _: object) -> object:
            raise RuntimeError("Failed to find C compiler.")

    backend._triton_fault.cache_clear()
    assert backend.triton_fault(torch.device(DEVICE)) is None
    backend._triton_fault.cache_clear()
    monkeypatch.setattr(backend, "_count", Broken())
    assert backend.triton_fault(torch.device(DEVICE)) == "RuntimeError: Failed to find C compiler."
    on_gpu: Any = SimpleNamespace(is_cuda=True, device=torch.device(DEVICE))
    assert not backend.runs_triton(on_gpu), "then every operation takes its reference"
    monkeypatch.undo()
    backend._triton_fault.cache_clear()
    assert backend.runs_triton(on_gpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "count", "rank"), [(96, 3, 16), (224, 2, 32), (64, 1, 64)])
@pytest.mark.parametrize("probability", [0.0, 0.05])
def test_norm_with_inner_values_equals_the_reference(
    dtype: torch.dtype, features: int, count: int, rank: int, probability: float
) -> None:
    given = projection(features, count=count, rank=rank, probability=probability, dtype=dtype)
    h, delta = draw(TOKENS, features, seed=1, dtype=dtype), draw(TOKENS, features, seed=2, dtype=dtype)
    weight = (1 + 0.2 * draw(features, seed=3)).to(dtype)
    width = features + count * rank + 32
    with forced("reference"):
        wanted = rms_norm_project(h, delta, weight, given, eps=1e-5, width=width)
    with forced("kernels"):
        found = rms_norm_project(h, delta, weight, given, eps=1e-5, width=width)
    assert torch.equal(found.h_TK, wanted.h_TK)
    assert off(found.rstd_T, wanted.rstd_T) < 1e-6
    assert off(found.wide_TL, wanted.wide_TL) < TOLERANCE[dtype]
    assert off(found.inner_TI, wanted.inner_TI) < TOLERANCE[dtype]
    assert torch.equal(found.wide_TL[:, features + count * rank :], torch.zeros(TOKENS, 32, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_adapter_and_residual(dtype: torch.dtype) -> None:
    h, weight = draw(TOKENS, 96, seed=1, dtype=dtype), (1 + 0.2 * draw(96, seed=3)).to(dtype)
    with forced("reference"):
        wanted = rms_norm_project(h, None, weight, None, eps=1e-5, width=96)
    with forced("kernels"):
        found = rms_norm_project(h, None, weight, None, eps=1e-5, width=96)
    assert found.h_TK is h
    assert off(found.wide_TL, wanted.wide_TL) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_norm_backward_equals_the_reference_and_autograd(dtype: torch.dtype, has_residual: bool) -> None:
    h, dx = draw(TOKENS, 80, seed=1, dtype=dtype), draw(TOKENS, 80, seed=2, dtype=dtype)
    weight = (1 + 0.2 * draw(80, seed=3)).to(dtype)
    residual = draw(TOKENS, 80, seed=4, dtype=dtype) if has_residual else None
    rstd = torch.rsqrt(h.float().square().mean(-1) + 1e-5)
    leaf = h.double().requires_grad_()
    x = leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    (exact,) = torch.autograd.grad(x, leaf, dx.double())
    exact = exact + residual.double() if residual is not None else exact
    with forced("reference"):
        wanted = rms_norm_backward(dx, h, weight, rstd, residual)
    with forced("kernels"):
        found = rms_norm_backward(dx, h, weight, rstd, residual)
    assert off(wanted, exact) < TOLERANCE[dtype]
    assert off(found, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_inner_values_equal_the_reference(dtype: torch.dtype, count: int, probability: float) -> None:
    given = projection(160, count=count, probability=probability, dtype=dtype)
    source = draw(TOKENS, 200, seed=1, dtype=dtype)[:, 20:180]  # not contiguous
    with forced("reference"):
        wide, inner = project(source, given, width=160 + count * 16 + 16)
    with forced("kernels"):
        found_wide, found_inner = project(source, given, width=160 + count * 16 + 16)
    assert torch.equal(found_wide[:, :160], source)
    assert off(found_wide, wide) < TOLERANCE[dtype]
    assert off(found_inner, inner) < TOLERANCE[dtype]
    assert not found_wide[:, -16:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_adapter_backward_equals_the_reference(
    dtype: torch.dtype, count: int, has_norm: bool, probability: float
) -> None:
    features = 96
    given = projection(features, count=count, probability=probability, dtype=dtype)
    both = draw(TOKENS, features + count * 16 + 16, seed=1, dtype=dtype)
    dx, du = both[:, :features], both[:, features:]
    source = draw(TOKENS, features, seed=2, dtype=dtype)
    rstd = torch.rsqrt(source.float().square().mean(-1) + 1e-5) if has_norm else None
    weight = (1 + 0.2 * draw(features, seed=3)).to(dtype) if has_norm else None
    options = {"rstd_T": rstd, "weight_K": weight}
    wanted, gradient = project_backward_reference(dx, du[:, : count * 16], source, given, **options)
    start = draw(count * 16, features, seed=8)
    for needs_dx in (True, False):
        total = start.clone()
        into = [Gradient(into_rK=part) for part in total.split(16)]
        with forced("kernels"):
            found = project_backward(dx if needs_dx else None, du, source, given, into, **options)
        assert off(total - start, gradient) < TOLERANCE[dtype]
        assert found is None if not needs_dx else off(found, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "count", "rank"), [(96, 1, 16), (256, 2, 32)])
def test_inner_values_without_a_copy_and_gradients_in_place(
    dtype: torch.dtype, features: int, count: int, rank: int
) -> None:
    given = projection(features, count=count, rank=rank, probability=0.2, dtype=dtype)
    source = draw(TOKENS, features + 8, seed=1, dtype=dtype)[:, 8:]  # not contiguous
    with forced("kernels"):
        assert off(project_alone(source, given), project_reference(source, given)) < TOLERANCE[dtype]
    x, dx = source.contiguous(), draw(TOKENS, features, seed=2, dtype=dtype)
    du = draw(TOKENS, count * rank, seed=3, dtype=dtype)
    wanted, gradient = project_backward_reference(dx, du, x, given)
    total = torch.zeros(count * rank, features, device=DEVICE)
    with forced("kernels"):
        into = [Gradient(into_rK=part) for part in total.split(rank)]
        found = project_backward(dx, du, x, given, into, is_own=True)
    assert found is dx and off(found, wanted) < TOLERANCE[dtype]
    assert off(total, gradient) < TOLERANCE[dtype]


def test_adapter_reference_equals_autograd() -> None:
    given = projection(64, count=2, probability=0.2)
    x, a = draw(TOKENS, 64, seed=1).requires_grad_(), given.a_IK.clone().requires_grad_()
    keep = given.scale
    u = torch.cat([(x * given.mask(j) * keep) @ a[16 * j : 16 * j + 16].t() for j in range(2)], 1)
    du = draw(TOKENS, 32, seed=4)
    dx, da = torch.autograd.grad(u, [x, a], du)
    assert off(project_reference(x.detach(), given), u.detach()) < 1e-6
    found, gradient = project_backward_reference(torch.zeros(TOKENS, 64, device=DEVICE), du, x.detach(), given)
    assert off(found, dx) < 1e-6
    assert off(gradient, da) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [96, 176])
@pytest.mark.parametrize("probability", [0.0, 0.05])
def test_swiglu_equals_the_reference_and_autograd(dtype: torch.dtype, features: int, probability: float) -> None:
    given = projection(features, count=1, probability=probability, dtype=dtype)
    gate_up = draw(TOKENS, 2 * features, seed=1, dtype=dtype)
    both = draw(TOKENS, features + 48, seed=2, dtype=dtype)
    dx, du = both[:, :features], both[:, features:]
    inner = draw(TOKENS, 32, seed=3, dtype=dtype)
    gradients, start = torch.zeros(48, features, device=DEVICE), draw(48, features, seed=8)
    total, up_transposed = start.clone(), start[32:].t().contiguous()
    into = [Gradient(into_rK=total[:16]), Gradient(into_rK=total[16:32]), Gradient(into_rK=up_transposed.t())]
    with forced("reference"):
        wide, u = swiglu_project(gate_up, given, width=features + 32)
        wanted = swiglu_backward(
            dx, du, gate_up, inner, given, [Gradient(into_rK=part) for part in gradients.split(16)]
        )
    with forced("kernels"):
        found_wide, found_u = swiglu_project(gate_up, given, width=features + 32)
        found = swiglu_backward(dx, du, gate_up, inner, given, into)
    total[32:] = up_transposed.t()
    assert off(found_wide, wide) < TOLERANCE[dtype]
    assert off(found_u, u) < TOLERANCE[dtype]
    assert off(found, wanted) < TOLERANCE[dtype]
    assert off(total - start, gradients) < 2 * TOLERANCE[dtype]  # the difference of two sums
    leaf, a = gate_up.double().requires_grad_(), given.a_IK.double().requires_grad_()
    x = functional.silu(leaf[:, :features]) * leaf[:, features:]
    kept = x * given.mask(0) * given.scale if probability else x
    exact, da = torch.autograd.grad([x, kept @ a.t()], [leaf, a], [dx.double(), du[:, :16].double()])
    assert off(found, exact) < 2 * TOLERANCE[dtype]
    assert off(gradients[:16], da) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 16), (2, 64)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotation_equals_the_reference_and_autograd(
    dtype: torch.dtype, heads: int, head_dim: int, has_norm: bool
) -> None:
    width = heads * head_dim
    x, d = draw(TOKENS, width + 32, seed=1, dtype=dtype), draw(TOKENS, width, seed=2, dtype=dtype)
    angle = (torch.arange(TOKENS)[:, None] * 0.7 ** torch.arange(head_dim // 2)[None, :]).to(DEVICE)
    weight = (1 + 0.2 * draw(head_dim, seed=3)).to(dtype) if has_norm else None
    options = {"heads": heads, "weight_D": weight, "eps": 1e-6}
    outs, backs = [torch.zeros_like(x) for _ in range(2)], [torch.zeros_like(d) for _ in range(2)]
    with forced("reference"):
        rotate(x, outs[0], angle.cos(), angle.sin(), **options)
        rotate_backward(d, backs[0], angle.cos(), angle.sin(), x_TX=x if has_norm else None, **options)
    with forced("kernels"):
        rotate(x, outs[1], angle.cos(), angle.sin(), **options)
        rotate_backward(d, backs[1], angle.cos(), angle.sin(), x_TX=x if has_norm else None, **options)
    assert off(outs[1], outs[0]) < TOLERANCE[dtype]
    assert not outs[1][:, width:].any()
    leaf = x[:, :width].double().requires_grad_()
    y = leaf.view(TOKENS, heads, head_dim)
    if weight is not None:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    first, second = y.chunk(2, -1)
    cos, sin = angle.cos()[:, None].double(), angle.sin()[:, None].double()
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).reshape(TOKENS, width)
    (exact,) = torch.autograd.grad(rotated, leaf, d.double())
    assert off(outs[0][:, :width], rotated.detach()) < TOLERANCE[dtype]
    for back in backs:
        assert off(back, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [500, 9001])
def test_cross_entropy_equals_the_reference_and_autograd(dtype: torch.dtype, vocabulary: int) -> None:
    logits = draw(12, vocabulary, seed=1, dtype=dtype, scale=4.0)
    labels = torch.randint(0, vocabulary, (12,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    labels[3] = -100
    labels[5] = int(logits[5].float().argmax())
    logits[7, 100:200] = 60.0  # of equal largest logits the first is the arg-max
    labels[7], labels[8] = 100, int(logits[8].float().argmax())
    leaf = logits.double().requires_grad_()
    exact_loss = functional.cross_entropy(leaf, labels, reduction="none")
    (exact,) = torch.autograd.grad(exact_loss.sum() * 0.25, leaf)
    reference, kernel = logits.clone(), logits.clone()
    loss, is_right = cross_entropy_reference(reference, labels, torch.tensor(0.25, device=DEVICE))
    with forced("kernels"):
        kept = logits.clone()
        silent_loss, _ = cross_entropy(kept, labels, factor=None)
        found_loss, found_right = cross_entropy(kernel, labels, factor=torch.tensor(0.25, device=DEVICE))
    assert torch.equal(kept, logits)
    assert torch.equal(silent_loss, found_loss)
    assert off(found_loss, exact_loss.detach()) < 1e-6
    assert off(loss, exact_loss.detach()) < 1e-6
    assert found_right.tolist() == is_right.tolist()
    assert is_right[5] and is_right[7] and not is_right[3]
    for gradient in (reference, kernel):
        assert off(gradient, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (3, 1, 32), (2, 2, 32)])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("is_tail", [False, True])
def test_attention_equals_the_reference(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, window: int | None, is_tail: bool
) -> None:
    keys = np.array([0, 70, 73, 118, TOKENS])
    queries = np.array([0, 33, 34, 60, 64]) if is_tail else keys
    host = tables(queries, keys)
    documents = Documents(queries, keys, *(torch.from_numpy(table).int().to(DEVICE) for table in host))
    Q, width = int(queries[-1]), (heads + 2 * kv_heads) * head_dim
    qkv, d = draw(TOKENS, width, seed=1, dtype=dtype), draw(Q, heads, head_dim, seed=2, dtype=dtype)
    at, value = heads * head_dim, (heads + kv_heads) * head_dim
    q = qkv[:Q, :at].view(-1, heads, head_dim)
    k, v = (part.view(-1, kv_heads, head_dim) for part in (qkv[:, at:value], qkv[:, value:]))
    angle = (torch.arange(TOKENS)[:, None] * 0.7 ** torch.arange(head_dim // 2)[None, :]).to(DEVICE)
    angles = (angle.cos(), angle.sin())
    options = {"scale": head_dim**-0.5, "window": window}
    found = []
    for what in ("reference", "kernels"):
        d_q = torch.zeros(Q, at, dtype=dtype, device=DEVICE)
        d_kv = torch.zeros(TOKENS, 2 * kv_heads * head_dim, dtype=dtype, device=DEVICE)
        with forced(what):
            out, lse = attend(q, k, v, documents, **options)
            for given in (None, angles):
                cut = None if given is None else (given[0][:Q].contiguous(), given[1][:Q].contiguous())
                attend_backward(
                    d, q, k, v, out, lse, documents, **options, d_q=d_q, d_kv=d_kv, query_angles=cut, key_angles=given
                )
                found.append([out, lse, d_q.clone(), d_kv.clone()])
    for wanted, kernel in zip(found[:2], found[2:], strict=True):
        for expected, tensor in zip(wanted, kernel, strict=True):
            assert off(tensor, expected) < 2 * TOLERANCE[dtype]  # weights and their gradients are rounded, too


@pytest.mark.parametrize("queries", [[0, 3, 503, 540], [0, 1, 101, 120]], ids=["all queries", "tails"])
def test_tiles_hold_each_token_once_the_heaviest_first(queries: list[int]) -> None:
    keys = np.array([0, 3, 503, 540])
    over_queries, over_keys = tables(np.array(queries), keys)
    for blocks, total in ((over_queries, queries[-1]), (over_keys, 540)):
        held = np.concatenate([np.arange(first, first + count) for first, count in blocks[:, :2]])
        assert sorted(held) == list(range(total))
    seen_keys = over_queries[:, 1] + over_queries[:, 2]
    assert (np.diff(seen_keys) <= 0).all() and seen_keys[0] == 500
    # of a document's queries those from the tile's first key on
    seen_queries = over_keys[:, 4] - np.maximum(0, over_keys[:, 2] - over_keys[:, 5])
    assert (np.diff(seen_queries) <= 0).all() and seen_queries[0] == queries[2] - queries[1]


def test_sums_go_to_the_adapters_that_are_there_with_their_factor_and_rank() -> None:
    parts = draw(4, 48, 80, seed=1)
    found = []
    for what in ("reference", "kernels"):
        first, third = draw(10, 80, seed=2), draw(80, 10, seed=3)
        with forced(what):
            into = [Gradient(into_rK=first), None, Gradient(into_rK=third.t(), factor=0.5)]
            add_parts(parts, into, rank=16)
        found.append((first, third))
    assert off(found[0][0], draw(10, 80, seed=2) + parts.sum(0)[:10]) < 1e-6
    assert off(found[0][1], draw(80, 10, seed=3) + 0.5 * parts.sum(0)[32:42].t()) < 1e-6
    for kernel, reference in zip(found[1], found[0], strict=True):
        assert off(kernel, reference) < 1e-6


def test_ranks_are_padded_to_what_a_matrix_unit_takes() -> None:
    assert [padded_rank(rank) for rank in (1, 16, 17, 32, 48, 64)] == [16, 16, 32, 32, 64, 64]
    with pytest.raises(ValueError, match="multiple of 16"):
        backend.fitting(backend.Launch(16, 128, 4, 1), columns=100)


def test_masks_drop_at_the_rate_and_apart_from_each_other() -> None:
    """Correlations within six standard deviations of the estimate: of rows, columns, projections, steps and sites."""
    drops = []
    for step, site in ((1, 0), (2, 0), (1, 1)):
        given = Projection(
            a_IK=torch.empty(0, 512), count=3, rank=16,
            places_T=step_places(torch.arange(2048, dtype=torch.int32), step_key(seed=0, step=step)),
            site=site_key(site), probability=0.05,
        )  # fmt: skip
        drops += [(~given.mask(index)).double() for index in range(3)]
    rate = 1 - 1 / given.scale
    for drop in drops:
        assert abs(float(drop.mean()) - rate) < 6 * math.sqrt(rate / drop.numel())
        normed = (drop - drop.mean()) / drop.std()
        for table in (normed @ normed.t() / 512, normed.t() @ normed / 2048):
            table.fill_diagonal_(0)
            deviation = 1 / math.sqrt(drop.numel() / table.shape[0])
            assert abs(float(table.square().mean().sqrt()) / deviation - 1) < 0.02
            assert float(table.abs().max()) < 8 * deviation  # millions of pairs; drops are skewed
    for index, first in enumerate(drops):
        for second in drops[index + 1 :]:
            product = float(((first - rate) * (second - rate)).mean()) / rate
            assert abs(product) < 6 / math.sqrt(first.numel())
