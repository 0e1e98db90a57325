"""Attention of packed documents as one operation: the reference against dense attention, its gradient, the compiler."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.kernels.varlen import NO_WINDOW, document_attention, has_kernel


def tensors(tokens: int, *, heads: int = 4, key_heads: int = 2, size: int = 8) -> list[Tensor]:
    torch.manual_seed(tokens)
    counts = (heads, key_heads, key_heads)
    return [torch.randn(tokens, count, size, dtype=torch.float64, requires_grad=True) for count in counts]


def dense(q: Tensor, k: Tensor, v: Tensor, edges: list[int], *, scale: float, window: int) -> Tensor:
    """One mask over the whole packed sequence."""
    place = torch.arange(len(q))
    document = torch.bucketize(place, torch.tensor(edges[1:]), right=True)
    distance = place[:, None] - place[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    if window != NO_WINDOW:
        seen &= distance < window
    rows = [tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v)]
    return scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("window", [NO_WINDOW, 1, 3, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("edges", [[0, 1], [0, 7], [0, 1, 6, 17], [0, 5, 9, 9]], ids=str)
def test_values_and_gradients_equal_masked_dense_attention(edges: list[int], key_heads: int, window: int) -> None:
    q, k, v = tensors(edges[-1], key_heads=key_heads)
    boundaries = torch.tensor(edges, dtype=torch.int32)
    found = document_attention(q, k, v, boundaries, longest=torch.tensor(17), scale=0.3, window=window)
    wanted = dense(q, k, v, edges, scale=0.3, window=window)
    # the softmax is taken in float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles, for three seconds
def test_the_compiler_is_told_the_truth_about_shapes_strides_and_gradients() -> None:
    q, k, v = (tensor.detach().float().requires_grad_() for tensor in tensors(9))
    boundaries = torch.tensor([0, 4, 9], dtype=torch.int32)
    arguments = (q, k, v, boundaries, torch.tensor(5), 0.3, NO_WINDOW)
    torch.library.opcheck(torch.ops.tunesmith.document_attention.default, arguments)


def test_a_cpu_has_no_kernel() -> None:
    assert not has_kernel(torch.zeros(1, 1, 64, dtype=torch.bfloat16))
