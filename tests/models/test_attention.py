"""Packed attention against a plain softmax per document, with gradients."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_packing import boundaries
from tunesmith.errors import MachineCannot
from tunesmith.models import attention
from tunesmith.models.attention import attention_forward, packed
from tunesmith.models.packing import Packing

MODULE: Any = SimpleNamespace(is_causal=True)


def reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """(H, L, D) of one document in float64."""
    repeats, length = q.shape[0] // k.shape[0], q.shape[1]
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = q @ k.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores[:, (distance < 0) | (distance >= (window or length))] = float("-inf")
    return torch.softmax(scores, -1) @ v


def random_inputs(tokens: int, *, heads: int, key_heads: int, head_dim: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, tokens, count, head_dim, generator=generator).transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("longest_plain", [192, 10, 0], ids=["plain", "mixed", "kernel"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (None, 2.0), (5, 2.0), (100, None)])
@pytest.mark.parametrize("lengths", [[7], [6, 6, 6], [1, 17, 5, 12, 1, 40]], ids=["one", "equal", "mixed"])
def test_packed_equals_each_document_alone(
    lengths: list[int], heads: tuple[int, int], window: int | None, softcap: float | None, longest_plain: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention, "LONGEST_PLAIN", longest_plain)
    edges = boundaries(lengths)
    inputs = [tensor.requires_grad_() for tensor in random_inputs(edges[-1], heads=heads[0], key_heads=heads[1])]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with packed(Packing(edges, device=torch.device("cpu"))):
        found, _ = attention_forward(MODULE, *inputs, None, scaling=0.4, sliding_window=window, softcap=softcap)
    expected = torch.cat(
        [
            reference(*(t[0, :, start:end] for t in exact), scale=0.4, window=window, softcap=softcap)
            for start, end in pairwise(edges)
        ],
        dim=1,
    ).transpose(0, 1)[None]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("longest_plain", [192, 0])
def test_only_what_asks_for_a_gradient_gets_one(longest_plain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONGEST_PLAIN", longest_plain)
    q, k, v = random_inputs(11, heads=4, key_heads=2)
    v.requires_grad_()
    with packed(Packing([0, 4, 11], device=torch.device("cpu"))):
        out, _ = attention_forward(MODULE, q, k, v, None)
    out.sum().backward()
    assert v.grad is not None and q.grad is None and k.grad is None


def test_a_document_does_not_feel_its_neighbours() -> None:
    inputs = random_inputs(12, heads=2, key_heads=2)
    packing = Packing([0, 5, 12], device=torch.device("cpu"))
    with packed(packing):
        before, _ = attention_forward(MODULE, *inputs, None)
        for tensor in inputs:
            tensor[:, :, :5] = 1e4
        after, _ = attention_forward(MODULE, *inputs, None)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])


def test_what_we_do_not_compute_is_refused_by_name() -> None:
    inputs = random_inputs(4, heads=2, key_heads=2)
    for options in (
        {"s_aux": torch.zeros(2)},
        {"position_bias": torch.zeros(1)},
        {"dropout": 0.1},
        {"is_causal": False},
    ):
        with pytest.raises(MachineCannot) as refusal:
            attention_forward(MODULE, *inputs, None, **options)
        assert refusal.value.code == "NOT_BUILT"


def test_tokens_that_do_not_fit_the_packing_are_a_fault() -> None:
    with packed(Packing([0, 3], device=torch.device("cpu"))), pytest.raises(ValueError, match="does not fit"):
        attention_forward(MODULE, *random_inputs(4, heads=2, key_heads=2), None)
