"""The fast path: one decoder for the Llama skeleton, with forward and backward passes written by hand.

It attaches to a loaded model that carries adapters (`lora.inject`) and shares its tensors, so everything else (files,
generation, checkpoints) goes on seeing that model. What makes it fast, and keeps its arithmetic exact:

- Projections that read one input form a `Site` with one wide weight [W | s B | 0]. Forward is one product
  [x | u] wide^T with u = drop(x) A^T; backward is one product dy wide = [dx | du]. Base and adapter meet inside the
  accumulator, and W is a view of the wide weight: nothing is held twice.
- Dropout masks are a hash, made again in the backward pass. Norm outputs and the SwiGLU product are made again, too.
- The last layer after its keys and values, and the head, see only what labels need; the first layer has no input
  gradient. No graph is recorded.

Supported: RMSNorm, grouped queries, static rope scalings, SwiGLU, biases of projections, norms of q and k, sliding
windows, tied heads. What it does not claim, `why_not` names; the generic path takes it.

Dimensions: T tokens (padded), Q tokens the last layer goes on with, N labelled positions, D hidden
size, F intermediate size, H and G query and key-value heads, E half a head; O outputs and K inputs of a site, L its
width, R padded rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.kernels.backend import padded_rank
from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.kernels.dropout import site_key, step_key
from tunesmith.kernels.lora import Gradient, Projection, project, project_backward
from tunesmith.kernels.rms_norm import Normed, rms_norm_backward, rms_norm_project
from tunesmith.kernels.rope import rotate, rotate_backward
from tunesmith.kernels.spread import Move, Spread
from tunesmith.kernels.swiglu import swiglu_backward, swiglu_project
from tunesmith.kernels.varlen_attention import attend, attend_backward
from tunesmith.models.decoder_inputs import Inputs, Laid, lay
from tunesmith.models.lora import LoraLinear
from tunesmith.models.loss import HeadLoss, chunk_values_of, rows_of_chunk
from tunesmith.models.replay import Replays
from tunesmith.spec.paths import FAST_LARGEST_RANK, FAST_MODEL_TYPES, FAST_ROPE_KINDS, HEAD_SIZES, SIZE_MULTIPLE
from tunesmith.spec.training import TrainingSettings

_DECODER = "tunesmith_decoder"
WIDTH_MULTIPLE = 64  # of a site's inner columns: products stay aligned


def why_not(model: nn.Module, settings: TrainingSettings) -> str | None:
    """Why this loaded model cannot take the fast path; None if it can. `spec.paths` asks the same of facts alone."""
    config: Any = model.config
    if config.model_type not in FAST_MODEL_TYPES:
        return f"{config.model_type} is not one of {', '.join(FAST_MODEL_TYPES)}"
    body: Any = cast(Any, model).model
    rotary, attention = body.rotary_emb, body.layers[0].self_attn
    if (kind := getattr(rotary, "rope_type", "default")) not in FAST_ROPE_KINDS:
        return f"rope of the kind {kind}, whose angles depend on the length"
    if config.hidden_act != "silu":
        return f"the activation is {config.hidden_act}, not silu"
    if getattr(config, "mlp_bias", False):
        return "its MLP has biases"
    rotated = rotary.inv_freq.numel() * 2
    if attention.head_dim not in HEAD_SIZES or rotated != attention.head_dim:
        return f"heads of {attention.head_dim} values, {rotated} of them rotated"
    if config.hidden_size % SIZE_MULTIPLE or config.intermediate_size % SIZE_MULTIPLE:
        return f"sizes {config.hidden_size} and {config.intermediate_size} are no multiples of {SIZE_MULTIPLE}"
    if settings.lora_rank > FAST_LARGEST_RANK:
        return f"a rank of {settings.lora_rank}, above {FAST_LARGEST_RANK}"
    return None


def decoder_of(model: nn.Module) -> Decoder | None:
    """The decoder that was attached to the model, if any."""
    return model.__dict__.get(_DECODER)


class Site:
    """Projections with one input, their adapters, and the wide weight [W | s B | 0] (O, L) that holds both."""

    def __init__(self, modules: Sequence[nn.Module], *, number: int, rank: int) -> None:
        self.adapters = [module if isinstance(module, LoraLinear) else None for module in modules]
        bases = [module.base if isinstance(module, LoraLinear) else module for module in modules]
        weights = [cast(Tensor, base.weight) for base in bases]
        biases = [cast("Tensor | None", base.bias) for base in bases]
        first = weights[0]
        self.key = site_key(number)
        self.rank = padded_rank(rank)
        self.features, self.count = first.shape[1], len(weights)
        self.inner = self.count * self.rank
        self.width = self.features + -(-self.inner // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        ends = np.cumsum([weight.shape[0] for weight in weights]).tolist()
        self.parts = [slice(end - weight.shape[0], end) for end, weight in zip(ends, weights, strict=True)]
        self.wide_OL = torch.zeros(ends[-1], self.width, dtype=first.dtype, device=first.device)
        self.a_IK = torch.zeros(self.inner, self.features, dtype=first.dtype, device=first.device)
        self.bias_O = None
        if any(bias is not None for bias in biases):
            filled = [first.new_zeros(part.stop - part.start) for part in self.parts]
            self.bias_O = torch.cat([zero if bias is None else bias for bias, zero in zip(biases, filled, strict=True)])
        for base, weight, part in zip(bases, weights, self.parts, strict=True):
            view = self.wide_OL[part, : self.features]
            view.copy_(weight)
            base.weight.data = view  # type: ignore[union-attr]  # the module's own tensor is freed

    def moves(self) -> tuple[list[Move], list[Move]]:
        """How A and s B get from the adapters into the site."""
        a_moves: list[Move] = []
        b_moves: list[Move] = []
        for index, (adapter, part) in enumerate(zip(self.adapters, self.parts, strict=True)):
            if adapter is None:
                continue
            first, rank = index * self.rank, adapter.lora_A.shape[0]
            columns = slice(self.features + first, self.features + first + rank)
            a_moves.append(Move(source=adapter.lora_A.data, into=self.a_IK[first : first + rank], factor=1.0))
            b_moves.append(Move(source=adapter.lora_B.data, into=self.wide_OL[part, columns], factor=adapter.scaling))
        return a_moves, b_moves

    def projection(self, dropout: float, places_T: Tensor) -> Projection:
        return Projection(
            a_IK=self.a_IK,
            count=self.count,
            rank=self.rank,
            places_T=places_T,
            site=self.key,
            probability=dropout,
        )

    def product(self, wide_TL: Tensor, part: slice = slice(None)) -> Tensor:
        """Base and adapter outputs of [x | u | 0]."""
        if self.bias_O is None:
            return wide_TL @ self.wide_OL[part].t()
        return torch.addmm(self.bias_O[part], wide_TL, self.wide_OL[part].t())

    def back(self, dy_TO: Tensor, part: slice = slice(None)) -> Tensor:
        """[dx | du | .] (T, L)."""
        return dy_TO @ self.wide_OL[part]

    def back_inner(self, dy_TO: Tensor) -> Tensor:
        """du alone, (T, I): the first layer's input needs no gradient."""
        return dy_TO @ self.wide_OL[:, self.features :]

    def split(self, wide_TL: Tensor) -> tuple[Tensor, Tensor]:
        return wide_TL[:, : self.features], wide_TL[:, self.features :]

    def a_gradients(self) -> list[Gradient | None]:
        return [None if adapter is None else Gradient(into_rK=_gradient(adapter.lora_A)) for adapter in self.adapters]

    def b_gradient_transposed(self, index: int) -> Gradient | None:
        adapter = self.adapters[index]
        if adapter is None:
            return None
        return Gradient(into_rK=_gradient(adapter.lora_B).t(), factor=adapter.scaling)

    def collect_b(self, dy_TO: Tensor, inner_TI: Tensor, first: int = 0) -> None:
        """dB_j += s dy_j^T u_j. dy's first column is output number `first` of the site."""
        if not any(self.adapters):
            return
        product_OI = dy_TO.t() @ inner_TI
        for index, (adapter, part) in enumerate(zip(self.adapters, self.parts, strict=True)):
            start, stop = part.start - first, part.stop - first
            if adapter is None or start < 0 or stop > product_OI.shape[0]:
                continue
            column = index * self.rank
            rank = adapter.lora_A.shape[0]
            block_Or = product_OI[start:stop, column : column + rank]
            _gradient(adapter.lora_B).add_(block_Or, alpha=adapter.scaling)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


OFF = 0.0  # dropout


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    qkv: Site
    out: Site
    gate_up: Site
    down: Site
    first_norm: Tensor
    second_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int | None

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class Decoder:
    """Runs batches through the model that it attaches itself to. Not a module: the model owns its tensors."""

    def __init__(self, model: nn.Module, *, settings: TrainingSettings) -> None:
        """Raises ValueError for a model that `why_not` names a reason for."""
        if (reason := why_not(model, settings)) is not None:
            raise ValueError(reason)
        body: Any = cast(Any, model).model
        config: Any = model.config
        self.dropout = settings.lora_dropout
        self.recomputed = 0  # so many layers, from the first, keep their input alone and run forward again
        self.embedding_VD: Tensor = body.embed_tokens.weight
        self.norm_D: Tensor = body.norm.weight
        self.eps: float = body.norm.variance_epsilon
        self.head_VD: Tensor = cast(Any, model).get_output_embeddings().weight
        attention = body.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.q_size, self.kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.frequencies_E = body.rotary_emb.inv_freq.float()
        self.angle_scale = float(getattr(body.rotary_emb, "attention_scaling", 1.0))
        # Mistral's layers have no window of their own: the config's is meant
        window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
        self.layers = [
            self._layer(layer, number, rank=settings.lora_rank, window=window)
            for number, layer in enumerate(body.layers)
        ]
        self.window = next((layer.window for layer in self.layers if layer.window is not None), None)
        self.device = self.embedding_VD.device
        self.replays = Replays(self._pass, device=self.device)
        self._prepared: dict[int, tuple[Batch, Laid]] = {}
        self._seen = 0
        self._adapter = next(found for layer in self.layers for site in layer.sites for found in site.adapters if found)
        self._a = self._b = Spread([])
        self.refresh(is_enabled=True)
        model.__dict__[_DECODER] = self

    @staticmethod
    def _layer(layer: Any, number: int, *, rank: int, window: int | None) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        groups = (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        )
        qkv, out, gate_up, down = (
            Site(group, number=4 * number + index, rank=rank) for index, group in enumerate(groups)
        )
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        return Layer(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            first_norm=layer.input_layernorm.weight,
            second_norm=layer.post_attention_layernorm.weight,
            q_norm=None if norms[0] is None else norms[0].weight,
            k_norm=None if norms[1] is None else norms[1].weight,
            window=getattr(attention, "sliding_window", window),
        )

    @torch.no_grad()
    def refresh(self, *, is_enabled: bool) -> None:
        """Take the adapters' values over; call it after they change. is_enabled False: the base without them."""
        if self._adapter.lora_A.data_ptr() != self._seen:  # an optimiser has moved them since
            self._seen = self._adapter.lora_A.data_ptr()
            moves = [site.moves() for layer in self.layers for site in layer.sites]
            self._a = Spread([move for a_moves, _ in moves for move in a_moves])
            self._b = Spread([move for _, b_moves in moves for move in b_moves])
        self._a.run()
        self._b.run(1.0 if is_enabled else 0.0)

    # ---- the batch

    def prepare(self, batch: Batch) -> None:
        """Make a batch's inputs now, while the device is busy; the next `train` of this very batch uses them."""
        self._prepared[id(batch)] = (batch, self.lay(batch))

    def forget(self) -> None:
        """Drop what was prepared."""
        self._prepared.clear()

    def lay(self, batch: Batch) -> Laid:
        return lay(batch, device=self.device, window=self.window)

    def inputs(self, batch: Batch) -> Inputs:
        """For a pass without dropout."""
        return self.lay(batch).inputs(self.frequencies_E, self.angle_scale)

    # ---- whole passes

    @torch.no_grad()
    def train(self, batch: Batch, *, seed: int, step: int, divisor: int) -> Tensor:
        """Summed loss of one micro-batch; the gradients of loss / divisor are added to the adapters'.

        The loss is to be used before the next call: a replayed one lies where that puts its own.
        """
        found = self._prepared.pop(id(batch), None)
        laid = self.lay(batch) if found is None else found[1]
        key = torch.full((), step_key(seed=seed, step=step), dtype=torch.int32, device=self.device)
        factor = torch.full((), 1.0 / divisor, device=self.device)
        gradient = self._adapter.lora_A.grad
        if gradient is None:  # it is made in the pass, so what is launched is not what is launched later
            return self._pass(laid, key, factor)
        return self.replays.run(laid, key, factor, state=(self.recomputed, gradient.data_ptr()))

    def _pass(self, laid: Laid, step: Tensor, factor: Tensor) -> Tensor:
        inputs, dropout = laid.inputs(self.frequencies_E, self.angle_scale, step=step), self.dropout
        h_TD, delta_TD = self.embedding_VD[inputs.tokens_T], None
        last = len(self.layers) - 1
        kept: list[Any] = []
        for number, layer in enumerate(self.layers):
            before = (h_TD, delta_TD)
            h_TD, delta_TD, saved = self.forward(layer, h_TD, delta_TD, inputs, dropout, is_last=number == last)
            kept.append(before if number < self.recomputed else saved)
            del saved, before
        normed = rms_norm_project(h_TD, delta_TD, self.norm_D, None, eps=self.eps, width=h_TD.shape[1])
        hidden_ND = normed.wide_TL[inputs.labelled_N]
        nll_N, _, d_ND = self._head(hidden_ND, inputs.labels_N, factor=factor)
        d_QD = torch.zeros_like(normed.h_TK)
        d_QD.index_add_(0, inputs.labelled_N, d_ND)  # the filling adds zeros to a row that may have a label
        d_QD = rms_norm_backward(d_QD, normed.h_TK, self.norm_D, normed.rstd_T, None)
        del normed, hidden_ND, d_ND
        for number in reversed(range(len(self.layers))):
            saved = kept.pop()
            is_last = number == last
            if number < self.recomputed:
                h_TD, delta_TD = saved
                _, _, saved = self.forward(self.layers[number], h_TD, delta_TD, inputs, dropout, is_last=is_last)
            d_QD = self._backward(
                self.layers[number], d_QD, saved, inputs, dropout, is_last=is_last, needs_dx=number > 0
            )
            del saved
        return nll_N.sum()

    @torch.no_grad()
    def scores(self, batch: Batch) -> HeadLoss:
        """Loss and hits at labelled positions, dropout off."""
        laid = self.lay(batch)
        inputs = laid.inputs(self.frequencies_E, self.angle_scale)
        h_TD, delta_TD = self.embedding_VD[inputs.tokens_T], None
        for number, layer in enumerate(self.layers):
            is_last = number == len(self.layers) - 1
            h_TD, delta_TD, _ = self.forward(layer, h_TD, delta_TD, inputs, OFF, is_last=is_last)
        normed = rms_norm_project(h_TD, delta_TD, self.norm_D, None, eps=self.eps, width=h_TD.shape[1])
        nll_N, is_right_N, _ = self._head(normed.wide_TL[inputs.labelled_N], inputs.labels_N, factor=None)
        positions_N, nll_N, is_right_N = (
            tensor[: laid.num_labels] for tensor in (inputs.positions_N, nll_N, is_right_N)
        )
        return HeadLoss(loss_sum=nll_N.sum(), positions_N=positions_N, nll_N=nll_N, is_right_N=is_right_N)

    def _head(self, hidden_ND: Tensor, labels_N: Tensor, *, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(loss (N,), is_right (N,), gradient of the hidden states where factor is given), a chunk of logits a time."""
        values = chunk_values_of(hidden_ND, with_kernel=True)
        chunk = rows_of_chunk(values, vocabulary=self.head_VD.shape[0])
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        d_ND = torch.empty_like(hidden_ND)
        for start in range(0, max(1, len(labels_N)), chunk):
            part = slice(start, start + chunk)
            logits_nV = hidden_ND[part] @ self.head_VD.t()
            loss_n, is_right_n = cross_entropy(logits_nV, labels_N[part], factor=factor)
            losses.append(loss_n)
            hits.append(is_right_n)
            if factor is not None:
                torch.mm(logits_nV, self.head_VD, out=d_ND[part])
        return torch.cat(losses), torch.cat(hits), d_ND

    # ---- one layer

    def forward(
        self, layer: Layer, h_TD: Tensor, delta_TD: Tensor | None, inputs: Inputs, dropout: float, *, is_last: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """(residual, what is still to be added to it, what the backward pass needs)."""
        places, cos, sin = inputs.places_T, inputs.cos_TE, inputs.sin_TE
        projection = layer.qkv.projection(dropout, places)
        first = rms_norm_project(h_TD, delta_TD, layer.first_norm, projection, eps=self.eps, width=layer.qkv.width)
        if is_last:
            tail = inputs.tail_Q
            q = layer.qkv.product(first.wide_TL[tail], slice(0, self.q_size))
            kv = layer.qkv.product(first.wide_TL, slice(self.q_size, None))
            residual_QD, tail_places, documents = first.h_TK[tail], places[tail], inputs.tail_documents
            q_cos, q_sin = inputs.tail_angles
        else:
            qkv = layer.qkv.product(first.wide_TL)
            q, kv = qkv[:, : self.q_size], qkv[:, self.q_size :]
            residual_QD, tail_places, documents = first.h_TK, places, inputs.documents
            q_cos, q_sin = cos, sin
        before_norm = None if layer.q_norm is None else (q, kv)
        q, keys = self.rotated(layer, q, kv, (q_cos, q_sin), (cos, sin))
        q_QHD = q.view(-1, self.heads, self.head_dim)
        k_TGD = keys.view(-1, self.kv_heads, self.head_dim)
        v_TGD = kv[:, self.kv_size :].view(-1, self.kv_heads, self.head_dim)
        window = layer.window if inputs.is_windowed else None
        out_QHD, lse_QH = attend(q_QHD, k_TGD, v_TGD, documents, scale=self.scale, window=window)
        second, inner_out, gate_up, inner_down, delta = self.after_attention(
            layer, residual_QD, out_QHD.reshape(-1, self.q_size), dropout, tail_places
        )
        saved = (
            first.h_TK, first.rstd_T, first.inner_TI, before_norm, q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, inner_out,
            second.h_TK, second.rstd_T, second.inner_TI, gate_up, inner_down, tail_places, window,
        )  # fmt: skip
        return second.h_TK, delta, saved

    def rotated(
        self, layer: Layer, q: Tensor, kv: Tensor, q_angles: tuple[Tensor, Tensor], angles: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, normed where the model does that, and turned: in place where it does not."""
        if layer.q_norm is None:
            rotate(q, q, *q_angles, heads=self.heads)
            rotate(kv, kv, *angles, heads=self.kv_heads)
            return q, kv[:, : self.kv_size]
        turned = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        keys = torch.empty(kv.shape[0], self.kv_size, dtype=q.dtype, device=q.device)
        rotate(q, turned, *q_angles, heads=self.heads, weight_D=layer.q_norm, eps=self.eps)
        rotate(kv, keys, *angles, heads=self.kv_heads, weight_D=layer.k_norm, eps=self.eps)
        return turned, keys

    def after_attention(
        self, layer: Layer, residual_QD: Tensor, out_QX: Tensor, dropout: float, places_Q: Tensor
    ) -> tuple[Normed, Tensor, Tensor, Tensor, Tensor]:
        """(second norm, inner values of o, gate and up, inner values of down, what is to be added to the residual)."""
        wide, inner_out = project(out_QX, layer.out.projection(dropout, places_Q), width=layer.out.width)
        second = rms_norm_project(
            residual_QD,
            layer.out.product(wide),
            layer.second_norm,
            layer.gate_up.projection(dropout, places_Q),
            eps=self.eps,
            width=layer.gate_up.width,
        )
        gate_up = layer.gate_up.product(second.wide_TL)
        wide, inner_down = swiglu_project(gate_up, layer.down.projection(dropout, places_Q), width=layer.down.width)
        return second, inner_out, gate_up, inner_down, layer.down.product(wide)

    def _backward(
        self,
        layer: Layer,
        d_QD: Tensor,
        saved: Any,
        inputs: Inputs,
        dropout: float,
        *,
        is_last: bool,
        needs_dx: bool,
    ) -> Tensor:
        """Gradient of the layer's input from that of its output (the residual's and the addend's are the same)."""
        (
            h_TD, rstd_T, inner_qkv, before_norm, q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, inner_out,
            h_QD, rstd_Q, inner_gate_up, gate_up, inner_down, tail_places, window,
        ) = saved  # fmt: skip
        qkv, out, up, down = layer.qkv, layer.out, layer.gate_up, layer.down
        down.collect_b(d_QD, inner_down)
        dx, du = down.split(down.back(d_QD))
        gradients = [*down.a_gradients(), up.b_gradient_transposed(0), up.b_gradient_transposed(1)]
        d_gate_up = swiglu_backward(dx, du, gate_up, inner_gate_up, down.projection(dropout, tail_places), gradients)
        del dx, du
        dx, du = up.split(up.back(d_gate_up))
        del d_gate_up
        d_normed = project_backward(
            dx, du, h_QD, up.projection(dropout, tail_places), up.a_gradients(), rstd_T=rstd_Q,
            weight_K=layer.second_norm,
        )  # fmt: skip
        assert d_normed is not None
        d_QD = rms_norm_backward(d_normed, h_QD, layer.second_norm, rstd_Q, d_QD)
        out.collect_b(d_QD, inner_out)
        dx, du = out.split(out.back(d_QD))
        d_out = project_backward(
            dx, du, out_QHD.reshape(-1, self.q_size), out.projection(dropout, tail_places), out.a_gradients()
        )
        assert d_out is not None
        T = h_TD.shape[0]
        d_qkv = torch.empty(T, self.q_size + 2 * self.kv_size, dtype=d_out.dtype, device=d_out.device)
        d_kv = d_qkv[:, self.q_size :]
        if is_last:
            documents, query_angles, d_q = inputs.tail_documents, inputs.tail_angles, torch.empty_like(d_out)
        else:
            documents, query_angles, d_q = inputs.documents, inputs.angles, d_qkv[:, : self.q_size]
        undo = before_norm is None
        attend_backward(
            d_out.view_as(q_QHD), q_QHD, k_TGD, v_TGD, out_QHD, lse_QH, documents, scale=self.scale, window=window,
            d_q=d_q, d_kv=d_kv, query_angles=query_angles if undo else None, key_angles=inputs.angles if undo else None,
        )  # fmt: skip
        if before_norm is not None:
            for d, angles, heads, x, weight in (
                (d_q, query_angles, self.heads, before_norm[0], layer.q_norm),
                (d_kv, inputs.angles, self.kv_heads, before_norm[1], layer.k_norm),
            ):
                rotate_backward(d, d, *angles, heads=heads, x_TX=x, weight_D=weight, eps=self.eps)
        if is_last:
            tail = inputs.tail_Q
            qkv.collect_b(d_q, inner_qkv[tail])
            qkv.collect_b(d_kv, inner_qkv, first=self.q_size)
            wide = qkv.back(d_kv, slice(self.q_size, None))
            wide.index_add_(0, tail, qkv.back(d_q, slice(0, self.q_size)))
            residual = torch.zeros_like(h_TD).index_copy_(0, tail, d_QD)
        else:
            qkv.collect_b(d_qkv, inner_qkv)
            wide = qkv.back(d_qkv) if needs_dx else qkv.back_inner(d_qkv)
            residual = d_QD
        dx, du = qkv.split(wide) if needs_dx or is_last else (None, wide)
        d_normed = project_backward(
            dx if needs_dx else None, du, h_TD, qkv.projection(dropout, inputs.places_T), qkv.a_gradients(),
            rstd_T=rstd_T, weight_K=layer.first_norm,
        )  # fmt: skip
        if d_normed is None:
            return d_QD
        return rms_norm_backward(d_normed, h_TD, layer.first_norm, rstd_T, residual)
