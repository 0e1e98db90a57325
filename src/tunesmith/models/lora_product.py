"""y = x W^T + b + f (m * x) A^T B^T for a frozen W: the arithmetic of one adapted linear module, with its gradients.

In: the module's input, weights, dropout keys and factor. Out: y; gradients for A, B and, where asked for, x. With u =
(m * x) A^T and g the gradient of y: dB = f g^T u; dA = (f g B)^T (m * x); dx = g W + m * (f g B A). A and B are cast to
x's dtype here, their gradients come back in float32.

Two forms of the same: `kept_product` keeps the masked input for the backward pass, which a CPU is quicker with;
`lora_product` is one operation that a compiler does not look into and makes the mask anew, so that modules with the
same input share the one tensor that they keep. On a GPU it writes no masked input at all, where the kernels of
`kernels/lora.py` take its sizes.

Keys of dropout are, on a CPU, `row_keys` (N, 1) and `column_keys` (1, C); on a GPU `step_places` (N,), int32, and the
`site_key` as a scalar on the CPU (to a compiler a plain number would be a constant, and each module's a reason to
compile anew). None for no dropout.

Dimensions: N tokens, I in_features, O out_features, r LoRA rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tunesmith.kernels.backend import MINIMUM_RANK, ROW_MULTIPLE, padded_rank, runs_triton
from tunesmith.kernels.dropout import keep_mask, masked
from tunesmith.kernels.lora import Gradient, Projection, project_alone, project_backward
from tunesmith.spec.paths import FAST_LARGEST_RANK


def lora_product(
    x_NI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_rI: Tensor,
    b_Or: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    *,
    dropout: float,
    factor: float,
) -> Tensor:
    """y (N, O)."""
    return _product(x_NI, weight_OI, bias_O, a_rI, b_Or, rows, columns, dropout, factor)[0]


def kept_product(
    x_NI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_rI: Tensor,
    b_Or: Tensor,
    row_keys_N1: Tensor | None,
    column_keys_1C: Tensor | None,
    *,
    dropout: float,
    factor: float,
) -> Tensor:
    """The same on a CPU, 2-3 % of its step quicker: the masked input is kept."""
    mask_NI = None
    if row_keys_N1 is not None and column_keys_1C is not None:
        mask_NI = keep_mask(
            row_keys_N1, column_keys_1C, num_features=x_NI.shape[1], probability=dropout, dtype=x_NI.dtype
        )
    y_NO = _KeptProduct.apply(x_NI, weight_OI, bias_O, a_rI, b_Or, mask_NI, factor)
    assert isinstance(y_NO, Tensor)
    return y_NO


def _backward_of_weights(g_NO: Tensor, b_Or: Tensor, inner_Nr: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """(f g B, dB): in the product's own precision first, then float32, as the masters are."""
    g_inner_Nr = (g_NO @ b_Or).mul_(factor)
    return g_inner_Nr, (g_NO.t() @ inner_Nr).float().mul_(factor)


class _KeptProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_rI: Tensor,
        b_Or: Tensor,
        mask_NI: Tensor | None,
        factor: float,
    ) -> Tensor:
        a, b = a_rI.to(x_NI.dtype), b_Or.to(x_NI.dtype)
        kept_NI = x_NI if mask_NI is None else x_NI * mask_NI
        inner_Nr = kept_NI @ a.t()
        y_NO = linear(x_NI, weight_OI, bias_O)
        y_NO.addmm_(inner_Nr, b.t(), alpha=factor)
        ctx.save_for_backward(kept_NI, weight_OI, a, b, mask_NI, inner_Nr)
        ctx.factor = factor
        return y_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_NO,) = gradients
        kept_NI, weight_OI, a, b, mask_NI, inner_Nr = ctx.saved_tensors
        g_inner_Nr, g_b = _backward_of_weights(g_NO, b, inner_Nr, ctx.factor)
        g_a = (g_inner_Nr.t() @ kept_NI).float()
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = g_inner_Nr @ a
            if mask_NI is not None:
                g_x.mul_(mask_NI)
            g_x.addmm_(g_NO, weight_OI)
        return g_x, None, None, g_a, g_b, None, None


def _projection(x: Tensor, a: Tensor, rows: Tensor | None, columns: Tensor | None, dropout: float) -> Projection | None:
    """What the fused kernels need, where they run and take these sizes; in float32 torch's own products are faster."""
    rank, features = a.shape
    if rows is None or columns is None or rows.dtype != torch.int32 or not runs_triton(x):
        return None
    is_of_tiles = x.shape[0] % ROW_MULTIPLE == 0 and features % MINIMUM_RANK == 0
    if x.dtype == torch.float32 or not is_of_tiles or rank > FAST_LARGEST_RANK:
        return None
    return Projection(
        a_IK=_padded(a.to(x.dtype), 0, padded_rank(rank)), count=1, rank=padded_rank(rank), places_T=rows,
        site=int(columns), probability=dropout,
    )  # fmt: skip


def foresee(features: int, *, rank: int, dropout: float, dtype: torch.dtype) -> None:
    """Launches what a module of so many inputs does, once; for tensors on the meta device (`kernels.backend`)."""
    x, a = torch.empty(ROW_MULTIPLE, features, dtype=dtype), torch.empty(rank, features)
    rows = torch.empty(ROW_MULTIPLE, dtype=torch.int32) if dropout > 0 else None
    columns = torch.zeros((), dtype=torch.int64, device="cpu")
    projection = _projection(x, a, rows, columns, dropout)
    if projection is None:
        if rows is not None:
            masked(x, rows, site=0, probability=dropout)
        return
    project_alone(x, projection)
    g_inner = torch.empty(ROW_MULTIPLE, projection.rank, dtype=dtype)
    for g_x in (x, None):  # the first layer needs none, where it is not compiled
        project_backward(g_x, g_inner, x, projection, [Gradient(into_rK=a)], is_own=True)


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Contiguous, with zeros behind it up to `size`."""
    missing = list(tensor.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim) if missing[dim] else tensor.contiguous()


def _dropped(x: Tensor, rows: Tensor | None, columns: Tensor | None, dropout: float, *, is_own: bool = False) -> Tensor:
    """m * x. is_own: x may be written over."""
    if rows is None or columns is None:
        return x
    if rows.dtype == torch.int32:
        return masked(x, rows, site=int(columns), probability=dropout, is_own=is_own)
    mask = keep_mask(rows, columns, num_features=x.shape[1], probability=dropout, dtype=x.dtype)
    return x.mul_(mask) if is_own else x * mask


@torch.library.custom_op("tunesmith::lora_product", mutates_args=())
def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dropout: float,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """(y, u); in u of the kernels f's division by the share that is kept is done."""
    y = linear(x, weight, bias)
    projection = _projection(x, a, rows, columns, dropout)
    if projection is None:
        inner = _dropped(x, rows, columns, dropout) @ a.to(x.dtype).t()
    else:
        inner = project_alone(x if x.stride(1) == 1 else x.contiguous(), projection)[:, : a.shape[0]].contiguous()
        factor /= projection.scale
    y.addmm_(inner, b.to(x.dtype).t(), alpha=factor)
    return y, inner


@_product.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dropout: float,
    factor: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("tunesmith::lora_product_backward", mutates_args=())
def _product_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dropout: float,
    factor: float,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dA, dB); dx is empty where nothing asks for it."""
    projection = _projection(x, a, rows, columns, dropout)
    if projection is not None:
        factor /= projection.scale
        g_inner, g_b = _backward_of_weights(g, b.to(x.dtype), inner, factor)
        g_a = torch.zeros_like(a, dtype=torch.float32)
        g_x = project_backward(
            g @ weight if needs_input else None, _padded(g_inner, 1, projection.rank), x.contiguous(), projection,
            [Gradient(into_rK=g_a)], is_own=True,
        )  # fmt: skip
        return x.new_empty(0) if g_x is None else g_x, g_a, g_b
    g_inner, g_b = _backward_of_weights(g, b.to(x.dtype), inner, factor)
    g_a = (g_inner.t() @ _dropped(x, rows, columns, dropout)).float()
    if not needs_input:
        return x.new_empty(0), g_a, g_b
    g_x = _dropped(g_inner @ a.to(x.dtype), rows, columns, dropout, is_own=True)
    return g_x.addmm_(g, weight), g_a, g_b


@_product_backward.register_fake
def _(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dropout: float,
    factor: float,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    g_x = x.new_empty(x.shape if needs_input else (0,))
    return g_x, torch.empty_like(a, dtype=torch.float32), torch.empty_like(b, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b, rows, columns, ctx.dropout, ctx.factor = inputs
    ctx.save_for_backward(x, weight, a, b, output[1], rows, columns)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, a, b, inner, rows, columns = ctx.saved_tensors
    needs_input = ctx.needs_input_grad[0]
    g_x, g_a, g_b = _product_backward(
        gradients[0], x, weight, a, b, inner, rows, columns, ctx.dropout, ctx.factor, needs_input
    )
    return g_x if needs_input else None, None, None, g_a, g_b, None, None, None, None


torch.library.register_autograd("tunesmith::lora_product", _backward, setup_context=_keep)
