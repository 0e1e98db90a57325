"""Attention for transformers' own modules, over packed documents or over an ordinary padded batch.

`register()` puts one attention function and its mask function under `NAME` into transformers' interfaces. Inside
`packed(packing)` the (1, H, T, D) tensors of a layer are documents laid end to end: attention never crosses a
boundary, no mask is built, and padding exists only within a bucket of documents of similar length. Outside of it
(generation) it is causal attention with transformers' usual mask. Scaling, grouped heads, sliding windows and
softcapping are honoured; anything else that a model asks for (sinks, position biases) is refused by name.

Dimensions: B batch, H query heads, K key-value heads, R = H / K, T tokens, D head_dim; n documents, L longest of a
bucket.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.errors import MachineCannot
from tunesmith.kernels.varlen import NO_WINDOW, document_attention, has_kernel
from tunesmith.models.packing import Bucket, Packing, visible

NAME = "tunesmith_packed"
# Up to this length plain products beat torch's flash kernel on a CPU (float32, forward and backward, one core: 16 times
# 60 tokens 3.3 against 4.5 ms, four heads of 64 3.6 against 7.3 ms; 500 tokens the other way round, 52 against 19 ms).
LONGEST_PLAIN = 192


class _Current:
    """What the layers that run now see. An object with plain attributes, because the compiler reads no ContextVar."""

    def __init__(self) -> None:
        self.packing: Packing | None = None
        self.bucketed: Any = _bucketed_attention  # called with its arguments; wrapped when layers are compiled


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Layers that run inside see one sequence of the packing's documents. The backward pass needs no context.

    One thread of a process at a time; a second one waits.
    """
    with _ONE_AT_A_TIME:
        before, _CURRENT.packing = _CURRENT.packing, packing
        try:
            yield
        finally:
            _CURRENT.packing = before


def current_packing() -> Packing | None:
    return _CURRENT.packing


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers. Harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface  # heavy: only a worker that loads needs it

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    if _CURRENT.packing is not None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*arguments, **options)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, H, T, D) in, (B, T, H, D) contiguous out.

    Raises MachineCannot for an option that would change the result and that we do not compute.
    """
    for name in ("s_aux", "position_bias", "head_mask", "cache"):
        if options.get(name) is not None:
            raise MachineCannot("NOT_BUILT", f"{type(module).__name__} asks for attention with {name}.")
    if dropout or is_causal is False or not getattr(module, "is_causal", True):
        raise MachineCannot("NOT_BUILT", f"{type(module).__name__} asks for attention dropout or non-causal attention.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    packing = _CURRENT.packing
    if packing is None:
        return _padded_attention(query, key, value, attention_mask, scale=scale, softcap=softcap), None
    if softcap is not None or not has_kernel(query):
        return _CURRENT.bucketed(query, key, value, scale, sliding_window, softcap), None
    if not torch.compiler.is_compiling():  # to the compiler the packing's size is a constant, the tensors' is not
        _require_fit(query, key, packing)
    rows_THD = document_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.cumulative,
        longest=packing.longest_tensor,
        scale=scale,
        window=NO_WINDOW if sliding_window is None else sliding_window,
    )
    return rows_THD.unsqueeze(0), None


def _require_fit(query: Tensor, key: Tensor, packing: Packing) -> None:
    if query.shape[0] != 1 or query.shape[2] != packing.num_tokens or key.shape[2] != packing.num_tokens:
        raise ValueError(f"{tuple(query.shape)} does not fit a packing of {packing.num_tokens} tokens")


def hide_buckets_from_compiler() -> None:
    """To be called before anything is compiled: attention by buckets is Python over index arithmetic.

    No decorator: it would import the compiler, a second, into every worker.
    """
    _CURRENT.bucketed = torch.compiler.disable(_bucketed_attention, recursive=True)


def _bucketed_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None, softcap: float | None
) -> Tensor:
    """(B, T, H, D), where torch's kernel for packed sequences does not apply."""
    packing = _CURRENT.packing
    assert packing is not None
    _require_fit(query, key, packing)
    window = sliding_window if sliding_window is not None and sliding_window < packing.longest else None
    rows_THD = _PackedAttention.apply(
        query.transpose(1, 2)[0], key.transpose(1, 2)[0], value.transpose(1, 2)[0], packing, scale, window, softcap
    )
    assert isinstance(rows_THD, Tensor)
    return rows_THD.unsqueeze(0)


def _padded_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """Causal attention of a left-padded batch, with transformers' boolean mask or none; (B, T, H, D) out."""
    num_queries = query.shape[2]
    if softcap is not None:
        if mask is None:
            place = torch.arange(key.shape[2], device=key.device)
            mask = place[None, :] <= place[-num_queries:, None]
        return _softcapped(query, key, value, mask, scale=scale, softcap=softcap).transpose(1, 2).contiguous()
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and num_queries > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()


def _softcapped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float, softcap: float) -> Tensor:
    """Gemma 2's scores: softcap * tanh(q k^T scale / softcap), softmax in float32. Holds the whole score matrix."""
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3)
    scores = torch.tanh(scores * (scale / softcap)) * softcap
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1, dtype=torch.float32).to(
        query.dtype
    )
    return weights @ value.repeat_interleave(repeats, 1)


class _PackedAttention(torch.autograd.Function):
    """Attention of each document with itself: gather into buckets, attend, and back to packed order.

    One node for all buckets: autograd's own index_select would add into zeros on the way back, this one gathers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        packing: Packing,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        needed = tuple(ctx.needs_input_grad[:3])
        heads, key_heads = q_THD.shape[1], k_TKD.shape[1]
        rows = [tensor.reshape(-1, tensor.shape[2]) for tensor in (q_THD, k_TKD, v_TKD)]
        outputs: list[Tensor] = []
        parts: list[_PlainPart | _GraphPart] = []
        for bucket in packing.buckets:
            q, k, v = (
                tensor.index_select(0, bucket.gather(count)).view(bucket.num_documents, count, bucket.longest, -1)
                for tensor, count in zip(rows, (heads, key_heads, key_heads), strict=True)
            )
            is_plain = softcap is None and bucket.longest <= LONGEST_PLAIN and q.dtype == torch.float32 and q.is_cpu
            part = (
                _PlainPart(q, k, v, packing, scale=scale, window=window)
                if is_plain
                else _GraphPart(q, k, v, needed, scale=scale, window=window, softcap=softcap)
            )
            outputs.append(part.output.reshape(-1, v_TKD.shape[2]))
            part.keep_for_backward(any(needed))
            parts.append(part)
        ctx.parts, ctx.packing, ctx.needed, ctx.heads, ctx.key_heads = parts, packing, needed, heads, key_heads
        return _to_packed(outputs, packing, heads).view(q_THD.shape[0], heads, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_rows = gradients[0].reshape(-1, gradients[0].shape[2])
        packing, heads, key_heads = ctx.packing, ctx.heads, ctx.key_heads
        collected: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for part, bucket in zip(ctx.parts, packing.buckets, strict=True):
            g_padded = g_rows.index_select(0, bucket.gather(heads))
            g_padded.index_fill_(0, bucket.padding(heads), 0.0)
            for into, gradient in zip(collected, part.backward(g_padded, bucket), strict=True):
                if gradient is not None:
                    into.append(gradient.reshape(-1, gradient.shape[-1]))
        ctx.parts = None
        results = tuple(
            _to_packed(pieces, packing, count).view(packing.num_tokens, count, -1) if needed else None
            for pieces, count, needed in zip(collected, (heads, key_heads, key_heads), ctx.needed, strict=True)
        )
        return (*results, None, None, None, None)


def _to_packed(padded: list[Tensor], packing: Packing, heads: int) -> Tensor:
    """Rows of all buckets' padded blocks back in packed order, (T * heads, D)."""
    return (padded[0] if len(padded) == 1 else torch.cat(padded)).index_select(0, packing.scatter(heads))


class _PlainPart:
    """Short documents on a CPU: products and softmax over the whole (R L, L) score block, backward by hand.

    Maths: with P = softmax(S), dS = P * (dP - rowsum(dP * P)), dP = dO V^T (FlashAttention, Dao et al. 2022, B.4).
    The queries of one key-value head stand one below the other, so grouped heads need no repeated keys.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, window: int | None) -> None:
        blocks, repeats, longest = k.shape[0] * k.shape[1], q.shape[1] // k.shape[1], k.shape[2]
        self.scale = scale
        self.q = q.view(blocks, repeats * longest, -1)
        self.k = k.view(blocks, longest, -1)
        self.v = v.view(blocks, longest, -1)
        bias = packing.bias(longest, repeats=repeats, window=window)
        scores = torch.baddbmm(bias, self.q, self.k.transpose(1, 2), alpha=scale)
        self.weights = torch.softmax(scores, -1)
        self.output = torch.bmm(self.weights, self.v)

    def keep_for_backward(self, is_needed: bool) -> None:
        del self.output
        if not is_needed:
            del self.q, self.k, self.v, self.weights

    def backward(self, g: Tensor, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        g = g.view(self.q.shape[0], self.q.shape[1], -1)
        g_v = torch.bmm(self.weights.transpose(1, 2), g)
        g_weights = torch.bmm(g, self.v.transpose(1, 2))
        g_scores = torch._softmax_backward_data(g_weights, self.weights, -1, torch.float32)
        g_q = torch.bmm(g_scores, self.k).mul_(self.scale)
        g_k = torch.bmm(g_scores.transpose(1, 2), self.q).mul_(self.scale)
        return g_q, g_k, g_v


class _GraphPart:
    """Long or softcapped documents: torch's own kernel and its own gradient, as a small graph of their own."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        needed: tuple[bool, ...],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        for tensor, is_needed in zip((q, k, v), needed, strict=True):
            tensor.requires_grad_(is_needed)
        self.inputs = (q, k, v)
        longest = q.shape[2]
        with torch.set_grad_enabled(any(needed)):
            if softcap is not None:
                seen = visible(longest, window=window, device=q.device)
                self.output = _softcapped(q, k, v, seen, scale=scale, softcap=softcap)
            else:
                has_window = window is not None and window < longest
                self.output = scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=visible(longest, window=window, device=q.device) if has_window else None,
                    is_causal=not has_window,
                    scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )

    def keep_for_backward(self, is_needed: bool) -> None:
        if not is_needed:
            del self.inputs, self.output

    def backward(self, g: Tensor, bucket: Bucket) -> tuple[Tensor | None, ...]:
        wanted = [tensor for tensor in self.inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(self.output, wanted, g.view(self.output.shape)))
        return tuple(next(found) if tensor.requires_grad else None for tensor in self.inputs)


_CURRENT = _Current()
