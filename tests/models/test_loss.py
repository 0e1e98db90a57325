"""The chunked head against plain logits: values, hits, gradients, and that the logits never exist as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.kernels import backend
from tunesmith.kernels.backend import forced
from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.models import loss
from tunesmith.models.loss import (
    CHUNK_VALUES_KERNEL,
    IGNORE_INDEX,
    Head,
    HeadLoss,
    head_loss,
    logits_of,
    rows_of_chunk,
)

T, D, V = 37, 16, 50


class LargestTensor(TorchDispatchMode):
    """Counts the values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.values = max(self.values, tensor.numel())
        return result


def sample(*, labelled: float = 0.6, bias: bool = False, **head: float) -> tuple[Tensor, Head, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator)
    labels = torch.randint(0, V, (T,), generator=generator)
    labels[torch.rand(T, generator=generator) > labelled] = IGNORE_INDEX
    weight = torch.randn(V, D, generator=generator)
    bias_V = torch.randn(V, generator=generator) if bias else None
    return hidden, Head(weight_VD=weight, bias_V=bias_V, **head), labels


@pytest.mark.parametrize("chunk_rows", [1, 5, 1_000])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"scale": 0.25}, {"softcap": 3.0}, {"scale": 2.0, "softcap": 3.0, "bias": True}],
    ids=str,
)
def test_equals_plain_cross_entropy(options: dict[str, Any], chunk_rows: int) -> None:
    hidden, head, labels = sample(**options)
    hidden.requires_grad_()
    found = head_loss(hidden, head=head, labels_T=labels, chunk_values=chunk_rows * V)
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ head.weight_VD.double().T
    if head.bias_V is not None:
        logits = logits + head.bias_V.double()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    keep = labels != IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none")
    torch.testing.assert_close(found.nll_N.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss_sum.double(), expected.sum(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.is_right_N, logits[keep].argmax(-1) == labels[keep])
    assert torch.equal(found.positions_N, keep.nonzero().flatten())
    (found.loss_sum / 7).backward()
    (expected.sum() / 7).backward()
    assert hidden.grad is not None and exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_of(hidden.detach(), head).double(), logits.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # Triton's interpreter
@pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("options", "by_kernel"), [({}, True), ({"bias": True}, True), ({"scale": 0.25}, False),
                                                    ({"softcap": 3.0}, False)], ids=str)  # fmt: skip
def test_by_kernel_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], by_kernel: bool, dtype: torch.dtype
) -> None:
    """As on a GPU; a head whose logits are scaled or capped has no kernel."""
    hidden, head, labels = sample(**options)
    bias = None if head.bias_V is None else head.bias_V.to(dtype)
    head = replace(head, weight_VD=head.weight_VD.to(dtype), bias_V=bias)
    asked: list[int] = []
    monkeypatch.setattr(
        loss,
        "cross_entropy",
        lambda given, *rest, **more: asked.append(len(given)) or cross_entropy(given, *rest, **more),
    )

    def passed(what: Any) -> tuple[HeadLoss, Tensor, HeadLoss]:
        given = hidden.to(dtype).requires_grad_()
        with forced(what):
            found = head_loss(given, head=head, labels_T=labels, chunk_values=8 * V)
            (gradient,) = torch.autograd.grad(found.loss_sum / 7, given)
            with torch.no_grad():
                return found, gradient, head_loss(given, head=head, labels_T=labels, chunk_values=8 * V)

    plain, plain_gradient, _ = passed("reference")
    assert asked == []
    found, gradient, scored = passed("kernels")
    assert bool(asked) is by_kernel and (not asked or max(asked) == 8)
    rounding = 1e-6 if dtype == torch.float32 else 1e-3
    assert float((gradient - plain_gradient).norm() / plain_gradient.norm()) < rounding
    assert torch.equal(found.is_right_N, plain.is_right_N) and torch.equal(found.positions_N, plain.positions_N)
    torch.testing.assert_close(found.nll_N, plain.nll_N, rtol=1e-5, atol=1e-5)
    assert torch.equal(scored.nll_N, found.nll_N) and torch.equal(scored.is_right_N, found.is_right_N)


def test_a_chunk_is_of_whole_tiles_and_never_of_nothing() -> None:
    assert rows_of_chunk(CHUNK_VALUES_KERNEL, vocabulary=128_256) == 1024
    assert rows_of_chunk(CHUNK_VALUES_KERNEL, vocabulary=256_000) == 512
    found = [rows_of_chunk(values, vocabulary=50) for values in (1, 600, 12_800, 12_850, 30_000)]
    assert found == [1, 12, 256, 256, 512]


def test_all_logits_never_exist_together() -> None:
    hidden, head, labels = sample(labelled=1.0)
    hidden.requires_grad_()
    with LargestTensor() as largest:
        head_loss(hidden, head=head, labels_T=labels, chunk_values=4 * V).loss_sum.backward()
    assert largest.values <= max(4 * V, T * D, V * D)
    assert largest.values < T * V
    with LargestTensor() as largest:  # the measure itself sees whole logits when they are made at once
        head_loss(hidden, head=head, labels_T=labels, chunk_values=T * V)
    assert largest.values >= T * V


def test_unlabelled_positions_are_never_multiplied_by_the_head() -> None:
    hidden, head, labels = sample(labelled=0.1)
    hidden[labels == IGNORE_INDEX] = float("nan")
    hidden.requires_grad_()
    found = head_loss(hidden, head=head, labels_T=labels)
    found.loss_sum.backward()
    assert torch.isfinite(found.loss_sum) and hidden.grad is not None
    assert not hidden.grad[labels == IGNORE_INDEX].any()


def test_no_labels_is_a_loss_of_zero() -> None:
    hidden, head, labels = sample(labelled=-1.0)
    hidden.requires_grad_()
    found = head_loss(hidden, head=head, labels_T=labels)
    found.loss_sum.backward()
    assert float(found.loss_sum.detach()) == 0 and found.nll_N.numel() == 0
    assert hidden.grad is not None and not hidden.grad.any()


def test_of_equal_largest_logits_the_first_counts_as_the_answer() -> None:
    head = Head(weight_VD=torch.tensor([[1.0], [3.0], [3.0]]))
    found = head_loss(torch.ones(2, 1), head=head, labels_T=torch.tensor([1, 2]))
    assert found.is_right_N.tolist() == [True, False]


def test_large_logits_do_not_overflow() -> None:
    head = Head(weight_VD=torch.tensor([[1.0], [-1.0]]))
    found = head_loss(torch.full((1, 1), 3e4), head=head, labels_T=torch.tensor([1]))
    assert float(found.loss_sum.detach()) == pytest.approx(6e4)


def test_lengths_must_agree() -> None:
    hidden, head, labels = sample()
    with pytest.raises(ValueError, match="labels"):
        head_loss(hidden, head=head, labels_T=labels[1:])
